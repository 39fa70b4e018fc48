"""A net with its optimizer, averaged weights and loss scale, at some step."""

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
    """What a step has to tell: its number from 1, this rank's loss and the mean over the ranks, whether the update was
    applied, the sum over the ranks of what each said of itself, and how many updates came before (an overflow makes
    none)."""

    step: int
    own_loss: float
    loss: float
    applied: bool
    votes: list[float]
    updates: int = 0


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
        compute = in_precision(net, amp_level)
        if amp_level != "O0":
            self.scaler = amp.DynamicLossScaler(LOSS_SCALE, LOSS_SCALE_FACTOR, LOSS_SCALE_WINDOW)
        self.compute = compute
        decay = Decay(net, learning_rate, recipe, last_step) if recipe.weight_decay else None
        self.train_step = TrainStep(
            compute, LOSSES[loss](), self.optimizer, self.scaler, device.ranks, decay, recipe.clip_norm
        )

    def launch(
        self, rgb: Pixels, depth_m: Floats, *rest: Array, votes: Sequence[float] = ()
    ) -> Callable[[], StepResult]:
        """Start a step on one batch of arrays, RGB as uint8; `votes` are a few numbers to be summed over the ranks.

        Returns a function that waits for the StepResult: until it is called, the device works and the host is free.
        The arrays are the device's until then: they may be let go of, not written to.
        """
        # from_numpy copies nothing; ms.Tensor would copy 6.7 MB of RGB a batch of 32.
        pixels, target, *others = tensors = [ms.Tensor.from_numpy(array) for array in (rgb, depth_m, *rest)]
        inputs = self.inputs(unit_range(pixels), *others)
        if self.scaler is not None and self.device.keeps_overflows:
            clear_overflows()  # the frozen net's, a validation's: no fault of this step's gradients
        result = self.train_step(ms.Tensor([0, *votes], ms.float32), target, *inputs)
        self.step += 1
        if self.average is not None:
            self.average.update(self.step)
        step, ranks = self.step, self.device.ranks

        def wait() -> StepResult:
            own_loss, updates, loss, overflows, _, *votes = result.asnumpy().tolist()
            tensors.clear()  # the device has read them: till here this function keeps the arrays
            return StepResult(
                step, own_loss, loss / ranks if ranks > 1 else own_loss, overflows < 0.5, votes, int(updates)
            )

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
