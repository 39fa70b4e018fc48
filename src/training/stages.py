"""A whole run: trains CoarseNet, then FineNet on top of the frozen CoarseNet."""

import contextlib
import logging
from functools import partial

from mindspore import nn

from src.base.stopping import StopRequest
from src.data.listing import names_digest
from src.data.plain import Source
from src.data.sampling import Schedule
from src.data_loader import TrainingData
from src.nets.device import Device, amp_level
from src.training.build import build_trainer, set_first_weights
from src.training.log import StageLog
from src.training.options import DataOptions, Options, SavingOptions, Stage
from src.training.run_folder import Folder
from src.training.stage import StageLoop
from src.training.start import RunStart
from src.training.state import DATA
from src.training.tensorboard import Board, PanelsFile
from src.training.trainer import Trainer
from src.training.validation import prepare_validation

logger = logging.getLogger(__name__)


def train(options: Options, source: Source, device: Device, stop: StopRequest) -> None:
    """Train the stages that `options` ask for, until the end or until `stop` has received a signal.

    Everything that can fail is read, built and checked before files of an earlier run are touched.

    Args:
        options: the options of train.py.
        source: the training pairs of `options.data.data_url`.
        device: the device of this process, and its rank.
        stop: requests to stop.

    Raises:
        UserError: a folder, a file or an option cannot be used.
        stopping.Stopped: a signal came; the state is saved.
    """
    data, recipe, saving = options.data, options.recipe, options.saving
    folder = Folder(saving.train_url, "_rank0" if device.ranks > 1 else "")
    logger.info("training data: %s, %s form, %d pairs", data.data_url, source.form, len(source.names))
    digests = {DATA: source.data_digest()}  # of all pairs, those that are held out included
    validation, source = prepare_validation(data, recipe, source, device, folder.log_file("mean_map.json"))
    digests["pairs"] = names_digest(source.names)
    schedule = Schedule(len(source.names), recipe.batch_size, recipe.seed, device.rank, device.ranks)
    level = amp_level(options.net.amp_level, device.target)
    stages = [
        options.stage(name, device.ranks, level, schedule.steps_per_epoch, digests) for name in options.start.stages
    ]
    build = partial(build_trainer, net=options.net, recipe=recipe, start=options.start, folder=folder, device=device)
    trainer: Trainer | None = build(stages[0])
    with folder.locked() if device.is_first else contextlib.nullcontext():
        start = RunStart(stages, folder, saving, options.start.pre_trained) if device.is_first else None
        for stage in stages:
            trainer = trainer or build(stage)
            batches = _training_data(source, schedule, data, trainer.net)
            log = StageLog(folder.log_file(f"{stage.name}.csv") if device.is_first else None)
            if start:
                start.restore(stage, trainer, log)
            if device.broadcast_int(trainer.step) == 0:  # on all ranks at once, so that none waits too long
                set_first_weights(stage.name, trainer.net, batches, options.start)
            trainer.synchronise()
            if start and stage is stages[0]:
                start.begin(options.flat())
            if start:
                _open_views(log, stage, trainer.step, folder, saving)
            with contextlib.closing(log):
                StageLoop(stage, trainer, batches, folder, log, stop, validation).run()
            trainer = None  # frees its memory before the next one is built


def _training_data(source: Source, schedule: Schedule, data: DataOptions, net: nn.Cell) -> TrainingData:
    return TrainingData(
        source,
        schedule,
        data.workers,
        getattr(net, "dropout_units", 0),
        getattr(net, "dropout_rate", 0),
        data.augmentation,
        data.skip_bad,
    )


def _open_views(log: StageLog, stage: Stage, step: int, folder: Folder, saving: SavingOptions) -> None:
    """Have the log show itself in TensorBoard and in a panels file, as --tensorboard and --val_panels ask."""
    if saving.tensorboard:
        log.board = Board(folder.log_file("tensorboard"), stage.name, step)
        log.panels.append(log.board)
    if saving.val_panels:
        log.panels.append(PanelsFile(folder.log_file(f"{stage.name}_panels.png"), step))
