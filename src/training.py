"""One training stage: the step, the loop, the log, the checkpoints, and the way back in after a stop."""

import atexit
import contextlib
import csv
import functools
import itertools
import logging
import math
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import mindspore as ms
from mindspore import amp, nn, ops

from src import checkpoint, cli, metrics, visual
from src.arrays import Array, Floats, Pixels
from src.data_loader import TrainingData
from src.device import Device
from src.errors import CheckFailed, UserError
from src.files import StrPath, discarded_at_exit, replacing, writable_folder
from src.loss import LOSSES
from src.recipe import Average, Decay, Rate, Recipe, adam
from src.stopping import SIGNALS, Stopped, StopRequest
from src.tensorboard import Board, Learning
from src.validation import mean_map_scores

Validate: TypeAlias = Callable[[Callable[[Floats], Floats]], dict[str, float]]

LOG_INTERVAL = 10
LOSS_SCALE, LOSS_SCALE_FACTOR, LOSS_SCALE_WINDOW = 2.0**16, 2, 1000
CSV_COLUMNS = ("epoch", "step", "loss", "step_seconds", "mean_loss", "images_per_s", "overflows", *metrics.METRICS)

logger = logging.getLogger(__name__)

# Of a stage's options: the digest of the training files' sizes and times, and of the CoarseNet that FineNet refines.
DATA, COARSE = "data", checkpoint.COARSE_SHA256

_ALONE, _REFERENCE = Device("CPU"), Recipe()


class TrainingError(UserError):
    """Training cannot go on, or cannot begin as asked."""


