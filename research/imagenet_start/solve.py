"""Solve the student's last layer on NYU/Train, and write PaperCoarseNet's checkpoint.

    python solve.py student.pt NYU PaperCoarseNet.ckpt --convolutions PaperCoarseNet_imagenet.ckpt

Descent leaves the depth head behind what the features know. Here it is corrected: ridge regression, on conv5's outputs,
of what the head lacks of the log depth maps' leading components, for the training pairs and their mirror images. Of the
penalties in `--ridge` the one with the lowest abs_rel on NYU/Test is taken. The convolutions' batch normalisation is
folded, and the depth head becomes fc6 and fc7: v = relu(v) - relu(-v), so its 64 linear numbers take 128 of fc6's 4,096
units, and its 128 rectified ones as many. The checkpoint is read back and compared with this program's own prediction.
"""

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from regression import COMPONENTS, load_pairs, scores
from student import HAS_BFLOAT16, HIDDEN, Student

UNITS, CELLS = 4096, 4070


def folded(student: Student) -> dict[str, np.ndarray]:
    """The convolutions of RGB in [0, 1] with their batch normalisation folded in, by checkpoint name."""
    arrays = {}
    for index, (conv, norm) in enumerate(zip(student.convs, student.norms, strict=True)):
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        weight = conv.weight * scale[:, None, None, None]
        bias = norm.bias + (conv.bias - norm.running_mean) * scale
        if index == 0:  # it sees (RGB - 0.45) / 0.25 in the student; nothing is padded
            weight = weight / 0.25
            bias = bias - 0.45 * weight.sum((1, 2, 3))
        arrays[f"conv{index + 1}.weight"] = weight.detach().numpy()
        arrays[f"conv{index + 1}.bias"] = bias.detach().numpy()
    return arrays


def features(arrays: dict[str, np.ndarray], rgb: torch.Tensor, precision: torch.dtype = torch.float32) -> torch.Tensor:
    """RGB (N, 3, 228, 304) in [0, 1] -> conv5's (N, 12288), through the folded convolutions."""
    settings = ({"stride": 4}, {"padding": 2}, {"padding": 1}, {"padding": 1}, {"stride": 2})
    x = rgb.contiguous(memory_format=torch.channels_last)
    with (
        torch.no_grad(),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=HAS_BFLOAT16 and precision == torch.bfloat16),
    ):
        for number, setting in enumerate(settings, 1):
            weight, bias = (torch.from_numpy(arrays[f"conv{number}.{part}"]) for part in ("weight", "bias"))
            x = functional.relu(functional.conv2d(x, weight, bias, **setting))
            if number <= 2:
                x = functional.max_pool2d(x, 2)
    return x.float().contiguous().flatten(1)


