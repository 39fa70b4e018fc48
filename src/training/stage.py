"""The training loop of one stage."""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence

import mindspore as ms

from src.base import cli
from src.base.arrays import Array
from src.base.errors import CheckFailed, UserError
from src.base.stopping import SIGNALS, Stopped, StopRequest
from src.data_loader import TrainingData
from src.scoring import visual
from src.training.log import StageLog, read_rows
from src.training.options import Stage
from src.training.run_folder import Folder, TrainingError
from src.training.state import Saver
from src.training.trainer import StepResult, Trainer
from src.training.validation import Validation, mean_map_scores

LOG_INTERVAL = 10

logger = logging.getLogger(__name__)


class StageLoop:
    """Trains one stage.

    The result of a step is read only when the next step has started, so that the device does not wait for the host.
    At the end of an epoch the state is saved first; if validation or drawing fails after that, a warning is logged.

    Args:
        stage: settings of the stage.
        trainer: the net with its optimizer, new or restored.
        data: batches of training pairs.
        folder: the run's folder.
        log: the log of the stage, new or resumed.
        stop: requests to stop, looked at after every step.
        validation: scores the net after every epoch; or None.
    """

    def __init__(
        self,
        stage: Stage,
        trainer: Trainer,
        data: TrainingData,
        folder: Folder,
        log: StageLog,
        stop: StopRequest,
        validation: Validation | None = None,
    ) -> None:
        self.stage, self.trainer, self.data, self.folder = stage, trainer, data, folder
        self.log, self.stop, self.validation = log, stop, validation
        self.save = Saver(stage, trainer, folder, log)
        self.bar = cli.progress(stage.last_step, f"{stage.name} net", "step", trainer.step)
        self.pending: Callable[[], StepResult] | None = None  # waits for the step that was started last
        self.started_at = 0.0

    def run(self) -> None:
        """Train from `trainer.step` to the last step of the stage; then save the last state and the final weights.

        Raises:
            TrainingError: the loss is not finite; names the step and the files of the batch.
            Stopped: a signal came; the state is saved.
        """
        stage, schedule = self.stage, self.data.schedule
        logger.info(
            "%s net: %d pairs, %d epochs of %d steps of %d, %s step %d",
            stage.name,
            schedule.samples,
            stage.epochs,
            schedule.steps_per_epoch,
            schedule.batch_size,
            "complete at" if self.trainer.step >= stage.last_step else "starting at",
            self.trainer.step,
        )
        with self.stop.deferred(), self.bar, cli.log_above_progress():
            self._train()
        self.save.final()
        if self.trainer.step % schedule.steps_per_epoch:  # otherwise drawn at the end of the epoch
            self._draw_curves()

    def _train(self) -> None:
        trainer, steps_per_epoch = self.trainer, self.data.schedule.steps_per_epoch
        if trainer.device.broadcast_int(int(self.log.sums["steps"])) == steps_per_epoch:  # stopped before validation
            self._finish_epoch()
        for arrays in self.data.batches(trainer.step, self.stage.last_step):
            stop_signal = self._launch(arrays)
            at_end = trainer.step % steps_per_epoch == 0
            if at_end or trainer.step % (self.stage.save_checkpoint_steps or steps_per_epoch) == 0 or stop_signal:
                stop_signal = self._settle() or stop_signal
                self.save.state()
            if at_end:
                self._finish_epoch()
            if stop_signal:
                trainer.device.sum([0])  # the launcher kills all at the first exit: wait for rank 0's save
                raise Stopped(stop_signal)
        self._settle()

    def _launch(self, arrays: Sequence[Array]) -> int:
        """Start a step, then settle the one before. Returns the signal to stop for, or 0."""
        started_at = time.perf_counter()
        votes = [self.stop.signal_number == number for number in SIGNALS] + [len(self.data.bad)]
        pending = self.trainer.launch(*arrays, votes=votes)
        signal_of_any_rank = self._settle(started_at)
        self.pending, self.started_at = pending, started_at
        return self.stop.signal_number if self.trainer.device.ranks == 1 else signal_of_any_rank

    def _settle(self, ended_at: float | None = None) -> int:
        """Wait for the pending step, check and log it. Returns the signal that any rank had received, or 0.

        Args:
            ended_at: when the next step was started; None: now.
        """
        if self.pending is None:
            return 0
        result, self.pending = self.pending(), None
        self._check_finite(result)
        self._log_step(result, (ended_at or time.perf_counter()) - self.started_at)
        self.bar.update()
        *signals, bad = result.votes
        samples, most_bad = self.data.schedule.samples, self.data.schedule.most_bad
        if bad > most_bad:
            raise TrainingError(
                f"{bad:.0f} of {samples} samples are bad on all ranks together: at most {most_bad} may be"
            )
        return next((number for number, votes in zip(SIGNALS, signals, strict=True) if votes), 0)

    def _check_finite(self, result: StepResult) -> None:
        if math.isfinite(result.loss):
            return
        where = f"{self.stage.name} net, step {result.step}"
        if math.isfinite(result.own_loss):
            raise TrainingError(f"{where}: the loss is not finite on another rank: see its log")
        files = ", ".join(str(path) for path in self.data.files(result.step - 1))
        raise TrainingError(f"{where}: the loss is {result.own_loss}; files of the batch: {files}")

    def _log_step(self, result: StepResult, seconds: float) -> None:
        name, step = self.stage.name, result.step
        self.log.add_step(result.loss, seconds, result.applied)
        if not result.applied:
            scale = self.trainer.scaler.scale_value.asnumpy()
            logger.info(
                "training %s net, step: %d gradient overflow, update skipped, loss scale: %g", name, step, scale
            )
        if step % LOG_INTERVAL == 0 or step == 1:
            logger.info("training %s net, step: %d loss:%.6f, time cost: %.4f", name, step, result.loss, seconds)
            self.log.row(
                epoch=(step - 1) // self.data.schedule.steps_per_epoch + 1,
                step=step,
                loss=f"{result.loss:.6f}",
                step_seconds=f"{seconds:.4f}",
                learning_rate=float(self.trainer.rate(ms.Tensor(result.updates, ms.int32))) if self.log.board else None,
            )

    def _finish_epoch(self) -> None:
        trainer, schedule = self.trainer, self.data.schedule
        epoch, scores = trainer.step // schedule.steps_per_epoch, {}
        if self.validation:
            with _warning_only(f"validation of epoch {epoch}"), trainer.averaged():
                scores = self.validation(trainer.predict)
        mean_loss, overflows, seconds = self.log.end_epoch()
        images_per_s = schedule.batch_size * schedule.ranks / seconds if seconds else None
        logger.info(
            "%s net, epoch: %d mean loss: %.6f%s%s%s%s",
            self.stage.name,
            epoch,
            mean_loss,
            f", images/s: {images_per_s:.1f}" if images_per_s else "",
            f", overflows: {overflows}" if trainer.scaler else "",
            f", bad samples: {len(self.data.bad)}" if self.data.bad else "",
            "".join(f", {name}: {value:.4f}" for name, value in scores.items()),
        )
        self.log.row(
            epoch=epoch,
            step=trainer.step,
            mean_loss=f"{mean_loss:.6f}",
            images_per_s=f"{images_per_s:.2f}" if images_per_s else "",
            overflows=overflows,
            **{name: f"{value:.6f}" for name, value in scores.items()},
        )
        self._show_epoch(scores.get("abs_rel"))

    def _show_epoch(self, abs_rel: float | None) -> None:
        """Draw the curves and panels, and save the weights if they are the best so far."""
        self._draw_curves()
        if self.validation:
            for panels in self.log.panels:
                with _warning_only("panels"), self.trainer.averaged():
                    panels.add_panels(self.trainer.step, self.validation.pictures, self.trainer.predict)
        if abs_rel is not None:
            with _warning_only("best weights"):
                self.save.best(abs_rel)

    def _draw_curves(self) -> None:
        """Draw curves.png from the CSV files of both stages, and from mean_map.json the scores to beat."""
        if not self.trainer.device.is_first:
            return
        with _warning_only("curves"):
            rows = {name: read_rows(self.folder.log_file(f"{name}.csv")) for name in ("coarse", "fine")}
            if any(rows.values()):
                mean_map = mean_map_scores(self.folder.log_file("mean_map.json"))
                visual.curves(rows, self.folder.log_file("curves.png"), mean_map)


@contextlib.contextmanager
def _warning_only(what: str) -> Iterator[None]:
    """Log errors of this block as warnings and continue: the state is saved."""
    try:
        yield
    except (UserError, CheckFailed, OSError) as error:
        logger.warning("warning: no %s: %s", what, error)
