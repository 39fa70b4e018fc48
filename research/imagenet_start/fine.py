"""Train FineNet on a solved CoarseNet, on the views with true depth.

    python fine.py VIEWS PaperCoarseNet.ckpt NYU FineNet.ckpt --images 40000

FineNet starts as the identity (it predicts what CoarseNet does) and learns local detail: the loss leaves each picture's
scale to CoarseNet, and each layer has its own rate (section 3.3: ten times as much for conv2). Prints the eight metrics
on NYU/Test, and the correlation of the gradients of predicted and true log depth, for CoarseNet and for FineNet.
"""

import argparse
import math
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from regression import load_pairs, scores
from solve import features
from student import HAS_BFLOAT16, Views

RATES = {"conv1": 1.0, "conv2": 10.0, "conv3": 1.0}  # relative, as the paper's


class Fine(nn.Module):
    """FineNet (section 3.2) in PyTorch, starting as the identity on the coarse log depth."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 63, 9, stride=2, bias=False)
        self.conv2 = nn.Conv2d(64, 64, 5, padding=2, bias=False)
        self.conv3 = nn.Conv2d(64, 1, 5, padding=2, bias=False)
        with torch.no_grad():
            for conv in (self.conv1, self.conv2):
                nn.init.normal_(conv.weight, 0, 0.01)
            self.conv3.weight.zero_()
            for channel, sign in enumerate((1, -1)):  # relu(x) - relu(-x) = x
                self.conv2.weight[channel] = 0
                self.conv2.weight[channel, 63, 2, 2] = sign
                self.conv3.weight[0, channel, 2, 2] = sign

    def forward(self, rgb: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
        x = functional.max_pool2d(functional.relu(self.conv1(rgb)), 2)
        return self.conv3(functional.relu(self.conv2(torch.cat([x, coarse.to(x.dtype)], 1))))


class Coarse:
    """A solved PaperCoarseNet checkpoint as a function of RGB (N, 3, 228, 304) to log depth (N, 1, 55, 74)."""

    def __init__(self, path: Path) -> None:
        from src.nets import checkpoint

        self.arrays = {name: array.astype(np.float32) for name, array in checkpoint.load(path).arrays.items()}
        used = np.flatnonzero(np.abs(self.arrays["fc6.weight"]).any(1) & np.abs(self.arrays["fc7.weight"]).any(0))
        self.fc6 = torch.from_numpy(self.arrays["fc6.weight"][used]), torch.from_numpy(self.arrays["fc6.bias"][used])
        self.fc7 = (
            torch.from_numpy(np.ascontiguousarray(self.arrays["fc7.weight"][:, used])),
            torch.from_numpy(self.arrays["fc7.bias"]),
        )

    def __call__(self, rgb: torch.Tensor, precision: torch.dtype = torch.float32) -> torch.Tensor:
        with torch.no_grad():
            units = functional.relu(functional.linear(features(self.arrays, rgb, precision), *self.fc6))
            return functional.linear(units, *self.fc7).reshape(-1, 1, 55, 74)


def differences(maps: torch.Tensor) -> list[torch.Tensor]:
    """Forward differences down and across of (N, 55, 74), without the last row and column."""
    return [(maps[:, 1:, :-1] - maps[:, :-1, :-1]), (maps[:, :-1, 1:] - maps[:, :-1, :-1])]


def detail_loss(
    predicted: torch.Tensor, coarse: torch.Tensor, log_depth: torch.Tensor, gradient_weight: float
) -> torch.Tensor:
    """Of (N, 55, 74) with NaN where the target is not measured: L1, variance and gradients of the error about its mean,
    and the square of what FineNet adds on the whole. CoarseNet alone answers for each picture's scale."""
    valid = torch.isfinite(log_depth)
    count = valid.sum((1, 2), keepdim=True).clamp(min=1)
    error = torch.where(valid, log_depth.nan_to_num() - predicted, 0)
    error = torch.where(valid, error - error.sum((1, 2), keepdim=True) / count, 0)
    whole = valid[:, 1:, :-1] & valid[:, :-1, :-1] & valid[:, :-1, 1:]
    slopes = sum((difference.abs() * whole).sum((1, 2)) for difference in differences(error))
    shift = (predicted - coarse).mean((1, 2))
    local = (error.abs() + error**2).sum((1, 2)) / count[:, 0, 0] + gradient_weight * slopes / count[:, 0, 0]
    return (local + 10 * shift**2).mean()


