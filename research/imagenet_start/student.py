"""Teach PaperCoarseNet's convolutions to give the teacher's maps and the depth.

    python student.py VIEWS student.pt NYU --images 200000 [--start CONVOLUTIONS.ckpt | STATE.pt]

The five convolutions have batch normalisation while they learn; solve.py folds it into their weights. conv4 learns the
teacher's 168 finer maps and conv5 its 352 coarser ones, each through a 1x1 convolution that is thrown away later. The
depth comes from conv5 as fc6 and fc7 can give it: 12,288 -> 64 + 128 -> 55x74, where the 64 are linear and the 128 are
rectified. The state is saved every few minutes, and the same command goes on from it.
"""

import argparse
import math
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn
from torch.nn import functional

# src limits oneDNN to AVX2 for MindSpore's sake; PyTorch's oneDNN needs AVX-512 for bfloat16.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "ALL")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from regression import COMPONENTS, load_pairs, principal_components, scores
from views import INT8_STEP

CHANNELS = (96, 256, 384, 384, 256)
HAS_BFLOAT16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
HIDDEN = 128  # rectified units of the depth head
EMA_STEPS = 500  # over which the evaluated weights are averaged


class Student(nn.Module):
    """PaperCoarseNet's convolutions, a linear depth head and the heads of the teacher's maps. RGB in [0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [
                nn.Conv2d(3, 96, 11, stride=4),
                nn.Conv2d(96, 256, 5, padding=2),
                nn.Conv2d(256, 384, 3, padding=1),
                nn.Conv2d(384, 384, 3, padding=1),
                nn.Conv2d(384, 256, 3, stride=2),
            ]
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels, momentum=0.05) for channels in CHANNELS)
        self.fine, self.coarse = nn.Conv2d(384, 168, 1), nn.Conv2d(256, 352, 1)
        self.depth = nn.Linear(256 * 6 * 8, COMPONENTS)
        self.depth_hidden = nn.Linear(256 * 6 * 8, HIDDEN)
        self.depth_out = nn.Linear(HIDDEN, COMPONENTS, bias=False)
        self.register_buffer("depth_mean", torch.zeros(4070))
        self.register_buffer("depth_basis", torch.zeros(COMPONENTS, 4070))
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            nn.init.zeros_(conv.bias)
        nn.init.normal_(self.depth.weight, 0, 1e-3)
        nn.init.zeros_(self.depth_out.weight)

    def features(self, rgb: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, 3, 228, 304) -> conv4's (N, 384, 13, 18) and conv5's (N, 256, 6, 8)."""
        x = (rgb - 0.45) / 0.25
        for index, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            before, x = x, functional.relu(norm(conv(x)))
            if index < 2:
                x = functional.max_pool2d(x, 2)
        return before, x

    def log_depth(self, conv5: torch.Tensor) -> torch.Tensor:
        """conv5's output -> (N, 4070)."""
        x = conv5.float().flatten(1)
        components = self.depth(x) + self.depth_out(functional.relu(self.depth_hidden(x)))
        return components @ self.depth_basis + self.depth_mean

    def forward(self, rgb: torch.Tensor) -> torch.Tensor:
        return self.log_depth(self.features(rgb)[1])


