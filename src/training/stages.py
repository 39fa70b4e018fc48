"""A whole run: CoarseNet's stage, then FineNet's on top of the frozen CoarseNet."""

import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import mindspore as ms
from mindspore import nn

from src.base.cli import WEIGHTS
from src.base.files import StrPath, remove_partial, writable_folder, write_text
from src.base.stopping import StopRequest
from src.data.listing import names_digest
from src.data.plain import Source
from src.data.sampling import Schedule
from src.data_loader import TrainingData
from src.net import COARSE_NETS, FineNet
from src.nets import checkpoint
from src.nets.device import Device, amp_level
from src.scoring import baselines
from src.training.log import StageLog
from src.training.options import DataOptions, NetOptions, Options, RecipeOptions, SavingOptions, Stage, StartOptions
from src.training.run_folder import Folder, TrainingError
from src.training.stage import train_stage
from src.training.state import COARSE, DATA, check_same_options, newest_state
from src.training.step import in_precision
from src.training.tensorboard import Board, Learning
from src.training.trainer import Trainer
from src.training.validation import HeldOut, Pictures, TestPictures, Validation, split_scenes

# PaperCoarseNet's convolutions, which research/imagenet_start/ has taught what a network trained on ImageNet sees.
IMAGENET = WEIGHTS / "PaperCoarseNet_imagenet.ckpt"

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
    pictures, source = _validation_pictures(data, recipe.seed, source)
    digests["pairs"] = names_digest(source.names)
    validate = (
        Validation(
            pictures, recipe.batch_size, data.workers, device, source, data.skip_bad, folder.log_file("mean_map.json")
        )
        if pictures
        else None
    )
    schedule = Schedule(len(source.names), recipe.batch_size, recipe.seed, device.rank, device.ranks)
    level = amp_level(options.net.amp_level, device.target)
    stages = [
        options.stage(name, device.ranks, level, schedule.steps_per_epoch, digests) for name in options.start.stages
    ]
    trainer: Trainer | None = _trainer(stages[0], options.net, recipe, options.start, folder, device)
    with folder.locked() if device.is_first else contextlib.nullcontext():
        start = _Start(stages, folder, saving, options.start.pre_trained) if device.is_first else None
        for stage in stages:
            trainer = trainer or _trainer(stage, options.net, recipe, options.start, folder, device)
            batches = TrainingData(
                source,
                schedule,
                data.workers,
                getattr(trainer.net, "dropout_units", 0),
                getattr(trainer.net, "dropout_rate", 0),
                data.augmentation,
                data.skip_bad,
            )
            log = StageLog(folder.log_file(f"{stage.name}.csv") if device.is_first else None)
            if start:
                start.restore(stage, trainer, log)
            if device.broadcast_int(trainer.step) == 0:  # on all ranks at once, so that none waits too long
                _set_first_weights(stage.name, trainer.net, batches, options.start)
            trainer.synchronise()
            if start:
                if stage is stages[0]:
                    start.begin(options.flat())
                log.boards = _boards(stage, trainer.step, folder, pictures, saving)
            logger.info(
                "%s net: %d pairs, %d epochs of %d steps of %d, %s step %d",
                stage.name,
                len(source.names),
                stage.epochs,
                schedule.steps_per_epoch,
                recipe.batch_size,
                "complete at" if trainer.step >= stage.last_step else "starting at",
                trainer.step,
            )
            with contextlib.ExitStack() as boards:
                for board in log.boards:
                    boards.callback(board.close)
                train_stage(stage, trainer, batches, folder, log, stop, validate)
            trainer = None


def _validation_pictures(data: DataOptions, seed: int, source: Source) -> tuple[Pictures | None, Source]:
    """Return the pictures to validate on, or None, and the pairs that are left to train on."""
    if data.val_data:
        logger.info(
            "Best*Net.ckpt will be those that predict the Test part of %s best: what they score there is no "
            "test any more (--val_scenes 0.1 holds out training scenes for it)",
            data.val_data,
        )
        return TestPictures(data.val_data, data.workers), source
    if not data.val_scenes:
        return None, source
    train, held_out = split_scenes(source.names, data.val_scenes, seed)
    return HeldOut(source.part(held_out), data.workers, data.skip_bad), source.part(train)


def _set_first_weights(stage_name: str, net: nn.Cell, data: TrainingData, start: StartOptions) -> None:
    """Set the first weights that --start and --fine_start ask for."""
    if stage_name == "fine" and start.fine_start == "coarse":
        net.start_as_identity()
    elif stage_name == "coarse" and start.start == "imagenet":
        convolutions = checkpoint.load(IMAGENET)
        checkpoint.assign(net, convolutions, convolutions.arrays)
        net.start_at(baselines.mean_map(data.source, data.workers, data.skip_bad))