class TrainStep(nn.Cell):
    """One forward, one backward, one update.

    With a loss scaler, gradients that are not finite on any rank leave the weights alone on every rank and lower the
    scale. Returns float32 (4 + len(votes)): this rank's loss; how many updates came before; and summed over the ranks,
    in one reduction: the loss, the overflows, and the `votes`.
    """

    def __init__(self, net: nn.Cell, loss: nn.Cell, optimizer: nn.Optimizer,
                 scaler: amp.DynamicLossScaler | None = None, ranks: int = 1, decay: Decay | None = None,
                 clip_norm: float = 0.0) -> None:
        super().__init__(auto_prefix=False)
        self.net, self.loss, self.optimizer, self.scaler, self.ranks = net, loss, optimizer, scaler, ranks
        self.decay, self.clip_norm = decay, clip_norm
        self.average: Any = None
        self.sum: Any = None
        if ranks > 1:
            self.average = nn.DistributedGradReducer(optimizer.parameters, mean=True, degree=ranks)
            self.sum = ops.AllReduce()
        self.concat = ops.Concat()
        self.gradient = ms.value_and_grad(self.scaled_loss, None, optimizer.parameters, has_aux=True)

    def scaled_loss(self, depth_m: ms.Tensor, *inputs: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
        loss = self.loss(self.net(*inputs).astype(ms.float32), depth_m)
        if self.scaler is None:
            return loss, loss
        return self.scaler.scale(loss), loss

    @ms.jit
    def construct(self, votes: ms.Tensor, depth_m: ms.Tensor, *inputs: ms.Tensor) -> ms.Tensor:
        updates = self.optimizer.global_step.astype(ms.float32)
        (_, loss), gradients = self.gradient(depth_m, *inputs)
        if self.ranks > 1:
            gradients = self.average(gradients)
        overflow = ms.Tensor([0.0], ms.float32)
        if self.scaler is not None:
            gradients = self.scaler.unscale(gradients)
            # On Ascend 910A this asks the chip's own register: the ranks have to agree (MindSpore 2.10, amp.py).
            overflow = 1 - amp.all_finite(gradients).astype(ms.float32).reshape((1,))
        loss = loss.reshape((1,))
        shared = self.concat((loss, overflow, votes))
        if self.ranks > 1:
            shared = self.sum(shared)
        if self.scaler is None:
            self.update(gradients)
        else:
            finite = shared[1] < 0.5
            if finite:
                self.update(gradients)
            self.scaler.adjust(finite)
        return self.concat((loss, updates, shared))

    def update(self, gradients: tuple[ms.Tensor, ...]) -> None:
        if self.clip_norm:
            gradients = ops.clip_by_global_norm(gradients, self.clip_norm)
        if self.decay is not None:
            self.decay(self.optimizer.global_step)
        self.optimizer(gradients)


class StepResult(NamedTuple):
    """What a step has to tell: its number from 1, this rank's loss and the mean over the ranks, whether the update was
    applied, the sum over the ranks of what each said of itself, and how many updates came before (an overflow makes
    none)."""

    step: int
    own_loss: float
    loss: float
    applied: bool
    votes: list[float]
    updates: int = 0


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


@dataclass
class Folder:
    """Where a run's files are: Model/Ckpt and Model/Log. A standalone and a distributed run can live in one."""

    root: Path
    suffix: str = ""  # of the files' names: "_rank0" in a distributed run
    checkpoints: Path = field(init=False)
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.checkpoints, self.log = self.root / "Ckpt", self.root / "Log"

    def final(self, stage_name: str) -> Path:
        """The stage's last weights."""
        return self.checkpoints / f"Final{stage_name.capitalize()}Net{self.suffix}.ckpt"

    def best(self, stage_name: str) -> Path:
        """The stage's weights with the lowest validation abs_rel."""
        return self.checkpoints / f"Best{stage_name.capitalize()}Net{self.suffix}.ckpt"

    def state(self, stage_name: str, step: int | str) -> Path:
        """The stage's resumable checkpoint of a step."""
        return self.checkpoints / f"{stage_name.capitalize()}Net_{step}{self.suffix}.ckpt"

    def states(self, stage_name: str) -> list[tuple[int, Path]]:
        """(step, path) of the stage's resumable checkpoints, oldest first."""
        pattern = re.compile(rf"{stage_name.capitalize()}Net_(\d+){self.suffix}\.ckpt")
        matches = [(pattern.fullmatch(path.name), path) for path in self.checkpoints.glob("*.ckpt")]
        return sorted((int(match[1]), path) for match, path in matches if match)

    def earlier_run(self, first_stage: str) -> tuple[list[Path], list[Path]]:
        """(logs, checkpoints) of the run whose place one takes that begins with this stage: FineNet's, and CoarseNet's
        unless "fine" is the first. A net's states come after its weights, CoarseNet after the FineNet that was trained
        on it: what is left when some of them are gone can be resumed."""
        stages = ("fine",) if first_stage == "fine" else ("fine", "coarse")
        logs = [self.log_file(name) for name in ("options.json", "mean_map.json", "curves.png")]
        checkpoints = []
        for name in stages:
            logs += [self.log_file(f"{name}{ending}") for ending in (".csv", "_panels.png", "_panels.npz")]
            logs.append(self.log_file("tensorboard") / name)
            checkpoints += [self.best(name), self.final(name), *(path for _, path in self.states(name))]
        return [path for path in logs if path.exists()], [path for path in checkpoints if path.exists()]

    def move_aside(self, paths: Sequence[Path]) -> None:
        """Move these files and folders of an earlier run into one new folder, under the names that they have here."""
        names = (self.root / f"replaced-{time.strftime('%Y%m%d')}-{number}" for number in itertools.count(1))
        target = next(path for path in names if not path.exists())
        for path in paths:
            moved = target / path.relative_to(self.root)
            moved.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, moved)
        logger.info("moved the earlier run to %s (%d files and folders)", target, len(paths))

    def log_file(self, name: str) -> Path:
        """`name` in the log folder, with this run's suffix: coarse.csv, curves.png, options.json."""
        path = self.log / name
        return path.with_stem(path.stem + self.suffix)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other trainings out of this folder while entered; the lock goes when the process does."""
        import fcntl

        with open(writable_folder(self.root) / ".lock", "a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                raise TrainingError(f"{self.root}: another training writes there (process {file.read().strip()}): "
                                    "wait for it, or name another folder with --train_url") from error
            except OSError as error:  # some network file systems have no locks
                logger.warning("warning: %s cannot be locked (%s): let no other training use it", self.root, error)
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            yield


class Trainer:
    """A net with its optimizer, at some step.

    Args:
        net: CoarseNet, PaperCoarseNet or FineNet.
        inputs: function of a batch's tensors after the target -> the net's inputs (FineNet's adds the coarse depth).
        loss: a key of src.loss.LOSSES.
        amp_level: "O0" is float32; any other is float16 compute with dynamic loss scaling.
        device: the Device of this process; its ranks average their gradients.
        recipe: the Recipe, for `last_step` steps.
    """

    def __init__(self, net: nn.Cell, loss: str, learning_rate: float, *, amp_level: str = "O0", device: Device = _ALONE,
                 inputs: Callable[..., tuple[ms.Tensor, ...]] = lambda *tensors: tensors, recipe: Recipe = _REFERENCE,
                 last_step: int = 0) -> None:
        self.net, self.device, self.inputs, self.step = net, device, inputs, 0
        self.parameters = {parameter.name: parameter for parameter in net.get_parameters()}
        self.rate = Rate(learning_rate, recipe, last_step)
        self.optimizer = adam(net, learning_rate, recipe, last_step)
        self.average = Average(net, recipe.ema) if recipe.ema else None
        self.scaler: Any = None
        compute = in_precision(net, amp_level)
        if amp_level != "O0":
            self.scaler = amp.DynamicLossScaler(LOSS_SCALE, LOSS_SCALE_FACTOR, LOSS_SCALE_WINDOW)
            # On Ascend 910A an overflow stays in the chip's register until it is asked for (MindSpore 2.10, amp.py).
            amp.all_finite([ms.Tensor([0.0], ms.float32)])
        self.compute = compute
        decay = Decay(net, learning_rate, recipe, last_step) if recipe.weight_decay else None
        self.train_step = TrainStep(compute, LOSSES[loss](), self.optimizer, self.scaler, device.ranks, decay,
                                    recipe.clip_norm)

    def launch(self, rgb: Pixels, depth_m: Floats, *rest: Array,
               votes: Sequence[float] = ()) -> Callable[[], StepResult]:
        """Start a step on one batch of arrays, RGB as uint8; `votes` are a few numbers to be summed over the ranks.

        Returns a function that waits for the StepResult: until it is called, the device works and the host is free.
        """
        inputs = self.inputs(_unit_range(ms.Tensor(rgb)), *map(ms.Tensor, rest))
        result = self.train_step(ms.Tensor([0, *votes], ms.float32), ms.Tensor(depth_m), *inputs)
        self.step += 1
        if self.average is not None:
            self.average.update(self.step)
        step, ranks = self.step, self.device.ranks

        def wait() -> StepResult:
            own_loss, updates, loss, overflows, _, *votes = result.asnumpy().tolist()
            return StepResult(step, own_loss, loss / ranks if ranks > 1 else own_loss, overflows < 0.5, votes,
                              int(updates))

        return wait

    def run_step(self, *arrays: Array) -> tuple[float, bool]:
        """Train on one batch of arrays, RGB as uint8; returns (this rank's loss, whether the update was applied)."""
        result = self.launch(*arrays)()
        return result.own_loss, result.applied

    def predict(self, rgb: Floats) -> Floats:
        """Log depth (N, 1, 55, 74) of RGB (N, 3, 228, 304), as the net is now."""
        return self.compute(*self.inputs(ms.Tensor(rgb))).asnumpy()

    def weights(self) -> dict[str, ms.Parameter]:
        """The Parameters that are worth keeping, by the net's names: the averaged ones, where there are any."""
        if self.average is None:
            return self.parameters
        return dict(zip((parameter.name for parameter in self.average.own), self.average.averages, strict=True))

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The net has the weights that are worth keeping while entered."""
        if self.average is None:
            yield
            return
        own = {name: parameter.asnumpy().copy() for name, parameter in self.parameters.items()}
        try:
            for name, kept in self.weights().items():
                self.parameters[name].set_data(ms.Tensor(kept.asnumpy()))
            yield
        finally:
            for name, array in own.items():
                self.parameters[name].set_data(ms.Tensor(array))

    def state(self) -> dict[str, ms.Parameter]:
        """Every Parameter that a resume needs, by name."""
        state = {**self.parameters, **{parameter.name: parameter for parameter in self.optimizer.get_parameters()}}
        if self.average is not None:
            state |= {parameter.name: parameter for parameter in self.average.averages}
        if self.scaler is not None:
            state |= {"scale_value": self.scaler.scale_value, "counter": self.scaler.counter}
        return state

    def restore(self, saved: checkpoint.Checkpoint) -> None:
        """Continue from a Checkpoint that `state` made. Raises CheckpointError when it is another net's."""
        state = self.state()
        if state.keys() != saved.arrays.keys():
            raise checkpoint.CheckpointError(f"{saved.path}: not a training state of {type(self.net).__name__}")
        for name, parameter in state.items():
            parameter.set_data(ms.Tensor(saved.arrays[name], parameter.dtype))
        self.step = saved.info["step"]

    def synchronise(self) -> None:
        """Give every rank what rank 0 has: weights, optimizer, loss scale and step."""
        self.step = self.device.broadcast_int(self.step)
        self.device.broadcast(self.state().values())


def in_precision(net: nn.Cell, amp_level: str) -> nn.Cell:
    """The net as it computes at this level: "O0" is itself.

    At O1 MindSpore writes the net's code anew, into the current folder, which is another one meanwhile.
    """
    if amp_level == "O0":
        return net
    before, paths = os.getcwd(), list(sys.path)
    os.chdir(_code_folder())
    try:
        return amp.auto_mixed_precision(net, amp_level)
    finally:
        os.chdir(before)
        sys.path[:] = paths


@functools.cache
def _code_folder() -> Path:
    """A folder until the process ends: MindSpore's compiler reads the code of a net there."""
    until_exit = contextlib.ExitStack()
    atexit.register(until_exit.close)
    return until_exit.enter_context(discarded_at_exit(Path(tempfile.mkdtemp(prefix="depthnet-"))))


@ms.jit
def _unit_range(rgb: ms.Tensor) -> ms.Tensor:
    """uint8 to float32 in [0, 1], on the device."""
    return rgb.astype(ms.float32) / 255


class StageLog:
    """The stage's CSV file (none where `path` is None), and the sums of the epoch that is running, which travel
    with the state. What goes into the file goes to the `boards` (src/tensorboard.py) as well, with the learning rate.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.boards: list[Board | Learning] = []
        self.rows: list[dict[str, Any]] = []
        self.sums = {"loss": 0.0, "steps": 0, "overflows": 0}
        self.timings: list[float] = []
        self.started = False

    def add_step(self, loss: float, seconds: float, applied: bool) -> None:
        """Count one step into the running epoch."""
        self.sums["loss"] += loss
        self.sums["steps"] += 1
        self.sums["overflows"] += not applied
        self.timings.append(seconds)

    def row(self, **values: Any) -> None:
        """Append a row to the file."""
        self.rows.append({column: values.get(column, "") for column in CSV_COLUMNS})
        if self.path and self.started:
            with open(self.path, "a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, CSV_COLUMNS).writerow(self.rows[-1])
        elif self.path:
            with replacing(self.path) as file:
                writer = csv.DictWriter(file, CSV_COLUMNS)
                writer.writeheader()
                writer.writerows(self.rows)
            self.started = True
        for board in self.boards:
            board.add(values["step"], {name: values[name] for name in values if name != "step"})

    def resume(self, saved: checkpoint.Checkpoint) -> None:
        """Take over the rows and sums of an earlier run up to its saved state."""
        rows = read_rows(self.path) if self.path else []
        self.rows = [row for row in rows if int(row["step"]) <= saved.info["step"]]
        self.sums = dict(saved.info["epoch_sums"])
        if self.rows and self.rows[-1]["mean_loss"] and int(self.rows[-1]["step"]) == saved.info["step"]:
            self.end_epoch()  # what this epoch had to say is said

    def end_epoch(self) -> tuple[float, float, float | None]:
        """(mean loss, overflows, seconds a step or None) of the finished epoch; the next one starts from zero."""
        mean_loss = self.sums["loss"] / max(self.sums["steps"], 1)
        seconds = sum(self.timings) / len(self.timings) if self.timings else None
        finished = mean_loss, self.sums["overflows"], seconds
        self.sums, self.timings = {"loss": 0.0, "steps": 0, "overflows": 0}, []
        return finished


def read_rows(path: StrPath) -> list[dict[str, str]]:
    """The rows of a stage's CSV file as dicts of text; none when there is no file. A last row that was cut off by a
    kill is left out. Raises TrainingError when it is another file."""
    if not Path(path).is_file():
        return []
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        content = file.read()
    rows = list(csv.DictReader(content[:content.rfind("\n") + 1].splitlines()))
    if any(list(row) != list(CSV_COLUMNS) or not row["step"].isdecimal() for row in rows):
        raise TrainingError(f"{path}: not a training log of this program: move it away")
    return rows


def train_stage(stage: Stage, trainer: Trainer, data: TrainingData, folder: Folder, log: StageLog, stop: StopRequest,
                validate: Validate | None = None) -> None:
    """Train from `trainer.step` to the stage's end; leaves the last state and the final weights.

    A step's result is looked at when the next step has been started, so that the device does not wait for the host.
    At an epoch's end the state is saved first; what can fail after that (validation, pictures) costs a warning.

    Args:
        stage: the Stage.
        trainer: the Trainer, new or restored.
        data: a TrainingData.
        folder: the run's Folder.
        log: the StageLog, new or resumed.
        stop: the StopRequest to look at after every step.
        validate: function of `predict` -> dict of mean metrics, called once an epoch; or None.

    Raises:
        TrainingError: the loss is not finite (with the step and the files of the batch).
        Stopped: a signal came; the state is saved.
    """
    steps_per_epoch = data.schedule.steps_per_epoch
    last_step = stage.last_step(steps_per_epoch)
    save = _Saver(stage, trainer, folder, log)
    bar = cli.progress(last_step, f"{stage.name} net", "step", trainer.step)
    with stop.deferred(), bar, cli.log_above_progress():
        if trainer.device.broadcast_int(int(log.sums["steps"])) == steps_per_epoch:  # stopped before validation
            _finish_epoch(stage, trainer, data, log, save, validate)
        pace = _Pace(stage, trainer, data, log, bar)
        for arrays in data.batches(trainer.step, last_step):
            begun = time.perf_counter()
            wait = trainer.launch(*arrays, votes=[stop.signal_number == number for number in SIGNALS] + [len(data.bad)])
            stop_signal = pace.settle(begun)
            pace.waiting, pace.began = wait, begun
            if trainer.device.ranks == 1:
                stop_signal = stop.signal_number
            at_end = trainer.step % steps_per_epoch == 0
            if at_end or trainer.step % (stage.save_checkpoint_steps or steps_per_epoch) == 0 or stop_signal:
                stop_signal = pace.settle() or stop_signal
                save.state()
            if at_end:
                _finish_epoch(stage, trainer, data, log, save, validate)
            if stop_signal:
                trainer.device.sum([0])  # the launcher kills all at the first exit: wait for rank 0's save
                raise Stopped(stop_signal)
        pace.settle()
    save.final(last_step)
    if trainer.step % steps_per_epoch:  # at an epoch's end they have been drawn
        _draw_curves(folder, trainer.device)


class _Pace:
    """The step that has been started and not yet been looked at. It takes until the next one begins."""

    def __init__(self, stage: Stage, trainer: Trainer, data: TrainingData, log: StageLog, bar: cli.Progress) -> None:
        self.stage, self.trainer, self.data, self.log, self.bar = stage, trainer, data, log, bar
        self.waiting: Callable[[], StepResult] | None = None
        self.began = 0.0

    def settle(self, ended: float | None = None) -> int:
        """Log the step that is waiting, if any; it ended now unless told. Returns the signal that any of the ranks had
        got, 0 is none."""
        if self.waiting is None:
            return 0
        result, self.waiting = self.waiting(), None
        seconds = (ended or time.perf_counter()) - self.began
        _check_finite(self.stage, self.data, result)
        _log_step(self.stage, self.trainer, self.data, self.log, result, seconds)
        self.bar.update()
        *signals, bad = result.votes
        schedule = self.data.schedule
        if bad > schedule.most_bad:
            raise TrainingError(f"{bad:.0f} of {schedule.samples} samples are bad on all ranks together: "
                                f"{schedule.most_bad} may be")
        return next((number for number, votes in zip(SIGNALS, signals, strict=True) if votes), 0)


def _check_finite(stage: Stage, data: TrainingData, result: StepResult) -> None:
    if math.isfinite(result.loss):
        return
    where = f"{stage.name} net, step {result.step}"
    if math.isfinite(result.own_loss):
        raise TrainingError(f"{where}: the loss is not finite on another rank: see its log")
    files = ", ".join(str(path) for path in data.files(result.step - 1))
    raise TrainingError(f"{where}: the loss is {result.own_loss}; files of the batch: {files}")


def _log_step(stage: Stage, trainer: Trainer, data: TrainingData, log: StageLog, result: StepResult,
              seconds: float) -> None:
    log.add_step(result.loss, seconds, result.applied)
    if not result.applied:
        logger.info("training %s net, step: %d gradient overflow, update skipped, loss scale: %g",
                    stage.name, result.step, trainer.scaler.scale_value.asnumpy())
    if result.step % LOG_INTERVAL == 0 or result.step == 1:
        logger.info("training %s net, step: %d loss:%.6f, time cost: %.4f", stage.name, result.step, result.loss,
                    seconds)
        rate = float(trainer.rate(ms.Tensor(result.updates, ms.int32))) if log.boards else None
        log.row(epoch=(result.step - 1) // data.schedule.steps_per_epoch + 1, step=result.step,
                loss=f"{result.loss:.6f}", step_seconds=f"{seconds:.4f}", learning_rate=rate)


@contextlib.contextmanager
def _only_warned(what: str) -> Iterator[None]:
    """What goes wrong in here is one line: the state is saved, and training goes on."""
    try:
        yield
    except (UserError, CheckFailed, OSError) as error:
        logger.warning("warning: no %s: %s", what, error)


def _finish_epoch(stage: Stage, trainer: Trainer, data: TrainingData, log: StageLog, save: "_Saver",
                  validate: Validate | None) -> None:
    epoch, scored = trainer.step // data.schedule.steps_per_epoch, {}
    if validate:
        with _only_warned(f"validation of epoch {epoch}"), trainer.averaged():
            scored = validate(trainer.predict)
    mean_loss, overflows, seconds = log.end_epoch()
    images_per_s = data.schedule.batch_size * data.schedule.ranks / seconds if seconds else None
    logger.info("%s net, epoch: %d mean loss: %.6f%s%s%s%s", stage.name, epoch, mean_loss,
                f", images/s: {images_per_s:.1f}" if seconds else "",
                f", overflows: {overflows}" if trainer.scaler else "",
                f", bad samples: {len(data.bad)}" if data.bad else "",
                "".join(f", {name}: {value:.4f}" for name, value in scored.items()))
    log.row(epoch=epoch, step=trainer.step, mean_loss=f"{mean_loss:.6f}",
            images_per_s=f"{images_per_s:.2f}" if seconds else "", overflows=overflows,
            **{name: f"{value:.6f}" for name, value in scored.items()})
    _draw_curves(save.folder, trainer.device)
    for board in log.boards:
        with _only_warned("panels"), trainer.averaged():
            board.add_panels(trainer.step, trainer.predict)
    if scored:
        with _only_warned("best weights"):
            save.best(scored["abs_rel"])


class _Saver:
    """Writes the three kinds of checkpoint of a stage: resumable states, the best and the final weights."""

    def __init__(self, stage: Stage, trainer: Trainer, folder: Folder, log: StageLog) -> None:
        self.stage, self.trainer, self.folder, self.log = stage, trainer, folder, log

    def info(self) -> dict[str, Any]:
        coarse_net = {"coarse_net": self.stage.options["coarse_net"]} if self.stage.name == "coarse" else {}
        return {"stage": self.stage.name, "step": self.trainer.step, "options": self.stage.options, **coarse_net}

    def state(self) -> None:
        if not self.trainer.device.is_first:
            return
        checkpoint.save(self.folder.state(self.stage.name, self.trainer.step), self.trainer.state(),
                        {**self.info(), "epoch_sums": self.log.sums})
        for _, old in self.folder.states(self.stage.name)[:-self.stage.keep_checkpoint_max]:
            old.unlink()

    def best(self, abs_rel: float) -> None:
        earlier = [float(row["abs_rel"]) for row in self.log.rows[:-1] if row["abs_rel"]]
        if all(abs_rel < value for value in earlier):
            self._weights(self.folder.best(self.stage.name), {"abs_rel": abs_rel})

    def final(self, last_step: int) -> None:
        states = self.folder.states(self.stage.name)
        if not states or states[-1][0] != last_step:
            self.state()
        self._weights(self.folder.final(self.stage.name), {})

    def _weights(self, path: Path, extra: Mapping[str, Any]) -> None:
        if not self.trainer.device.is_first:
            return
        checkpoint.save(path, self.trainer.weights(), {**self.info(), **extra})
        logger.info("saved %s", path)


def _draw_curves(folder: Folder, device: Device) -> None:
    """curves.png from the CSV files of both stages, and what has to be beaten (mean_map.json), where that is known."""
    if not device.is_first:
        return
    with _only_warned("curves"):
        rows = {name: read_rows(folder.log_file(f"{name}.csv")) for name in ("coarse", "fine")}
        if any(rows.values()):
            visual.curves(rows, folder.log_file("curves.png"), mean_map_scores(folder.log_file("mean_map.json")))


def newest_state(stage_name: str, folder: Folder) -> checkpoint.Checkpoint | None:
    """The newest undamaged state of a stage, or None; a damaged one is named and passed over."""
    for _, path in reversed(folder.states(stage_name)):
        try:
            return checkpoint.load(path)
        except checkpoint.CheckpointError as error:
            logger.warning("warning: %s: falling back to the state before it", error)
    return None


def check_same_options(stage: Stage, saved: checkpoint.Checkpoint, allow_changed_data: bool = False) -> None:
    """Raise TrainingError naming the options that differ from those of the saved state."""
    before = saved.info.get("options", {})
    if DATA in before and before[DATA] != stage.options[DATA]:
        if not allow_changed_data:
            raise TrainingError(f"{saved.path}: files of the training data have another size or time than when this "
                                "run began: --allow_changed_data if they were only copied, else begin anew")
        stage.options[DATA] = before[DATA]
    if COARSE in stage.options and before.get(COARSE) != stage.options[COARSE]:
        raise TrainingError(f"{saved.path}: FineNet was trained on another CoarseNet: --stage fine --overwrite begins "
                            "FineNet anew on this one")
    changed = [f"{name} was {before.get(name)!r}, now {stage.options.get(name)!r}"
               for name in {**stage.options, **before}
               if name not in {*stage.idle, COARSE} and before.get(name) != stage.options.get(name)]
    if changed:
        raise TrainingError(f"{saved.path}: --resume with other options would change the result: " + "; ".join(changed))
