"""Runs a program of a comparison in its own process, as many times as its standard input requests.

`python benchmarks/peers.py KIND BACKEND NET BATCH THREADS [FOLDER]` prints a JSON line {"check": ...} when it is ready.
For each line "N" on its standard input it runs N times and prints a JSON list with the seconds of each run. At the end
of the input it prints {"peak_mb": ...}. All backends must have the same "check": the first loss, or the mean absolute
prediction.
"""

import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks import growth
from src.data.image import DEPTH_SIZE, RGB_SIZE

NAMES = ("CoarseNet", "FineNet")
LEARNING_RATE = 1e-6  # so small that the loss hardly changes


def batch_arrays(batch):
    """Return a random batch: (RGB uint8 (N, 3, 228, 304), metres (N, 1, 55, 74) with 0 = not measured, log depth of all
    pixels (N, 1, 55, 74))."""
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (batch, 3, *RGB_SIZE), np.uint8)
    depth_m = rng.uniform(1, 5, (batch, 1, *DEPTH_SIZE)).astype(np.float32)
    return rgb, depth_m * (rng.random(depth_m.shape) > 0.1), np.log(depth_m)


def mindspore_net(name):
    """Return a net with the initial weights that all backends use."""
    import mindspore as ms

    from src import net
    from src.nets import device

    device.select("CPU")
    ms.set_seed(0)
    return getattr(net, name)()


def train(backend, name, batch):
    """Prepare the training of a net, and make the first step.

    Args:
        backend: "mindspore", "pytorch", "pytorch-channels-last" or "pytorch-compile".
        name: name of the net.
        batch: batch size.

    Returns:
        (function that makes a training step and returns the loss, loss of the first step).
    """
    arrays, net = batch_arrays(batch), mindspore_net(name)
    step = mindspore_step(net, name, *arrays) if backend == "mindspore" else torch_step(net, name, backend, *arrays)
    return step, step()


def mindspore_step(net, name, rgb, depth_m, coarse):
    """Return a function that makes a training step with this repo's Trainer and returns the loss."""
    import mindspore as ms

    from src.training.trainer import Trainer

    coarse_tensor = ms.Tensor(coarse)
    trainer = Trainer(
        net,
        "composite",
        LEARNING_RATE,
        inputs=(lambda rgb: (rgb, coarse_tensor)) if name == "FineNet" else lambda rgb: (rgb,),
    )
    return lambda: trainer.run_step(rgb, depth_m)[0]


def torch_step(net, name, backend, rgb, depth_m, coarse):
    """Return a function that makes a training step of the same net with PyTorch and returns the loss."""
    import torch

    from tests.twins import TWINS, composite_loss, weights

    layout = torch.channels_last if "channels-last" in backend else torch.contiguous_format
    parameters = {
        key: torch.nn.Parameter(value.contiguous(memory_format=layout) if value.ndim == 4 else value)
        for key, value in weights(net).items()
    }
    further_inputs = (torch.from_numpy(coarse),) if name == "FineNet" else ()
    optimizer = torch.optim.Adam(parameters.values(), LEARNING_RATE, fused=True)

    def loss_of(rgb, depth_m):
        return composite_loss(TWINS[name](parameters, rgb, *further_inputs), depth_m)

    run = torch.compile(loss_of) if "compile" in backend else loss_of

    def step():
        pixels = torch.from_numpy(rgb).to(torch.float32, memory_format=layout) / 255
        loss = run(pixels, torch.from_numpy(depth_m))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def predictor(backend, batch, threads, folder):
    """Load both nets from the checkpoints or exports in `folder`.

    Args:
        backend: "mindspore", "pytorch", "pytorch-compile", "onnxruntime" or "openvino".
        batch: batch size.
        threads: number of threads.
        folder: as `prepare` of benchmarks/suite.py fills it.

    Returns:
        A function: RGB float32 (N, 3, 228, 304) -> FineNet's log depth (N, 1, 55, 74).
    """
    if backend == "mindspore":
        from src.nets import device
        from src.nets.nets import Nets

        device.select("CPU")
        nets = Nets(*(folder / "Ckpt" / f"Final{name}.ckpt" for name in NAMES))
        return lambda rgb: nets(rgb)["FineNet"]
    if backend.startswith("pytorch"):
        return torch_predictor(backend, folder)
    paths = [str(folder / "ONNX" / f"Final{name}.onnx") for name in NAMES]
    return (
        onnxruntime_predictor(paths, threads) if backend == "onnxruntime" else openvino_predictor(paths, batch, threads)
    )


