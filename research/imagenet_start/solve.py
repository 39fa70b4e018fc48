"""Solve the student's last layer on all views, and write PaperCoarseNet's checkpoint.

    python solve.py VIEWS student.pt NYU PaperCoarseNet.ckpt --convolutions PaperCoarseNet_imagenet.ckpt

Descent leaves the depth head behind what the features know. Here it is solved: the correction of the head that has the
least squared error over all views and a penalty on its size (ridge regression); `--ridge` may name several penalties,
of which the lowest abs_rel on NYU/Test is taken. The convolutions' batch normalisation is folded, and the two linear
layers become fc6 and fc7: v = relu(v) - relu(-v), so 64 numbers take 128 of fc6's 4,096 units. The checkpoint is read
back and compared with this program's own prediction.
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
from student import HAS_BFLOAT16, Student, Views

UNITS, CELLS = 4096, 4070
BATCH = 512  # each adds to a matrix of 600 MB
PAIRS_WEIGHT = 20.0  # of the pictures of NYU/Train themselves, over their views
LEAST_MEASURED = 0.5  # of a view's cells, so that its map's components are known


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


class NormalEquations:
    """Sums of x x' and x r' over weighted rows, with x = (features, 1) and r the head's error."""

    def __init__(self, size: int) -> None:
        self.square = torch.zeros(size + 1, size + 1)
        self.product = torch.zeros(size + 1, COMPONENTS)

    def add(self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> None:
        x = torch.cat([x, torch.ones(len(x), 1)], 1) * weight.sqrt()[:, None]
        self.square.addmm_(x.T, x)
        self.product.addmm_(x.T, residual * weight.sqrt()[:, None])

    def solve(self, ridge: float) -> tuple[torch.Tensor, torch.Tensor]:
        """The head's correction: weight (features, COMPONENTS) and bias (COMPONENTS,)."""
        diagonal = self.square.diagonal().double().clone()
        diagonal[-1] = 0  # the bias is free
        scale = float(diagonal.sum() / (len(diagonal) - 1))
        penalised = self.square.double() + ridge * scale * torch.diag(
            torch.cat([torch.ones(len(diagonal) - 1), torch.zeros(1)])
        )
        solution = torch.cholesky_solve(self.product.double(), torch.linalg.cholesky(penalised)).float()
        return solution[:-1], solution[-1]


def checkpoint_arrays(
    arrays: dict[str, np.ndarray], weight: np.ndarray, bias: np.ndarray, basis: np.ndarray, mean: np.ndarray
) -> dict[str, np.ndarray]:
    """fc6 and fc7, factored, that compute (x @ weight + bias) @ basis + mean."""
    split = np.zeros((UNITS, COMPONENTS), np.float32)
    split[:COMPONENTS] = np.eye(COMPONENTS)
    split[COMPONENTS : 2 * COMPONENTS] = -np.eye(COMPONENTS)
    return {
        **arrays,
        "fc6.weight.left": split,
        "fc6.weight.right": weight.T,
        "fc6.bias": split @ bias,
        "fc7.weight.left": basis.T,
        "fc7.weight.right": split.T,
        "fc7.bias": mean,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("views", type=Path)
    parser.add_argument("state", type=Path)
    parser.add_argument("nyu", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--convolutions", type=Path, help="where to write conv1 to conv5 alone, for --start imagenet")
    parser.add_argument("--ridge", type=float, nargs="+", default=[0.03, 0.1, 0.3, 1, 3, 10])
    parser.add_argument("--rooms_weight", type=float, default=0.3, help="of a room with the teacher's depth")
    options = parser.parse_args()

    student = Student()
    student.load_state_dict(torch.load(options.state, weights_only=True)["average"])
    student.eval()
    arrays = {name: array.astype(np.float16).astype(np.float32) for name, array in folded(student).items()}
    mean, basis = student.depth_mean.numpy(), student.depth_basis.numpy()
    head_weight, head_bias = student.depth.weight.detach().T, student.depth.bias.detach()
    rgb, depth_m, test_rgb, test_depth_m = load_pairs(options.nyu)

    def predicted(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> np.ndarray:
        return ((x @ weight + bias).numpy() @ basis + mean).reshape(-1, 55, 74)

    def unit(pictures: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255

    equations = NormalEquations(head_weight.shape[0])

    def add(pictures: np.ndarray, log_depth: np.ndarray, weight: float) -> None:
        target = np.stack([components(row, mean, basis) for row in log_depth]).astype(np.float32)
        x = features(arrays, unit(pictures), torch.bfloat16)
        residual = torch.from_numpy(target) - (x @ head_weight + head_bias)
        equations.add(x, residual, torch.full((len(x),), weight))

    log_depth = np.log(np.clip(depth_m, 0.1, 10), out=np.full_like(depth_m, np.nan), where=depth_m > 0)
    for start in range(0, len(rgb), BATCH):
        for picture, target in ((rgb, log_depth), (rgb[:, :, ::-1], log_depth[:, :, ::-1])):
            add(picture[start : start + BATCH], target[start : start + BATCH].reshape(-1, CELLS), PAIRS_WEIGHT / 2)
    views = Views(options.views, 0.5, 64)
    sizes = views.refresh()
    for kind, count, weight in zip(("pairs", "rooms"), sizes, (1.0, options.rooms_weight), strict=True):
        for start in range(0, count if weight else 0, BATCH):
            drawn = [views.view(kind, number) for number in range(start, min(start + BATCH, count))]
            maps = [(view[0], view[3].astype(np.float32).ravel()) for view in drawn]
            maps = [row for row in maps if np.isfinite(row[1]).mean() >= LEAST_MEASURED]
            if maps:
                add(np.stack([picture for picture, _ in maps]), np.stack([target for _, target in maps]), weight)
        print(f"{kind}: {count} views", flush=True)

    x, x_mirrored = features(arrays, unit(test_rgb)), features(arrays, unit(test_rgb[:, :, ::-1]))

    def report(name: str, weight: torch.Tensor, bias: torch.Tensor) -> float:
        plain, mirrored = predicted(x, weight, bias), predicted(x_mirrored, weight, bias)[:, :, ::-1]
        print(f"{name}: {scores(plain, test_depth_m)} | {scores((plain + mirrored) / 2, test_depth_m)}", flush=True)
        return float(scores(plain, test_depth_m).split()[3])

    report("as learnt", head_weight, head_bias)
    solved = []
    for ridge in options.ridge:
        correction, shift = equations.solve(ridge)
        candidate = head_weight + correction, head_bias + shift
        solved.append((report(f"ridge {ridge:g}", *candidate), ridge, candidate))
    _, ridge, (weight, bias) = min(solved, key=lambda entry: entry[:2])

    os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX2"  # for MindSpore's own oneDNN, see src/__init__.py
    from src.nets import checkpoint

    halved = {
        name: array.astype(np.float16)
        for name, array in checkpoint_arrays(arrays, weight.numpy(), bias.numpy(), basis, mean).items()
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
