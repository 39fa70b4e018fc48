"""A net in training: with its optimizer, averaged weights, loss scale and step number."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import mindspore as ms
from mindspore import amp, nn

from src.base.arrays import Array, Floats, Pixels
from src.loss import LOSSES
from src.nets import checkpoint
from src.nets.device import Device
from src.training.options import Recipe
from src.training.recipe import Average, Decay, Rate, adam
from src.training.step import TrainStep, clear_overflows, in_precision, unit_range

LOSS_SCALE, LOSS_SCALE_FACTOR, LOSS_SCALE_WINDOW = 2.0**16, 2, 1000

_ALONE, _REFERENCE = Device("CPU"), Recipe()


class StepResult(NamedTuple):
    """The result of a step.

    Attributes:
        step: its number, from 1.
        own_loss, loss: the loss of this rank, and the mean over the ranks.
        applied: False if the update was skipped because of an overflow.
        votes: the numbers given to `Trainer.launch`, summed over the ranks.
        updates: number of earlier updates that were applied.
    """

    step: int
    own_loss: float
    loss: float
    applied: bool
    votes: list[float]
    updates: int = 0


class Trainer:
    """A net with its optimizer and step number.

    Args:
        net: CoarseNet, PaperCoarseNet or FineNet.
        loss: a key of src.loss.LOSSES.
        learning_rate: of Adam, before what the recipe does to it.
        amp_level: "O0" is float32; the others are float16 compute with dynamic loss scaling.
        device: the Device of this process. The ranks average their gradients.
        inputs: function from RGB in [0, 1] and the rest of a batch to the inputs of the net.
        recipe: what an update does besides Adam.
        last_step: the step at which the recipe's schedule ends.
    """

    def __init__(
        self,
        net: nn.Cell,
        loss: str,
        learning_rate: float,
        *,
        amp_level: str = "O0",
        device: Device = _ALONE,
        inputs: Callable[..., tuple[ms.Tensor, ...]] = lambda *tensors: tensors,
        recipe: Recipe = _REFERENCE,
        last_step: int = 0,
    ) -> None:
        self.net, self.device, self.inputs, self.step = net, device, inputs, 0
        self.parameters = {parameter.name: parameter for parameter in net.get_parameters()}
        self.rate = Rate(learning_rate, recipe, last_step)
        self.optimizer = adam(net, learning_rate, recipe, last_step)
        self.average = Average(net, recipe.ema) if recipe.ema else None
        self.scaler: Any = None
        self.compute = in_precision(net, amp_level)
        if amp_level != "O0":
            self.scaler = amp.DynamicLossScaler(LOSS_SCALE, LOSS_SCALE_FACTOR, LOSS_SCALE_WINDOW)
        decay = Decay(net, learning_rate, recipe, last_step) if recipe.weight_decay else None
        self.train_step = TrainStep(
            self.compute, LOSSES[loss](), self.optimizer, self.scaler, device.ranks, decay, recipe.clip_norm
        )

    def launch(
        self, rgb: Pixels, depth_m: Floats, *rest: Array, votes: Sequence[float] = ()
    ) -> Callable[[], StepResult]:
        """Start a training step.

        The device may read the arrays until the returned function has been called: do not write to them.

        Args:
            rgb: uint8 (N, 3, 228, 304).
            depth_m: float32 metres (N, 1, 55, 74).
            rest: further inputs of the net.
            votes: numbers to sum over the ranks.

        Returns a function that waits for the StepResult.
        """
        # from_numpy copies nothing; ms.Tensor would copy 6.7 MB of RGB a batch of 32.
        pixels, target, *others = tensors = [ms.Tensor.from_numpy(array) for array in (rgb, depth_m, *rest)]
        inputs = self.inputs(unit_range(pixels), *others)
        if self.scaler is not None and self.device.keeps_overflows:
            clear_overflows()  # of the frozen net or of a validation
        result = self.train_step(ms.Tensor([0, *votes], ms.float32), target, *inputs)
        self.step += 1
        if self.average is not None:
            self.average.update(self.step)
        step, ranks = self.step, self.device.ranks

        def wait() -> StepResult:
            own_loss, updates, loss, overflows, _, *votes = result.asnumpy().tolist()
            tensors.clear()  # kept the arrays alive until the device had read them
            return StepResult(
                step, own_loss, loss / ranks if ranks > 1 else own_loss, overflows < 0.5, votes, int(updates)
            )

        return wait

    def run_step(self, *arrays: Array) -> tuple[float, bool]:
        """Train on one batch, as in `launch`. Returns (loss of this rank, whether the update was applied)."""
        result = self.launch(*arrays)()
        return result.own_loss, result.applied

    def predict(self, rgb: Floats) -> Floats:
        """Predict log depth (N, 1, 55, 74) from RGB in [0, 1] (N, 3, 228, 304)."""
        return self.compute(*self.inputs(ms.Tensor(rgb))).asnumpy()

    def weights(self) -> dict[str, ms.Parameter]:
        """Return the weights to validate and to save, by name: the averaged ones, if there are any."""
        if self.average is None:
            return self.parameters
        return dict(zip((parameter.name for parameter in self.average.own), self.average.averages, strict=True))

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Within this context the net has the weights that `weights` returns."""
        if self.average is None:
            yield
            return
        own = {name: parameter.asnumpy().copy() for name, parameter in self.parameters.items()}
        try:
            for name, average in self.weights().items():
                self.parameters[name].set_data(ms.Tensor(average.asnumpy()))
            yield
        finally:
            for name, array in own.items():
                self.parameters[name].set_data(ms.Tensor(array))

    def state(self) -> dict[str, ms.Parameter]:
        """Return every Parameter that a resume needs, by name."""
        state = {**self.parameters, **{parameter.name: parameter for parameter in self.optimizer.get_parameters()}}
        if self.average is not None:
            state |= {parameter.name: parameter for parameter in self.average.averages}
        if self.scaler is not None:
            state |= {"scale_value": self.scaler.scale_value, "counter": self.scaler.counter}
        return state

    def restore(self, saved: checkpoint.Checkpoint) -> None:
        """Load a Checkpoint of `state`. Raises CheckpointError if it is not a state of such a net."""
        state = self.state()
        if state.keys() != saved.arrays.keys():
            raise checkpoint.CheckpointError(f"{saved.path}: not a training state of {type(self.net).__name__}")
        for name, parameter in state.items():
            parameter.set_data(ms.Tensor(saved.arrays[name], parameter.dtype))
        self.step = saved.info["step"]

    def synchronise(self) -> None:
        """Copy rank 0's weights, optimizer, loss scale and step to every rank."""
        self.step = self.device.broadcast_int(self.step)
        self.device.broadcast(self.state().values())
