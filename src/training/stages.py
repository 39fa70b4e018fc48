"""A whole run: CoarseNet's stage, then FineNet's on top of the frozen CoarseNet."""

import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import mindspore as ms
from mindspore import nn

from src.base import cli
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
from src.training.options import Options, Stage, idle
from src.training.recipe import Recipe
from src.training.run_folder import Folder, TrainingError
from src.training.stage import train_stage
from src.training.state import COARSE, DATA, check_same_options, newest_state
from src.training.step import in_precision
from src.training.tensorboard import Board, Learning
from src.training.trainer import Trainer
from src.training.validation import HeldOut, Pictures, TestPictures, Validation, split_scenes

# PaperCoarseNet's convolutions, which research/imagenet_start/ has taught what a network trained on ImageNet sees.
IMAGENET = cli.WEIGHTS / "PaperCoarseNet_imagenet.ckpt"

logger = logging.getLogger(__name__)


def train(options: Options, source: Source, device: Device, stop: StopRequest) -> None:
    """Run the stages that `options` ask for on the pairs of `options.data_url`, until `stop` says otherwise.

    All that can fail is read, built and checked before anything of the user's is touched: then `--overwrite` moves the
    earlier run aside.

    Raises:
        UserError: a folder, a file or an option that cannot be used.
        stopping.Stopped: a signal came; the state is saved.
    """
    folder = Folder(Path(options.train_url), "_rank0" if device.ranks > 1 else "")
    logger.info("training data: %s, %s form, %d pairs", options.data_url, source.form, len(source.names))
    workers = options.num_parallel_workers or cli.default_workers()
    digests, skip_bad = {DATA: source.data_digest()}, options.bad_samples == "skip"  # two stats a pair: once for both
    pictures, source = _validation_pictures(options, source, workers)
    validate = (
        Validation(pictures, options.batch_size, workers, device, source, skip_bad, folder.log_file("mean_map.json"))
        if pictures
        else None
    )
    schedule = Schedule(len(source.names), options.batch_size, options.seed, device.rank, device.ranks)
    names = ("coarse", "fine") if options.stage == "all" else (options.stage,)
    digests["pairs"] = names_digest(source.names)
    stages = [_stage(name, options, device, digests) for name in names]
    if options.lr_schedule == "cosine":
        for stage in stages:
            stage.options["steps"] = stage.last_step(schedule.steps_per_epoch)
    trainer: Trainer | None = _trainer(
        stages[0], options, folder, device, stages[0].last_step(schedule.steps_per_epoch)
    )
    with folder.locked() if device.is_first else contextlib.nullcontext():
        start = _Start(stages, folder, options) if device.is_first else None
        for stage in stages:
            trainer = trainer or _trainer(stage, options, folder, device, stage.last_step(schedule.steps_per_epoch))
            data = TrainingData(
                source,
                schedule,
                workers,
                getattr(trainer.net, "dropout_units", 0),
                getattr(trainer.net, "dropout_rate", 0),
                options.augmentation,
                skip_bad=skip_bad,
            )
            log = StageLog(folder.log_file(f"{stage.name}.csv") if device.is_first else None)
            if start:
                start.restore(stage, trainer, log)
            if device.broadcast_int(trainer.step) == 0:  # each rank, though rank 0's counts: none waits too long for it
                _set_start(stage.name, trainer.net, data, options)
            trainer.synchronise()
            if start:
                if stage is stages[0]:
                    start.begin()
                log.boards = _boards(stage, trainer.step, folder, pictures, options)
            done = trainer.step >= stage.last_step(schedule.steps_per_epoch)
            logger.info(
                "%s net: %d pairs, %d epochs of %d steps of %d, %s step %d",
                stage.name,
                len(source.names),
                stage.epochs,
                schedule.steps_per_epoch,
                options.batch_size,
                "complete at" if done else "starting at",
                trainer.step,
            )
            with contextlib.ExitStack() as boards:
                for board in log.boards:
                    boards.callback(board.close)
                train_stage(stage, trainer, data, folder, log, stop, validate)
            trainer = None


def _validation_pictures(options: Options, source: Source, workers: int) -> tuple[Pictures | None, Source]:
    """What is validated on, if anything, and what is left to train on."""
    if options.val_data:
        logger.info(
            "Best*Net.ckpt will be those that predict the Test part of %s best: what they score there is no "
            "test any more (--val_scenes 0.1 holds out training scenes for it)",
            options.val_data,
        )
        return TestPictures(options.val_data, workers), source
    if not options.val_scenes:
        return None, source
    train, held_out = split_scenes(source.names, options.val_scenes, options.seed)
    return HeldOut(source.part(held_out), workers, options.bad_samples == "skip"), source.part(train)


def _set_start(stage_name: str, net: nn.Cell, data: TrainingData, options: Options) -> None:
    """Give the net the first weights that the options ask for."""
    if stage_name == "fine" and options.fine_start == "coarse":
        net.start_as_identity()
    elif stage_name == "coarse" and options.start == "imagenet":
        convolutions = checkpoint.load(IMAGENET)
        checkpoint.assign(net, convolutions, convolutions.arrays)
        net.start_at(baselines.mean_map(data.source, data.workers, data.skip_bad))


