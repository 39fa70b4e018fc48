"""What a training is asked to do."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Options:
    """train.py's arguments, which say what each is and check them."""

    data_url: Path
    train_url: Path
    device_target: str
    device_id: int
    stage: str
    epochs_coarse: int
    epochs_fine: int
    batch_size: int
    learning_rate_coarse: float
    learning_rate_fine: float
    coarse_net: str
    loss: str
    amp_level: str
    jit_level: str
    seed: int
    num_parallel_workers: int | None
    dropout: float | None
    augmentation: str
    lr_schedule: str
    warmup_steps: int
    dense_lr_scale: float
    weight_decay: float
    clip_norm: float
    ema: float
    start: str
    fine_start: str
    bad_samples: str
    pre_trained: Path | None
    save_checkpoint_steps: int | None
    keep_checkpoint_max: int
    val_data: Path | None
    val_scenes: float
    tensorboard: bool
    val_panels: bool
    scale_lr: bool
    max_steps: int | None
    resume: str | None  # "always", "auto"
    overwrite: bool
    allow_changed_data: bool


def _has_coarse(options: Options) -> bool:
    return options.stage != "fine"


# What an option needs to have an effect, in words and as a function of the Options.
NEEDS: dict[str, tuple[str, Callable[[Options], bool]]] = {
    **dict.fromkeys(
        ("epochs_coarse", "learning_rate_coarse", "coarse_net", "dense_lr_scale"),
        ("--stage all or coarse", _has_coarse),
    ),
    **dict.fromkeys(
        ("epochs_fine", "learning_rate_fine", "fine_start"),
        ("--stage all or fine", lambda options: options.stage != "coarse"),
    ),
    "dropout": (
        "--coarse_net paper and --stage all or coarse",
        lambda options: options.coarse_net == "paper" and _has_coarse(options),
    ),
    "start": (
        "--coarse_net paper and --stage all or coarse, without --pre_trained",
        lambda options: options.coarse_net == "paper" and _has_coarse(options) and not options.pre_trained,
    ),
    "val_panels": ("--val_data or --val_scenes", lambda options: bool(options.val_data or options.val_scenes)),
    "allow_changed_data": ("--resume", lambda options: bool(options.resume)),
}


def idle(options: Options) -> frozenset[str]:
    """The names of the options that have no effect beside the others."""
    return frozenset(name for name, (_, acts) in NEEDS.items() if not acts(options))


@dataclass(frozen=True)
class Stage:
    """The settings of one stage; `options` are those that must not change in a resumed run, `idle` the names of those
    that have no effect in it: they may have any value in a saved state."""

    name: str  # "coarse" or "fine"
    epochs: int
    save_checkpoint_steps: int | None
    keep_checkpoint_max: int
    max_steps: int | None
    options: dict[str, Any]
    idle: frozenset[str] = frozenset()

    def last_step(self, steps_per_epoch: int) -> int:
        """The number of steps after which the stage is done."""
        return min(self.epochs * steps_per_epoch, self.max_steps or sys.maxsize)
