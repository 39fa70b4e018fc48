"""The options of train.py in the groups of its --help, which says what each option means; and the settings of a stage
that follow from them."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

from src.base import cli


@dataclass(frozen=True)
class DataOptions:
    """What the nets train on, and what validates them."""

    data_url: Path
    augmentation: str
    bad_samples: str
    num_parallel_workers: int | None
    val_data: Path | None
    val_scenes: float

    @property
    def skip_bad(self) -> bool:
        """Whether an unreadable sample is replaced instead of stopping the training."""
        return self.bad_samples == "skip"

    @property
    def workers(self) -> int:
        """Number of decoding threads."""
        return self.num_parallel_workers or cli.default_workers()


@dataclass(frozen=True)
class NetOptions:
    """The coarse net, its precision, and how MindSpore compiles it."""

    coarse_net: str
    dropout: float | None
    amp_level: str
    jit_level: str


@dataclass(frozen=True)
class Recipe:
    """What an update does besides Adam. The defaults are the reference's: Adam at one constant learning rate.

    Args:
        lr_schedule: "constant", or "cosine" (Loshchilov and Hutter, 2017): to 0 at the last step.
        warmup_steps: steps over which the learning rate grows to its value.
        dense_lr_scale: the dense layers' learning rate as a share of the others'. One step moves an output of a dense
            layer by up to the rate times the sum of thousands of inputs.
        weight_decay: decoupled, as in AdamW (Loshchilov and Hutter, 2019), of all weights but the biases. A layer that
            starts as the identity decays towards the identity.
        clip_norm: maximum global gradient norm; 0 disables clipping.
        ema: share of the averaged weights that stays at each step; 0 disables averaging.
    """

    lr_schedule: str = "constant"
    warmup_steps: int = 0
    dense_lr_scale: float = 1.0
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    ema: float = 0.0

    def changes(self) -> dict[str, Any]:
        """Return the settings that differ from the reference's, by their names in saved states."""
        settings = {field: getattr(self, field.name) for field in fields(Recipe)}
        return {
            "schedule" if field.name == "lr_schedule" else field.name: value
            for field, value in settings.items()
            if value != field.default
        }

    def lr_scale(self, parameter_name: str) -> float:
        """Return the factor of a parameter's learning rate."""
        return self.dense_lr_scale if parameter_name.startswith("fc") else 1.0

    @property
    def is_constant(self) -> bool:
        """Whether all weights have one learning rate from the first step to the last."""
        return self.lr_schedule == "constant" and not self.warmup_steps and self.dense_lr_scale == 1


@dataclass(frozen=True, kw_only=True)
class RecipeOptions(Recipe):
    """How long and how the nets learn."""

    epochs_coarse: int
    epochs_fine: int
    max_steps: int | None
    batch_size: int
    learning_rate_coarse: float
    learning_rate_fine: float
    scale_lr: bool
    loss: str
    seed: int


@dataclass(frozen=True)
class StartOptions:
    """The stages to train, and the first weights."""

    stage: str
    start: str
    fine_start: str
    pre_trained: Path | None

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages to train, in order."""
        return ("coarse", "fine") if self.stage == "all" else (self.stage,)


@dataclass(frozen=True)
class SavingOptions:
    """The output folder: what is written there, and what happens to an earlier run."""

    train_url: Path
    save_checkpoint_steps: int | None
    keep_checkpoint_max: int
    resume: str | None  # "always", "auto"
    overwrite: bool
    allow_changed_data: bool
    tensorboard: bool
    val_panels: bool


@dataclass(frozen=True)
class RunningOptions:
    """The device."""

    device_target: str
    device_id: int


@dataclass(frozen=True)
class Stage:
    """The settings of one stage.

    Args:
        name: "coarse" or "fine".
        epochs, last_step: its length; the last epoch may be cut short.
        save_checkpoint_steps: steps between resumable checkpoints, besides those at the end of each epoch.
        keep_checkpoint_max: number of resumable checkpoints kept.
        decisive: what decides the result, by name. A resumed run must have the same.
        idle: names of the options that have no effect in this stage. They may have any value in a saved state.
    """

    name: str
    epochs: int
    last_step: int
    save_checkpoint_steps: int | None
    keep_checkpoint_max: int
    decisive: dict[str, Any]
    idle: frozenset[str] = frozenset()


# Decisive options that are in a saved state only if they differ from these.
_REFERENCE = {"augmentation": "reference", "start": "random", "fine_start": "random", "dropout": None, "val_scenes": 0}


@dataclass(frozen=True)
class Options:
    """All options of train.py."""

    data: DataOptions
    net: NetOptions
    recipe: RecipeOptions
    start: StartOptions
    saving: SavingOptions
    running: RunningOptions

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Options":
        """Sort the values of all options, by name, into the groups."""
        groups = get_type_hints(cls).items()
        return cls(
            **{name: group(**{field.name: values[field.name] for field in fields(group)}) for name, group in groups}
        )

    def flat(self) -> dict[str, Any]:
        """Return the values of all options by name."""
        return {name: value for group in vars(self).values() for name, value in vars(group).items()}

    def stage(self, name: str, ranks: int, amp_level: str, steps_per_epoch: int, digests: Mapping[str, str]) -> Stage:
        """Return the settings of a stage.

        Args:
            name: "coarse" or "fine".
            ranks: number of processes.
            amp_level: "O0" to "O3": what --amp_level means on this device.
            steps_per_epoch: number of batches in an epoch.
            digests: digests of the training data, by their names in saved states.
        """
        values = self.flat()
        epochs, without_effect = values[f"epochs_{name}"], idle({**values, "stage": name})
        last_step = min(epochs * steps_per_epoch, self.recipe.max_steps or sys.maxsize)
        decisive = {
            "batch_size": self.recipe.batch_size,
            "ranks": ranks,
            "learning_rate": values[f"learning_rate_{name}"] * (ranks if self.recipe.scale_lr else 1),
            "loss": self.recipe.loss,
            "amp_level": amp_level,
            "seed": self.recipe.seed,
            **digests,
            "coarse_net": self.net.coarse_net,
            **self.recipe.changes(),
            **{option: values[option] for option, reference in _REFERENCE.items() if values[option] != reference},
            **({"steps": last_step} if self.recipe.lr_schedule == "cosine" else {}),
        }
        return Stage(
            name,
            epochs,
            last_step,
            self.saving.save_checkpoint_steps,
            self.saving.keep_checkpoint_max,
            {option: value for option, value in decisive.items() if option not in without_effect},
            without_effect,
        )


def _has_coarse(options: Any) -> bool:
    return options.stage != "fine"


# What an option needs to have an effect: in words, and as a function of all options as attributes.
NEEDS: cli.Needs = {
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


def idle(values: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of the options that have no effect beside the values of the others."""
    options = SimpleNamespace(**values)
    return frozenset(name for name, (_, acts) in NEEDS.items() if not acts(options))