def gradient_correlation(log_depth: np.ndarray, depth_m: np.ndarray) -> float:
    """Pearson's correlation of the differences of predicted and true log depth (N, 55, 74), mean over the images."""
    target = np.log(np.clip(depth_m, 0.1, 10), out=np.full_like(depth_m, np.nan), where=depth_m > 0)
    values = []
    for one, true in zip(log_depth.reshape(-1, 55, 74), target, strict=True):
        pairs = [
            torch.stack([p.ravel(), t.ravel()])
            for p, t in zip(
                differences(torch.from_numpy(one[None].astype(np.float32))),
                differences(torch.from_numpy(true[None])),
                strict=True,
            )
        ]
        both = torch.cat(pairs, 1)
        values.append(np.corrcoef(both[:, torch.isfinite(both).all(0)].numpy())[0, 1])
    return float(np.mean(values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("views", type=Path)
    parser.add_argument("coarse", type=Path)
    parser.add_argument("nyu", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--images", type=int, default=40_000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning_rate", type=float, default=1e-4, help="of conv1 and conv3; conv2 has ten times it")
    parser.add_argument("--gradient_weight", type=float, default=1.0)
    parser.add_argument(
        "--conv1",
        type=Path,
        help="a FineNet checkpoint whose conv1 is taken as it is: half of the work is its gradient",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    from src.nets import checkpoint

    coarse, fine = Coarse(options.coarse), Fine()
    if options.conv1:
        fine.conv1.weight.data = torch.from_numpy(
            checkpoint.load(options.conv1).arrays["conv1.weight"].astype(np.float32)
        )
        fine.conv1.weight.requires_grad_(False)
    average = Fine()
    average.load_state_dict(fine.state_dict())
    optimizer = torch.optim.Adam(
        [
            {"params": getattr(fine, name).parameters(), "rate": options.learning_rate * factor}
            for name, factor in RATES.items()
        ]
    )
    _, _, test_rgb, test_depth_m = load_pairs(options.nyu)
    test = torch.from_numpy(test_rgb).permute(0, 3, 1, 2).float().contiguous() / 255
    test_coarse = coarse(test)

    def report(name: str, log_depth: torch.Tensor) -> None:
        maps = log_depth.numpy()
        print(
            f"{name}: {scores(maps, test_depth_m)} gradient correlation {gradient_correlation(maps, test_depth_m):.3f}",
            flush=True,
        )

    report("CoarseNet", test_coarse)
    views = Views(options.views, 1.0, options.batch)
    views.refresh()
    views.shards["rooms"] = {"first": np.array([0])}  # true depth only
    last, begun = options.images // options.batch, time.time()
    for step in range(last):
        rgb, _, _, log_depth, _, _ = views.draw(options.seed + 1, step)
        share = min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / last))
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * share
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=HAS_BFLOAT16):
            below = coarse(rgb, torch.bfloat16)
            predicted = fine(rgb, below)
        loss = detail_loss(predicted[:, 0].float(), below[:, 0], log_depth, options.gradient_weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for kept, new in zip(average.parameters(), fine.parameters(), strict=True):
                kept.lerp_(new, max(0.005, 1 / (step + 1)))
        if (step + 1) % 100 == 0 or step + 1 == last:
            with torch.no_grad():
                report(
                    f"{step + 1} of {last}, loss {loss.item():.3f}, {time.time() - begun:.0f} s, FineNet",
                    average(test, test_coarse),
                )
    checkpoint.save(
        options.output,
        {name: parameter.detach().numpy().astype(np.float16) for name, parameter in average.named_parameters()},
        {"stage": "fine", "options": {"coarse_sha256": digest(options.coarse)}},
    )


def digest(path: Path) -> str:
    """What FineNet's checkpoint remembers of the CoarseNet that it was trained on."""
    from src.nets import checkpoint

    return checkpoint.digest(checkpoint.load_coarse(path))


if __name__ == "__main__":
    main()
