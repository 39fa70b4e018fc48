"""One training stage: the step, the loop, the log, the checkpoints, and the way back in after a stop."""

import csv
import logging
import math
import re
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import mindspore as ms
from mindspore import amp, nn

from src import checkpoint, cli, metrics, visual
from src.device import Device
from src.errors import UserError
from src.files import replacing
from src.loss import LOSSES
from src.stopping import Stopped

LOG_INTERVAL = 10
LOSS_SCALE, LOSS_SCALE_FACTOR, LOSS_SCALE_WINDOW = 2.0**16, 2, 1000
CSV_COLUMNS = ("epoch", "step", "loss", "step_seconds", "mean_loss", "images_per_s", "overflows", *metrics.METRICS)

logger = logging.getLogger(__name__)

_ALONE = Device("CPU")


class TrainingError(UserError):
    """Training cannot go on, or cannot begin as asked."""


class TrainStep(nn.Cell):
    """One forward, one backward, one update; returns the step's own float32 loss and whether it was applied.

    With a loss scaler, gradients that are not finite leave the weights alone and lower the scale.
    """

    def __init__(self, net, loss, optimizer, scaler=None, ranks=1):
        super().__init__(auto_prefix=False)
        self.net, self.loss, self.optimizer, self.scaler, self.ranks = net, loss, optimizer, scaler, ranks
        self.average = nn.DistributedGradReducer(optimizer.parameters, mean=True, degree=ranks) if ranks > 1 else None
        self.gradient = ms.value_and_grad(self.scaled_loss, None, optimizer.parameters, has_aux=True)

    def scaled_loss(self, depth_m, *inputs):
        loss = self.loss(self.net(*inputs).astype(ms.float32), depth_m)
        if self.scaler is None:
            return loss, loss
        return self.scaler.scale(loss), loss

    @ms.jit
    def construct(self, depth_m, *inputs):
        (_, loss), gradients = self.gradient(depth_m, *inputs)
        if self.ranks > 1:
            gradients = self.average(gradients)
        finite = ms.Tensor(True)
        if self.scaler is None:
            self.optimizer(gradients)
        else:
            gradients = self.scaler.unscale(gradients)
            finite = amp.all_finite(gradients)
            if finite:
                self.optimizer(gradients)
            self.scaler.adjust(finite)
        return loss, finite


@dataclass(frozen=True)
class Stage:
    """The settings of one stage; `options` are those that must not change in a resumed run."""

    name: str  # "coarse" or "fine"
    epochs: int
    save_checkpoint_steps: int
    keep_checkpoint_max: int
    max_steps: int | None
    options: dict

    @property
    def net_name(self):
        """CoarseNet or FineNet, as in file names."""
        return f"{self.name.capitalize()}Net"

    def last_step(self, steps_per_epoch):
        """The number of steps after which the stage is done."""
        return min(self.epochs * steps_per_epoch, self.max_steps or math.inf)


@dataclass
class Folder:
    """Where a run's files are: Model/Ckpt and Model/Log."""

    root: Path
    suffix: str = ""  # of the final files' names: "_rank0" in a distributed run
    checkpoints: Path = field(init=False)
    log: Path = field(init=False)

    def __post_init__(self):
        self.checkpoints, self.log = self.root / "Ckpt", self.root / "Log"

    def final(self, stage_name):
        """The stage's last weights."""
        return self.checkpoints / f"Final{stage_name.capitalize()}Net{self.suffix}.ckpt"

    def best(self, stage_name):
        """The stage's weights with the lowest validation abs_rel."""
        return self.checkpoints / f"Best{stage_name.capitalize()}Net.ckpt"

    def states(self, stage):
        """(step, path) of the stage's resumable checkpoints, oldest first."""
        pattern = re.compile(rf"{stage.net_name}_(\d+)\.ckpt")
        matches = [(pattern.fullmatch(path.name), path) for path in self.checkpoints.glob(f"{stage.net_name}_*.ckpt")]
        return sorted((int(match[1]), path) for match, path in matches if match)


