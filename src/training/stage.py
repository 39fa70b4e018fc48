"""The training loop of one stage."""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from typing import TypeAlias

import mindspore as ms

from src.base import cli
from src.base.arrays import Floats
from src.base.errors import CheckFailed, UserError
from src.base.stopping import SIGNALS, Stopped, StopRequest
from src.data_loader import TrainingData
from src.nets.device import Device
from src.scoring import visual
from src.training.log import StageLog, read_rows
from src.training.options import Stage
from src.training.run_folder import Folder, TrainingError
from src.training.state import _Saver
from src.training.trainer import StepResult, Trainer
from src.training.validation import mean_map_scores

logger = logging.getLogger(__name__)


Validate: TypeAlias = Callable[[Callable[[Floats], Floats]], dict[str, float]]


LOG_INTERVAL = 10


def train_stage(
    stage: Stage,
    trainer: Trainer,
    data: TrainingData,
    folder: Folder,
    log: StageLog,
    stop: StopRequest,
    validate: Validate | None = None,
) -> None:
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
    save = _Saver(stage, trainer, folder, log)
    bar = cli.progress(stage.last_step, f"{stage.name} net", "step", trainer.step)
    with stop.deferred(), bar, cli.log_above_progress():
        if trainer.device.broadcast_int(int(log.sums["steps"])) == steps_per_epoch:  # stopped before validation
            _finish_epoch(stage, trainer, data, log, save, validate)
        pace = _Pace(stage, trainer, data, log, bar)
        for arrays in data.batches(trainer.step, stage.last_step):
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
    save.final()
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
            raise TrainingError(
                f"{bad:.0f} of {schedule.samples} samples are bad on all ranks together: {schedule.most_bad} may be"
            )
        return next((number for number, votes in zip(SIGNALS, signals, strict=True) if votes), 0)


def _check_finite(stage: Stage, data: TrainingData, result: StepResult) -> None:
    if math.isfinite(result.loss):
        return
    where = f"{stage.name} net, step {result.step}"
    if math.isfinite(result.own_loss):
        raise TrainingError(f"{where}: the loss is not finite on another rank: see its log")
    files = ", ".join(str(path) for path in data.files(result.step - 1))
    raise TrainingError(f"{where}: the loss is {result.own_loss}; files of the batch: {files}")


def _log_step(
    stage: Stage, trainer: Trainer, data: TrainingData, log: StageLog, result: StepResult, seconds: float
) -> None:
    log.add_step(result.loss, seconds, result.applied)
    if not result.applied:
        logger.info(
            "training %s net, step: %d gradient overflow, update skipped, loss scale: %g",
            stage.name,
            result.step,
            trainer.scaler.scale_value.asnumpy(),
        )
    if result.step % LOG_INTERVAL == 0 or result.step == 1:
        logger.info(
            "training %s net, step: %d loss:%.6f, time cost: %.4f", stage.name, result.step, result.loss, seconds
        )
        rate = float(trainer.rate(ms.Tensor(result.updates, ms.int32))) if log.boards else None
        log.row(
            epoch=(result.step - 1) // data.schedule.steps_per_epoch + 1,
            step=result.step,
            loss=f"{result.loss:.6f}",
            step_seconds=f"{seconds:.4f}",
            learning_rate=rate,
        )


@contextlib.contextmanager
def _only_warned(what: str) -> Iterator[None]:
    """What goes wrong in here is one line: the state is saved, and training goes on."""
    try:
        yield
    except (UserError, CheckFailed, OSError) as error:
        logger.warning("warning: no %s: %s", what, error)


def _finish_epoch(
    stage: Stage, trainer: Trainer, data: TrainingData, log: StageLog, save: "_Saver", validate: Validate | None
) -> None:
    epoch, scored = trainer.step // data.schedule.steps_per_epoch, {}
    if validate:
        with _only_warned(f"validation of epoch {epoch}"), trainer.averaged():
            scored = validate(trainer.predict)
    mean_loss, overflows, seconds = log.end_epoch()
    images_per_s = data.schedule.batch_size * data.schedule.ranks / seconds if seconds else None
    logger.info(
        "%s net, epoch: %d mean loss: %.6f%s%s%s%s",
        stage.name,
        epoch,
        mean_loss,
        f", images/s: {images_per_s:.1f}" if seconds else "",
        f", overflows: {overflows}" if trainer.scaler else "",
        f", bad samples: {len(data.bad)}" if data.bad else "",
        "".join(f", {name}: {value:.4f}" for name, value in scored.items()),
    )
    log.row(
        epoch=epoch,
        step=trainer.step,
        mean_loss=f"{mean_loss:.6f}",
        images_per_s=f"{images_per_s:.2f}" if seconds else "",
        overflows=overflows,
        **{name: f"{value:.6f}" for name, value in scored.items()},
    )
    _draw_curves(save.folder, trainer.device)
    for board in log.boards:
        with _only_warned("panels"), trainer.averaged():
            board.add_panels(trainer.step, trainer.predict)
    if scored:
        with _only_warned("best weights"):
            save.best(scored["abs_rel"])


def _draw_curves(folder: Folder, device: Device) -> None:
    """curves.png from the CSV files of both stages, and what has to be beaten (mean_map.json), where that is known."""
    if not device.is_first:
        return
    with _only_warned("curves"):
        rows = {name: read_rows(folder.log_file(f"{name}.csv")) for name in ("coarse", "fine")}
        if any(rows.values()):
            visual.curves(rows, folder.log_file("curves.png"), mean_map_scores(folder.log_file("mean_map.json")))