class _Start:
    """How the run begins in its folder: anew, in place of an earlier run, or where that was stopped.

    Raises TrainingError when the folder and the options do not go together; nothing has been changed then.
    """

    def __init__(self, stages: Sequence[Stage], folder: Folder, options: Options) -> None:
        self.stages, self.folder, self.options = stages, folder, options
        remove_partial(writable_folder(folder.checkpoints))
        remove_partial(writable_folder(folder.log))
        logs, checkpoints = folder.earlier_run(stages[0].name)
        begins_anew = options.resume == "auto" and not checkpoints
        self.saved = self._saved_states() if options.resume and not begins_anew else {}
        # Logs without checkpoints may be all that is left of a run.
        moves = options.overwrite or (not self.saved and any(path.suffix == ".csv" for path in logs))
        self.replaced = logs + checkpoints if moves else []
        if checkpoints and not options.resume and not options.overwrite:
            raise TrainingError(
                f"{checkpoints[0]}: {folder.root} already holds a run of the {stages[0].name} net: "
                "--resume continues it, --overwrite moves it aside, --train_url names another folder"
            )
        pre_trained = options.pre_trained and options.pre_trained.resolve()
        if pre_trained in [path.resolve() for path in self.replaced]:
            raise TrainingError(
                f"--pre_trained {options.pre_trained} is of the run that --overwrite replaces: copy "
                "it to another folder first, or name another folder with --train_url"
            )

    def _saved_states(self) -> dict[str, checkpoint.Checkpoint | None]:
        saved = {stage.name: newest_state(stage.name, self.folder) for stage in self.stages}
        for stage in self.stages:
            if state := saved[stage.name]:
                check_same_options(stage, state, self.options.allow_changed_data)
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
            check_same_options(stage, saved, self.options.allow_changed_data)  # its CoarseNet is known by now
            trainer.restore(saved)
            log.resume(saved)
            logger.info("resuming from %s", saved.path)

    def begin(self) -> None:
        """From here on the folder is this run's: what it replaces is moved aside. The logs go first: as long as a
        checkpoint of the earlier run is there, a run that was killed meanwhile begins nothing anew unasked."""
        if self.replaced:
            self.folder.move_aside(self.replaced)
        settings = {
            name: str(value) if isinstance(value, Path) else value for name, value in vars(self.options).items()
        }
        write_text(
            self.folder.log_file("options.json"), json.dumps({**settings, "mindspore": ms.__version__}, indent=2) + "\n"
        )


def _boards(
    stage: Stage, step: int, folder: Folder, pictures: Pictures | None, options: Options
) -> list[Board | Learning]:
    boards: list[Board | Learning] = []
    if options.tensorboard:
        boards.append(Board(folder.log_file("tensorboard"), stage.name, step, pictures))
    if options.val_panels and pictures:
        boards.append(Learning(folder.log_file(f"{stage.name}_panels.png"), step, pictures))
    return boards


def _stage(name: str, options: Options, device: Device, digests: Mapping[str, str]) -> Stage:
    learning_rate = getattr(options, f"learning_rate_{name}") * (device.ranks if options.scale_lr else 1)
    decisive = {
        "batch_size": options.batch_size,
        "ranks": device.ranks,
        "learning_rate": learning_rate,
        "loss": options.loss,
        "amp_level": amp_level(options.amp_level, device.target),
        "seed": options.seed,
        **digests,
        "coarse_net": options.coarse_net,
        **_recipe(options).changes(),
    }
    # What is not the reference's; older states have no entry for it.
    decisive |= {
        name: value
        for name, value in (
            ("augmentation", options.augmentation),
            ("start", options.start),
            ("fine_start", options.fine_start),
            ("dropout", options.dropout),
            ("val_scenes", options.val_scenes),
        )
        if value not in ("reference", "random", None, 0)
    }
    without_effect = idle(replace(options, stage=name))
    return Stage(
        name,
        getattr(options, f"epochs_{name}"),
        options.save_checkpoint_steps,
        options.keep_checkpoint_max,
        options.max_steps,
        {name: value for name, value in decisive.items() if name not in without_effect},
        without_effect,
    )


def _recipe(options: Options) -> Recipe:
    return Recipe(
        options.lr_schedule,
        options.warmup_steps,
        options.dense_lr_scale,
        options.weight_decay,
        options.clip_norm,
        options.ema,
    )


def _trainer(stage: Stage, options: Options, folder: Folder, device: Device, last_step: int) -> Trainer:
    ms.set_seed(options.seed)
    build = partial(
        Trainer,
        loss=options.loss,
        learning_rate=stage.options["learning_rate"],
        amp_level=stage.options["amp_level"],
        device=device,
        recipe=_recipe(options),
        last_step=last_step,
    )
    if stage.name == "coarse":
        net = COARSE_NETS[options.coarse_net]()
        if options.dropout is not None:
            net.dropout_rate = options.dropout
        if options.pre_trained and device.is_first:  # the other ranks get rank 0's weights
            checkpoint.assign(net, checkpoint.load(options.pre_trained))
        return build(net)
    path = options.pre_trained if options.stage == "fine" and options.pre_trained else folder.final("coarse")
    coarse = _frozen_coarse(path, device)
    stage.options[COARSE] = checkpoint.digest(coarse)
    logger.info("FineNet is trained on %s of %s", type(coarse).__name__, path)
    coarse = in_precision(coarse, stage.options["amp_level"])
    ms.set_seed(options.seed)
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