class Trainer:
    """A net with its optimizer, at some step.

    Args:
        net: CoarseNet, PaperCoarseNet or FineNet.
        inputs: function of a batch's tensors after the target -> the net's inputs (FineNet's adds the coarse depth).
        loss: a key of src.loss.LOSSES.
        amp_level: "O0" is float32; any other is float16 compute with dynamic loss scaling.
        device: the Device of this process; its ranks average their gradients.
    """

    def __init__(self, net, loss, learning_rate, *, amp_level="O0", device=_ALONE, inputs=lambda *tensors: tensors):
        self.net, self.device, self.inputs, self.step = net, device, inputs, 0
        self.parameters = {parameter.name: parameter for parameter in net.get_parameters()}
        self.optimizer = nn.Adam(net.trainable_params(), learning_rate)
        self.scaler = None
        compute = net
        if amp_level != "O0":
            compute = amp.auto_mixed_precision(net, amp_level)
            self.scaler = amp.DynamicLossScaler(LOSS_SCALE, LOSS_SCALE_FACTOR, LOSS_SCALE_WINDOW)
        self.compute = compute
        self.train_step = TrainStep(compute, LOSSES[loss](), self.optimizer, self.scaler, device.ranks)

    def run_step(self, rgb, depth_m, *rest):
        """Train on one batch of arrays, RGB as uint8; returns (loss, whether the update was applied)."""
        inputs = self.inputs(_unit_range(ms.Tensor(rgb)), *map(ms.Tensor, rest))
        loss, applied = self.train_step(ms.Tensor(depth_m), *inputs)
        self.step += 1
        return float(loss.asnumpy()), bool(applied.asnumpy())

    def predict(self, rgb):
        """Log depth (N, 1, 55, 74) of RGB (N, 3, 228, 304), as the net is now."""
        return self.compute(*self.inputs(ms.Tensor(rgb))).asnumpy()

    def state(self):
        """Every Parameter that a resume needs, by name."""
        state = {**self.parameters, **{parameter.name: parameter for parameter in self.optimizer.get_parameters()}}
        if self.scaler is not None:
            state |= {"scale_value": self.scaler.scale_value, "counter": self.scaler.counter}
        return state

    def restore(self, saved):
        """Continue from a Checkpoint that `state` made. Raises CheckpointError when it is another net's."""
        state = self.state()
        if state.keys() != saved.arrays.keys():
            raise checkpoint.CheckpointError(f"{saved.path}: not a training state of {type(self.net).__name__}")
        for name, parameter in state.items():
            parameter.set_data(ms.Tensor(saved.arrays[name], parameter.dtype))
        self.step = saved.info["step"]

    def synchronise(self):
        """Give every rank what rank 0 has: weights, optimizer, loss scale and step."""
        self.step = self.device.broadcast_int(self.step)
        self.device.broadcast(self.state().values())


@ms.jit
def _unit_range(rgb):
    """uint8 to float32 in [0, 1], on the device."""
    return rgb.astype(ms.float32) / 255