def torch_predictor(backend, folder):
    """As `predictor`, with PyTorch."""
    import torch

    from tests.twins import coarse_twin, fine_twin

    weights = [
        {key: torch.from_numpy(value) for key, value in np.load(folder / f"{name}.npz").items()} for name in NAMES
    ]

    def both_nets(rgb):
        return fine_twin(weights[1], rgb, coarse_twin(weights[0], rgb))

    run = torch.compile(both_nets) if "compile" in backend else both_nets

    def predict(rgb):
        with torch.inference_mode():
            return run(torch.from_numpy(rgb)).numpy()

    return predict


def onnxruntime_predictor(paths, threads):
    """As `predictor`, with onnxruntime. `paths`: the ONNX files of CoarseNet and FineNet."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    coarse, fine = (onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]) for path in paths)
    return lambda rgb: fine.run(None, {"rgb": rgb, "coarse_log_depth": coarse.run(None, {"rgb": rgb})[0]})[0]


def openvino_predictor(paths, batch, threads):
    """As `predictor`, with OpenVINO. `paths`: the ONNX files of CoarseNet and FineNet."""
    import openvino

    core = openvino.Core()
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    models = [core.read_model(path) for path in paths]
    for model in models:
        model.reshape({port: [batch, *list(port.partial_shape)[1:]] for port in model.inputs})
    coarse, fine = (core.compile_model(model, "CPU", hints) for model in models)
    return lambda rgb: fine({"rgb": rgb, "coarse_log_depth": coarse({"rgb": rgb})[0]})[0]


def infer(backend, batch, threads, folder, files=False):
    """Prepare the prediction with both nets.

    Args:
        backend, batch, threads, folder: as in `predictor`. The pictures are `folder`/img_data/*.bin.
        files: also read each picture from its file and write its depth to a file, as the C++ program does.

    Returns:
        (function that predicts the next batch, mean absolute log depth of the first batch).
    """
    run = predictor(backend, batch, threads, folder)
    paths = sorted((folder / "img_data").glob("*.bin"))
    batches = [paths[start : start + batch] for start in range(0, len(paths) - batch + 1, batch)]

    def read(paths):
        return np.stack([np.fromfile(path, np.float32).reshape(3, *RGB_SIZE) for path in paths])

    cached = [] if files else [read(paths) for paths in batches[:8]]
    output = folder / f"out-{os.getpid()}"
    output.mkdir()
    count = 0

    def step():
        nonlocal count
        count += 1
        if not files:
            return run(cached[count % len(cached)])
        chosen = batches[count % len(batches)]
        for path, log_depth in zip(chosen, run(read(chosen)), strict=True):
            np.ascontiguousarray(log_depth).tofile(output / path.name)

    return step, float(np.abs(run(read(batches[0]))).mean())


def main():
    kind, backend, net, batch, threads, *folder = sys.argv[1:]
    batch, threads = int(batch), int(threads)
    if "pytorch" in backend:
        import torch

        torch.set_num_threads(threads)
    if kind == "train":
        step, check = train(backend, net, batch)
    else:
        step, check = infer(backend, batch, threads, Path(folder[0]), files=kind == "files")
    step()  # some backends compile in the second step
    write({"check": check})
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            started_at = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - started_at)
        write(seconds)
    write({"peak_mb": growth.peak_mb()})


def write(value):
    """Print a value as a JSON line."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