class Views:
    """The stored views, drawn by (seed, step): the shards that are there when a step asks."""

    def __init__(self, folder: Path, labelled_share: float, batch: int) -> None:
        self.folder, self.labelled, self.batch = folder, round(labelled_share * batch), batch
        self.shards: dict[str, dict[str, list[np.ndarray]]] = {}

    def refresh(self) -> tuple[int, int]:
        """Open the shards that are new. Returns the numbers of labelled views and of rooms."""
        sizes = []
        for kind in ("pairs", "rooms"):
            arrays = self.shards.setdefault(kind, {})
            for shard in sorted(self.folder.glob(f"{kind}-*"))[len(arrays.get("jpeg", [])) :]:
                for path in shard.glob("*.npy"):
                    arrays.setdefault(path.stem, []).append(np.load(path, mmap_mode="r"))
            arrays["first"] = np.cumsum([0] + [len(ends) for ends in arrays.get("ends", [])])
            sizes.append(int(arrays["first"][-1]))
        return sizes[0], sizes[1]

    def view(self, kind: str, number: int) -> tuple[np.ndarray, ...]:
        arrays = self.shards[kind]
        shard = int(np.searchsorted(arrays["first"], number, side="right")) - 1
        row = number - arrays["first"][shard]
        ends = arrays["ends"][shard]
        jpeg = arrays["jpeg"][shard][ends[row - 1] if row else 0 : ends[row]]
        rgb = cv2.imdecode(np.asarray(jpeg), cv2.IMREAD_COLOR)[..., ::-1]
        return (
            rgb,
            *(np.asarray(arrays[name][shard][row]) for name in ("maps4", "maps5", "log_depth", "guess")),
            kind == "pairs",
        )

    def draw(self, seed: int, step: int) -> list[torch.Tensor]:
        """RGB in [0, 1] with random colours, the two target maps, log depth (NaN = not measured) and whether it was
        measured at all."""
        rng = np.random.default_rng([seed, step])
        pairs, rooms = int(self.shards["pairs"]["first"][-1]), int(self.shards["rooms"]["first"][-1])
        labelled = self.labelled if rooms else self.batch
        wanted = [("pairs", int(number)) for number in rng.integers(pairs, size=labelled)]
        wanted += (
            [("rooms", int(number)) for number in rng.integers(rooms, size=self.batch - labelled)] if rooms else []
        )
        rgb, maps4, maps5, log_depth, guess, measured = map(
            np.stack, zip(*(self.view(*one) for one in wanted), strict=True)
        )
        rgb = torch.from_numpy(rgb).permute(0, 3, 1, 2).float() / 255
        colour = torch.from_numpy(rng.uniform(0.8, 1.2, (self.batch, 3, 1, 1)).astype(np.float32))
        gamma = torch.from_numpy(rng.uniform(0.8, 1.25, (self.batch, 1, 1, 1)).astype(np.float32))
        rgb = (rgb * colour).clamp(0, 1) ** gamma
        tensors = [
            rgb,
            *(torch.from_numpy(maps).float() * INT8_STEP for maps in (maps4, maps5)),
            torch.from_numpy(log_depth).float(),
            torch.from_numpy(guess).float(),
        ]
        if rng.random() < 0.5:
            tensors = [tensor.flip(-1) for tensor in tensors]
        return [*tensors, torch.from_numpy(measured)]

    def batches(self, seed: int, first: int, last: int) -> Iterator[list[torch.Tensor]]:
        """The batches of these steps, one drawn ahead of the consumer."""
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(self.draw, seed, first)
            for step in range(first, last):
                drawn = ahead.result()
                if step % 100 == 0:
                    self.refresh()
                ahead = pool.submit(self.draw, seed, step + 1)
                yield drawn