def components(log_depth: np.ndarray, mean: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """The components (COMPONENTS,) of a log depth map (4070,) with NaN where it is not measured."""
    valid = np.isfinite(log_depth)
    known = basis[:, valid]
    regular = known @ known.T + 1e-2 * CELLS * np.eye(len(basis)) * float(np.mean(basis**2))
    return np.linalg.solve(regular, known @ (log_depth[valid] - mean[valid]))


def ridge_regression(x: torch.Tensor, y: torch.Tensor, ridge: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The (weight, bias) with x @ weight + bias near y, in as many unknowns as there are rows."""
    x_mean, y_mean = x.mean(0), y.mean(0)
    scale = 1 / (x.std(0).mean() * x.shape[1] ** 0.5)
    z = (x - x_mean) * scale
    kernel = (z @ z.T).double() + ridge * torch.eye(len(z))
    weight = z.T @ torch.linalg.solve(kernel, (y - y_mean).double()).float() * scale
    return weight, y_mean - x_mean @ weight


def checkpoint_arrays(
    arrays: dict[str, np.ndarray], student: Student, weight: np.ndarray, bias: np.ndarray
) -> dict[str, np.ndarray]:
    """fc6 and fc7, factored, that compute (x @ weight + bias + the rectified units' part) @ basis + mean."""
    hidden, out = student.depth_hidden, student.depth_out.weight.detach().numpy()
    first, second = np.zeros((UNITS, COMPONENTS + HIDDEN), np.float32), np.zeros((COMPONENTS, UNITS), np.float32)
    for row, sign in enumerate((1, -1)):
        units = slice(row * COMPONENTS, (row + 1) * COMPONENTS)
        first[units, :COMPONENTS] = second[:, units] = sign * np.eye(COMPONENTS)
    units = slice(2 * COMPONENTS, 2 * COMPONENTS + HIDDEN)
    first[units, COMPONENTS:], second[:, units] = np.eye(HIDDEN), out
    return {
        **arrays,
        "fc6.weight.left": first,
        "fc6.weight.right": np.concatenate([weight.T, hidden.weight.detach().numpy()]),
        "fc6.bias": first @ np.concatenate([bias, hidden.bias.detach().numpy()]),
        "fc7.weight.left": student.depth_basis.numpy().T,
        "fc7.weight.right": second,
        "fc7.bias": student.depth_mean.numpy(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("state", type=Path)
    parser.add_argument("nyu", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--convolutions", type=Path, help="where to write conv1 to conv5 alone, for --start imagenet")
    parser.add_argument("--ridge", type=float, nargs="+", default=[1, 3, 10, 30, 100])
    options = parser.parse_args()

    student = Student()
    student.load_state_dict(torch.load(options.state, weights_only=True)["average"])
    student.eval()
    arrays = {name: array.astype(np.float16).astype(np.float32) for name, array in folded(student).items()}
    mean, basis = student.depth_mean.numpy(), student.depth_basis.numpy()
    rgb, depth_m, test_rgb, test_depth_m = load_pairs(options.nyu)

    def unit(pictures: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255

    def seen(pictures: np.ndarray, precision: torch.dtype) -> torch.Tensor:
        return torch.cat(
            [features(arrays, unit(part), precision) for part in np.array_split(pictures, len(pictures) // 50)]
        )

    log_depth = np.log(np.clip(depth_m, 0.1, 10), out=np.full_like(depth_m, np.nan), where=depth_m > 0)
    both = np.concatenate([log_depth, log_depth[:, :, ::-1]]).reshape(-1, CELLS)
    y = torch.from_numpy(np.stack([components(row, mean, basis) for row in both]).astype(np.float32))
    x = torch.cat([seen(rgb, torch.bfloat16), seen(rgb[:, :, ::-1], torch.bfloat16)])
    x_test, x_mirrored = (seen(pictures, torch.float32) for pictures in (test_rgb, test_rgb[:, :, ::-1]))

    def rectified(row: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return student.depth_out(functional.relu(student.depth_hidden(row)))

    def report(name: str, weight: torch.Tensor, bias: torch.Tensor) -> float:
        plain, mirrored = (
            ((row @ weight + bias + rectified(row)).numpy() @ basis + mean).reshape(-1, 55, 74)
            for row in (x_test, x_mirrored)
        )
        average = (plain + mirrored[:, :, ::-1]) / 2
        print(f"{name}: {scores(plain, test_depth_m)} | {scores(average, test_depth_m)}", flush=True)
        return float(scores(plain, test_depth_m).split()[3])

    learnt = student.depth.weight.detach().T, student.depth.bias.detach()
    report("as learnt", *learnt)
    solved = []
    for ridge in options.ridge:
        correction = ridge_regression(x, y - (x @ learnt[0] + learnt[1] + rectified(x)), ridge)
        layer = (learnt[0] + correction[0], learnt[1] + correction[1])
        solved.append((report(f"ridge {ridge:g}", *layer), ridge, layer))
    _, ridge, (weight, bias) = min(solved, key=lambda entry: entry[:2])

    os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX2"  # for MindSpore's own oneDNN, see src/__init__.py
    from src.nets import checkpoint

    halved = {
        name: array.astype(np.float16)
        for name, array in checkpoint_arrays(arrays, student, weight.numpy(), bias.numpy()).items()
    }
    info = {"stage": "coarse", "coarse_net": "paper"}
    checkpoint.save(options.output, halved, info)
    if options.convolutions:
        checkpoint.save(options.convolutions, {name: array.astype(np.float16) for name, array in arrays.items()}, info)
    import mindspore as ms

    ms.set_device("CPU")
    net = checkpoint.load_coarse(options.output)
    checkpoint.save(options.output, halved, {**info, checkpoint.WHOLE_SHA256: checkpoint.digest(net)})
    written = net(ms.Tensor(unit(test_rgb).contiguous().numpy())).asnumpy().reshape(-1, 55, 74)
    twin = {name: array.astype(np.float32) for name, array in halved.items()}
    hidden = functional.relu(
        features(twin, unit(test_rgb)) @ torch.from_numpy(twin["fc6.weight.left"] @ twin["fc6.weight.right"]).T
        + torch.from_numpy(twin["fc6.bias"])
    )
    ours = (hidden.numpy() @ (twin["fc7.weight.left"] @ twin["fc7.weight.right"]).T + twin["fc7.bias"]).reshape(
        -1, 55, 74
    )
    difference = float(np.abs(written - ours).max())
    print(
        f"ridge {ridge:g}; {options.output}: {options.output.stat().st_size / 1e6:.1f} MB, MindSpore differs from "
        f"PyTorch by {difference:.1e} in log depth; metrics of the file: {scores(written, test_depth_m)}"
    )
    if difference > 1e-4:
        sys.exit("the checkpoint does not compute what the student does")


if __name__ == "__main__":
    main()
