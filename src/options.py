"""What a training is asked to do."""

from dataclasses import dataclass
from pathlib import Path


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
    ridge: float | None
    fine_start: str
    mean_depth_start: bool
    bad_samples: str
    pre_trained: Path | None
    save_checkpoint_steps: int | None
    keep_checkpoint_max: int
    val_data: Path | None
    tensorboard: bool
    val_panels: bool
    scale_lr: bool
    max_steps: int | None
    resume: bool
    overwrite: bool
    allow_changed_data: bool