def depth_losses(
    predicted: torch.Tensor, log_depth: torch.Tensor, guess: torch.Tensor, measured: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(L1 + scale-invariant of true depth, mean square from the teacher's guess), each a mean over the batch. The
    guess counts with its scale: the student is to see in a picture what the teacher sees, whatever its camera was."""
    target = log_depth.flatten(1)
    valid = torch.isfinite(target)
    error = torch.where(valid, predicted - target.nan_to_num(), 0)
    count = valid.sum(1).clamp(min=1)
    square, mean = (error**2).sum(1) / count, error.sum(1) / count
    true = error.abs().sum(1) / count + square - 0.5 * mean**2
    return (true * measured).mean(), functional.mse_loss(predicted, guess.flatten(1))


def load_convolutions(student: Student, path: Path, rgb: torch.Tensor) -> None:
    """Start from convolutions that were folded for RGB in [0, 1] : batch normalisation begins as the identity
    on these pictures."""
    from src.nets import checkpoint

    arrays = checkpoint.load(path).arrays
    x = (rgb - 0.45) / 0.25
    with torch.no_grad():
        for index, (conv, norm) in enumerate(zip(student.convs, student.norms, strict=True)):
            weight, bias = (
                torch.from_numpy(arrays[f"conv{index + 1}.{part}"].astype(np.float32)) for part in ("weight", "bias")
            )
            if index == 0:  # RGB = 0.25 x + 0.45
                bias = bias + 0.45 * weight.sum((1, 2, 3))
                weight = weight * 0.25
            conv.weight.copy_(weight)
            conv.bias.copy_(bias)
            x = conv(x)
            norm.running_mean.copy_(x.mean((0, 2, 3)))
            norm.running_var.copy_(x.var((0, 2, 3)))
            norm.weight.copy_((norm.running_var + norm.eps).sqrt())
            norm.bias.copy_(norm.running_mean)
            x = functional.relu(x)
            if index < 2:
                x = functional.max_pool2d(x, 2)


def save(path: Path, **state: object) -> None:
    unfinished = path.with_suffix(".unfinished")
    torch.save(state, unfinished)
    os.replace(unfinished, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("views", type=Path)
    parser.add_argument("state", type=Path)
    parser.add_argument("nyu", type=Path)
    parser.add_argument("--images", type=int, default=200_000, help="image-steps until the cosine schedule ends")
    parser.add_argument(
        "--start",
        type=Path,
        help="convolutions (.ckpt, as solve.py writes them) or the averaged weights of a state (.pt)",
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--labelled_share", type=float, default=0.5)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--depth_rate", type=float, default=1e-4, help="of the depth head")
    parser.add_argument("--warmup", type=int, default=100, help="steps")
    parser.add_argument("--weight_decay", type=float, default=0.02)
    parser.add_argument("--map_weight", type=float, default=1.0)
    parser.add_argument("--depth_weight", type=float, default=1.0)
    parser.add_argument("--guess_weight", type=float, default=4.0, help="of the depth that the teacher's maps tell")
    parser.add_argument("--save_minutes", type=float, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)

    views = Views(options.views, options.labelled_share, options.batch)
    views.refresh()
    _, depth_m, test_rgb, test_depth_m = load_pairs(options.nyu)
    test = torch.from_numpy(test_rgb).permute(0, 3, 1, 2).float() / 255
    student = Student().to(memory_format=torch.channels_last)
    measured = depth_m.reshape(len(depth_m), -1)
    whole = np.log(np.clip(measured[(measured > 0).all(1)], 0.1, 10))
    mean, basis = principal_components(
        np.concatenate([whole, whole.reshape(-1, 55, 74)[:, :, ::-1].reshape(len(whole), -1)])
    )
    student.depth_mean.copy_(torch.from_numpy(mean))
    student.depth_basis.copy_(torch.from_numpy(basis))
    if options.start and options.start.suffix == ".ckpt":
        load_convolutions(student, options.start, torch.cat([views.draw(options.seed, step)[0] for step in range(4)]))
    elif options.start:
        student.load_state_dict(torch.load(options.start, weights_only=True)["average"])
    depth = [parameter for name, parameter in student.named_parameters() if name.startswith("depth")]
    convolutions = [parameter for name, parameter in student.named_parameters() if not name.startswith("depth")]
    optimizer = torch.optim.AdamW(
        [{"params": convolutions, "rate": options.learning_rate}, {"params": depth, "rate": options.depth_rate}],
        weight_decay=options.weight_decay,
    )
    average = Student().to(memory_format=torch.channels_last)
    average.load_state_dict(student.state_dict())
    first = 0
    if options.state.exists():
        state = torch.load(options.state, weights_only=True)
        student.load_state_dict(state["student"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    last = options.images // options.batch
    precision = torch.autocast("cpu", dtype=torch.bfloat16, enabled=HAS_BFLOAT16)

    def predictions(net: Student, rgb: torch.Tensor) -> np.ndarray:
        net.eval()
        with torch.no_grad():
            return net(rgb.contiguous(memory_format=torch.channels_last)).numpy()

    def evaluate() -> str:
        plain = predictions(average, test)
        mirrored = predictions(average, test.flip(3)).reshape(-1, 55, 74)[:, :, ::-1].reshape(len(plain), -1)
        return f"{scores(plain, test_depth_m)} | {scores((plain + mirrored) / 2, test_depth_m)}"

    def save_state(step: int) -> None:
        save(
            options.state,
            student=student.state_dict(),
            average=average.state_dict(),
            optimizer=optimizer.state_dict(),
            step=step,
        )

    print(f"{views.refresh()} views, steps {first} to {last}", flush=True)
    begun = saved = time.time()
    running = torch.zeros(4)
    for step, (rgb, maps4, maps5, log_depth, guess, labelled) in enumerate(
        views.batches(options.seed, first, last), first
    ):
        share = min(1, (step + 1) / options.warmup) * 0.5 * (1 + math.cos(math.pi * step / last))
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * share
        student.train()
        with precision:
            conv4, conv5 = student.features(rgb.contiguous(memory_format=torch.channels_last))
            fine, coarse = student.fine(conv4), student.coarse(conv5)
        predicted = student.log_depth(conv5)
        losses = (
            functional.mse_loss(fine.float(), maps4),
            functional.mse_loss(coarse.float(), maps5),
            *depth_losses(predicted, log_depth, guess, labelled),
        )
        loss = (
            options.map_weight * (losses[0] + losses[1])
            + options.depth_weight * losses[2]
            + options.guess_weight * losses[3]
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay = min(1 - 1 / EMA_STEPS, (step + 1) / (step + 10))
        with torch.no_grad():
            for kept, new in zip(average.state_dict().values(), student.state_dict().values(), strict=True):
                if kept.is_floating_point():
                    kept.lerp_(new, 1 - decay)
        running = running.lerp(torch.stack(losses).detach(), max(0.02, 1 / (step - first + 1)))
        if (step + 1) % 50 == 0:
            seconds = (time.time() - begun) / (step + 1 - first) / options.batch
            print(
                f"{step + 1} maps {running[0]:.3f} {running[1]:.3f} depth {running[2]:.3f} {running[3]:.4f}"
                f" {seconds * 1e3:.1f} ms/image {evaluate() if (step + 1) % 200 == 0 else ''}",
                flush=True,
            )
        if time.time() - saved > options.save_minutes * 60:
            save_state(step + 1)
            saved = time.time()
    save_state(last)
    print("end", evaluate(), flush=True)


if __name__ == "__main__":
    main()