class StageLog:
    """The stage's CSV file (none where `path` is None), and the sums of the epoch that is running, which travel
    with the state. What goes into the file goes to `board`, a tensorboard.Board, as well."""

    def __init__(self, path):
        self.path, self.board = path, None
        self.rows = []
        self.sums = {"loss": 0.0, "steps": 0, "overflows": 0}
        self.timings = []

    def add_step(self, loss, seconds, applied):
        """Count one step into the running epoch."""
        self.sums["loss"] += loss
        self.sums["steps"] += 1
        self.sums["overflows"] += not applied
        self.timings.append(seconds)

    def row(self, **values):
        """Append a row and rewrite the file: it is small, and never half-written."""
        self.rows.append({column: values.get(column, "") for column in CSV_COLUMNS})
        if self.path:
            self._write()
        if self.board:
            self.board.add(values["step"], {name: values[name] for name in values if name != "step"})

    def _write(self):
        with replacing(self.path) as file:
            writer = csv.DictWriter(file, CSV_COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows)

    def resume(self, saved):
        """Take over the rows and sums of an earlier run up to its saved state."""
        self.rows = [row for row in read_rows(self.path) if int(row["step"]) <= saved.info["step"]]
        self.sums = dict(saved.info["epoch_sums"])

    def end_epoch(self):
        """(mean loss, overflows, seconds a step) of the finished epoch; the next one starts from zero."""
        mean_loss = self.sums["loss"] / self.sums["steps"]
        finished = mean_loss, self.sums["overflows"], sum(self.timings) / len(self.timings)
        self.sums, self.timings = {"loss": 0.0, "steps": 0, "overflows": 0}, []
        return finished


def read_rows(path):
    """The rows of a stage's CSV file as dicts of text; none when there is no file."""
    if not Path(path).is_file():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def train_stage(stage, trainer, data, folder, log, stop, validate=None):
    """Train from `trainer.step` to the stage's end; leaves the last state and the final weights.

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
        Stopped: SIGTERM or SIGINT came; the state is saved.
    """
    steps_per_epoch = data.schedule.steps_per_epoch
    last_step = stage.last_step(steps_per_epoch)
    save = _Saver(stage, trainer, folder, log)
    bar = cli.progress(last_step, f"{stage.name} net", "step", trainer.step)
    with stop.deferred(), bar, cli.log_above_progress():
        began = time.perf_counter()
        for arrays in data.batches(trainer.step, last_step):
            own_loss, applied = trainer.run_step(*arrays)
            loss, stop_signal = _agree(trainer.device, own_loss, stop.signal_number)
            seconds, began = time.perf_counter() - began, time.perf_counter()
            _check_finite(stage, trainer, data, own_loss, loss)
            _log_step(stage, trainer, data, log, loss, seconds, applied)
            bar.update()
            if trainer.step % steps_per_epoch == 0:
                _finish_epoch(stage, trainer, data, log, save, validate)
                began = time.perf_counter()
            if trainer.step % (stage.save_checkpoint_steps or steps_per_epoch) == 0 or stop_signal:
                save.state()
            if stop_signal:
                trainer.device.sum([0])  # the launcher kills all at the first exit: wait for rank 0's save
                raise Stopped(stop_signal)
    save.final(last_step)
    if trainer.device.is_first:
        draw_curves(folder.log)


def _agree(device, loss, stop_signal):
    """The mean loss over the ranks, and the signal that any of them got (0 is none): the same on every rank."""
    total, *stopped = device.sum([loss, stop_signal == signal.SIGTERM, stop_signal == signal.SIGINT])
    return (float(total) / device.ranks if device.ranks > 1 else loss,
            signal.SIGTERM if stopped[0] else signal.SIGINT if stopped[1] else 0)


def _check_finite(stage, trainer, data, own_loss, loss):
    if math.isfinite(loss):
        return
    where = f"{stage.name} net, step {trainer.step}"
    if math.isfinite(own_loss):
        raise TrainingError(f"{where}: the loss is not finite on another rank: see its log")
    files = ", ".join(str(path) for path in data.files(trainer.step - 1))
    raise TrainingError(f"{where}: the loss is {own_loss}; files of the batch: {files}")


def _log_step(stage, trainer, data, log, loss, seconds, applied):
    log.add_step(loss, seconds, applied)
    if not applied:
        logger.info("training %s net, step: %d gradient overflow, update skipped, loss scale: %g",
                    stage.name, trainer.step, trainer.scaler.scale_value.asnumpy())
    if trainer.step % LOG_INTERVAL == 0 or trainer.step == 1:
        logger.info("training %s net, step: %d loss: %.6f, time cost: %.4f", stage.name, trainer.step, loss, seconds)
        log.row(epoch=(trainer.step - 1) // data.schedule.steps_per_epoch + 1, step=trainer.step,
                loss=f"{loss:.6f}", step_seconds=f"{seconds:.4f}")