class _Start:
    """How the run begins in its folder: anew, in place of an earlier run, or where that was stopped.

    Raises TrainingError when the folder and the options do not go together; nothing has been changed then.
    """

    def __init__(
        self, stages: Sequence[Stage], folder: Folder, saving: SavingOptions, pre_trained: Path | None
    ) -> None:
        self.stages, self.folder, self.saving = stages, folder, saving
        remove_partial(writable_folder(folder.checkpoints))
        remove_partial(writable_folder(folder.log))
        logs, checkpoints = folder.earlier_run(stages[0].name)
        begins_anew = saving.resume == "auto" and not checkpoints
        self.saved = self._saved_states() if saving.resume and not begins_anew else {}
        # Logs without checkpoints may be all that is left of a run.
        moves = saving.overwrite or (not self.saved and any(path.suffix == ".csv" for path in logs))
        self.replaced = logs + checkpoints if moves else []
        if checkpoints and not saving.resume and not saving.overwrite:
            raise TrainingError(
                f"{checkpoints[0]}: {folder.root} already holds a run of the {stages[0].name} net: "
                "--resume continues it, --overwrite moves it aside, --train_url names another folder"
            )
        if pre_trained and pre_trained.resolve() in [path.resolve() for path in self.replaced]:
            raise TrainingError(
                f"--pre_trained {pre_trained} is of the run that --overwrite replaces: copy "
                "it to another folder first, or name another folder with --train_url"
            )

    def _saved_states(self) -> dict[str, checkpoint.Checkpoint | None]:
        saved = {stage.name: newest_state(stage.name, self.folder) for stage in self.stages}
        for stage in self.stages:
            if state := saved[stage.name]:
                check_same_options(stage, state, self.saving.allow_changed_data)
        missing = [name for name in saved if not saved[name]]
        weights = [
            path.name for name in missing for path in (self.folder.final(name), self.folder.best(name)) if path.exists()
        ]
        if weights or len(missing) == len(saved):
            moved = [path.name for path in sorted(self.folder.root.glob("replaced-*"))]
            found = [f"{', '.join(weights)}, which are weights"] * bool(weights)
            found += [f"{', '.join(moved)}, which --overwrite moved aside"] * bool(moved)
            raise TrainingError(
                f"{self.folder.state(missing[0], '<step>')}: --resume finds no state to go on from "
                f"(found: {'; '.join(found) or 'no run'}): "
                + (
                    "--overwrite in its place begins anew, with --pre_trained from weights"
                    if weights
                    else "leave --resume out to begin"
                )
            )
        return saved

    def restore(self, stage: Stage, trainer: Trainer, log: StageLog) -> None:
        """Take over the stage's newest state, if the run is a resumed one."""
        if saved := self.saved.get(stage.name):
            check_same_options(stage, saved, self.saving.allow_changed_data)  # its CoarseNet is known by now
            trainer.restore(saved)
            log.resume(saved)
            logger.info("resuming from %s", saved.path)

    def begin(self, options: Mapping[str, Any]) -> None:
        """From here on the folder is this run's: what it replaces is moved aside. The logs go first: as long as a
        checkpoint of the earlier run is there, a run that was killed meanwhile begins nothing anew unasked."""
        if self.replaced:
            self.folder.move_aside(self.replaced)
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
        write_text(
            self.folder.log_file("options.json"), json.dumps({**settings, "mindspore": ms.__version__}, indent=2) + "\n"
        )


def _boards(
    stage: Stage, step: int, folder: Folder, pictures: Pictures | None, saving: SavingOptions
) -> list[Board | Learning]:
    boards: list[Board | Learning] = []
    if saving.tensorboard:
        boards.append(Board(folder.log_file("tensorboard"), stage.name, step, pictures))
    if saving.val_panels and pictures:
        boards.append(Learning(folder.log_file(f"{stage.name}_panels.png"), step, pictures))
    return boards


def _trainer(
    stage: Stage, net: NetOptions, recipe: RecipeOptions, start: StartOptions, folder: Folder, device: Device
) -> Trainer:
    ms.set_seed(recipe.seed)
    build = partial(
        Trainer,
        loss=recipe.loss,
        learning_rate=stage.decisive["learning_rate"],
        amp_level=stage.decisive["amp_level"],
        device=device,
        recipe=recipe,
        last_step=stage.last_step,
    )
    if stage.name == "coarse":
        coarse_net = COARSE_NETS[net.coarse_net]()
        if net.dropout is not None:
            coarse_net.dropout_rate = net.dropout
        if start.pre_trained and device.is_first:  # the other ranks get rank 0's weights
            checkpoint.assign(coarse_net, checkpoint.load(start.pre_trained))
        return build(coarse_net)
    path = start.pre_trained if start.stage == "fine" and start.pre_trained else folder.final("coarse")
    coarse = _frozen_coarse(path, device)
    stage.decisive[COARSE] = checkpoint.digest(coarse)
    logger.info("FineNet is trained on %s of %s", type(coarse).__name__, path)
    coarse = in_precision(coarse, stage.decisive["amp_level"])
    ms.set_seed(recipe.seed)
    return build(FineNet(), inputs=lambda rgb: (rgb, coarse(rgb)))


def _frozen_coarse(path: StrPath, device: Device) -> nn.Cell:
    """Rank 0's coarse net of `path` on every rank: the file need not be on the other servers."""
    kinds: list[type[nn.Cell]] = list(COARSE_NETS.values())
    loaded = checkpoint.load_coarse(path) if device.is_first else None
    kind = kinds[device.broadcast_int(kinds.index(type(loaded)) if loaded is not None else 0)]
    coarse = kind() if loaded is None else loaded
    coarse.set_train(False)
    device.broadcast(coarse.get_parameters())
    return coarse