def _finish_epoch(stage, trainer, data, log, save, validate):
    mean_loss, overflows, step_seconds = log.end_epoch()
    epoch = trainer.step // data.schedule.steps_per_epoch
    images_per_s = data.schedule.batch_size * data.schedule.ranks / step_seconds
    scored = validate(trainer.predict) if validate else {}
    logger.info("%s net, epoch: %d mean loss: %.6f, images/s: %.1f%s%s%s", stage.name, epoch, mean_loss, images_per_s,
                f", overflows: {overflows}" if trainer.scaler else "",
                f", bad samples: {len(data.bad)}" if data.bad else "",
                "".join(f", {name}: {value:.4f}" for name, value in scored.items()))
    log.row(epoch=epoch, step=trainer.step, mean_loss=f"{mean_loss:.6f}", images_per_s=f"{images_per_s:.2f}",
            overflows=overflows, **{name: f"{value:.6f}" for name, value in scored.items()})
    if log.path:
        draw_curves(log.path.parent)
    if log.board:
        log.board.add_panels(trainer.step, trainer.predict)
    if scored:
        save.best(scored["abs_rel"])


class _Saver:
    """Writes the three kinds of checkpoint of a stage: resumable states, the best and the final weights."""

    def __init__(self, stage, trainer, folder, log):
        self.stage, self.trainer, self.folder, self.log = stage, trainer, folder, log

    def info(self):
        coarse_net = {"coarse_net": self.stage.options["coarse_net"]} if self.stage.name == "coarse" else {}
        return {"stage": self.stage.name, "step": self.trainer.step, "options": self.stage.options, **coarse_net}

    def state(self):
        if not self.trainer.device.is_first:
            return
        path = self.folder.checkpoints / f"{self.stage.net_name}_{self.trainer.step}.ckpt"
        checkpoint.save(path, self.trainer.state(), {**self.info(), "epoch_sums": self.log.sums})
        for _, old in self.folder.states(self.stage)[:-self.stage.keep_checkpoint_max]:
            old.unlink()

    def best(self, abs_rel):
        earlier = [float(row["abs_rel"]) for row in self.log.rows[:-1] if row["abs_rel"]]
        if all(abs_rel < value for value in earlier):
            self._weights(self.folder.best(self.stage.name), {"abs_rel": abs_rel})

    def final(self, last_step):
        if not self.folder.states(self.stage) or self.folder.states(self.stage)[-1][0] != last_step:
            self.state()
        self._weights(self.folder.final(self.stage.name), {})

    def _weights(self, path, extra):
        if not self.trainer.device.is_first:
            return
        checkpoint.save(path, self.trainer.parameters, {**self.info(), **extra})
        logger.info("saved %s", path)


def draw_curves(log_folder):
    """curves.png from the CSV files of both stages."""
    rows = {name: read_rows(log_folder / f"{name}.csv") for name in ("coarse", "fine")}
    if any(rows.values()):
        visual.curves(rows, log_folder / "curves.png")


def newest_state(stage, folder):
    """The newest undamaged state of a stage, or None; a damaged one is named and passed over."""
    for _, path in reversed(folder.states(stage)):
        try:
            return checkpoint.load(path)
        except checkpoint.CheckpointError as error:
            logger.warning("warning: %s: falling back to the state before it", error)
    return None


def check_same_options(stage, saved):
    """Raise TrainingError naming the options that differ from those of the saved state."""
    before = saved.info["options"]
    changed = [f"{name} was {before.get(name)!r}, now {value!r}"
               for name, value in stage.options.items() if before.get(name) != value]
    if changed:
        raise TrainingError(f"{saved.path}: --resume with other options would change the result: " + "; ".join(changed))
