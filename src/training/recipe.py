"""What a Recipe does to the weights: learning rates, Adam, weight decay and averaging."""

import math

import mindspore as ms
import numpy as np
from mindspore import nn, ops
from mindspore.nn.learning_rate_schedule import LearningRateSchedule

from src.training.options import Recipe

AVERAGE_INTERVAL = 8  # steps from one update of the averaged weights to the next


class Rate(LearningRateSchedule):
    """The learning rate as a function of the step: warm-up, then constant or half a cosine."""

    # Not nn.WarmUpLR, which starts at 0, times nn.CosineDecayLR, which rounds otherwise: saved runs resume bit for bit.

    def __init__(self, learning_rate: float, recipe: Recipe, last_step: int) -> None:
        super().__init__()
        self.learning_rate, self.cosine = learning_rate, recipe.lr_schedule == "cosine"
        self.warmup_steps, self.last_step = max(recipe.warmup_steps, 1), max(last_step, 1)

    def construct(self, global_step: ms.Tensor) -> ms.Tensor:
        step = global_step.astype(ms.float32)
        rate = self.learning_rate * ops.minimum((step + 1) / self.warmup_steps, 1)
        if self.cosine:
            rate = rate * (0.5 + 0.5 * ops.cos(math.pi * ops.minimum(step / self.last_step, 1)))
        return rate


class Adam(nn.Adam):
    """Adam that can skip an update without a branch in the graph. On Ascend a graph with a branch does not compile if
    the process sees fewer than twelve cores, and the host waits once more per step (MindSpore 2.10)."""

    beta1_power: ms.Parameter
    beta2_power: ms.Parameter

    @ms.jit
    def construct(self, gradients: tuple[ms.Tensor, ...], applied: ms.Tensor | None = None) -> bool:
        """Update the weights. If `applied` (bool scalar) is False, all weights, moments and counts stay the same."""
        rates = self.get_lr()
        beta1, beta2, count = self.beta1, self.beta2, self.global_step_increase_tensor
        if applied is not None:
            beta1, beta2 = ops.where(applied, beta1, 1.0), ops.where(applied, beta2, 1.0)
            count = applied.astype(ms.int32).reshape((1,))
        self.assignadd(self.global_step, count)
        power1, power2 = self.beta1_power * beta1, self.beta2_power * beta2
        self.beta1_power, self.beta2_power = power1, power2
        if applied is not None:
            power1 = ops.where(applied, power1, 0.0)  # before the first update it is 1, and Adam divides by 1 - power1
        for index, gradient in enumerate(gradients):
            rate = rates[index] if self.is_group_lr else rates
            if applied is not None:  # moment * 1 + 0 * (1 - 1), weight - 0 * moment
                gradient, rate = ops.where(applied, gradient, 0.0), ops.where(applied, rate, 0.0)
            self.opt(
                self.parameters[index],
                self.moment1[index],
                self.moment2[index],
                power1,
                power2,
                rate,
                beta1,
                beta2,
                self.eps,
                gradient,
            )
        return True


def adam(net: nn.Cell, learning_rate: float, recipe: Recipe, last_step: int) -> Adam:
    """Return the optimizer of a stage.

    Args:
        net: the net to train; its dense layers are named fc....
        learning_rate: of all other layers, after the warm-up.
        recipe: the schedule, and the dense layers' share of the learning rate.
        last_step: the step at which the cosine schedule reaches 0.
    """
    if recipe.is_constant:
        return Adam(net.trainable_params(), learning_rate)
    groups: dict[float, list[ms.Parameter]] = {scale: [] for scale in (1.0, recipe.dense_lr_scale)}
    for parameter in net.trainable_params():
        groups[recipe.lr_scale(parameter.name)].append(parameter)
    return Adam(
        [
            {"params": parameters, "lr": Rate(learning_rate * scale, recipe, last_step)}
            for scale, parameters in groups.items()
            if parameters
        ]
    )


class Decay(nn.Cell):
    """Decoupled weight decay. fc13, which starts as the identity, decays towards the identity."""

    def __init__(self, net: nn.Cell, learning_rate: float, recipe: Recipe, last_step: int) -> None:
        super().__init__(auto_prefix=False)
        weights = [parameter for parameter in net.trainable_params() if parameter.ndim > 1]
        self.weights = ms.ParameterTuple(weights)
        self.rates = [Rate(learning_rate * recipe.lr_scale(weight.name), recipe, last_step) for weight in weights]
        self.towards = [
            ms.Tensor(np.eye(len(weight), dtype=np.float32)) if weight.name == "fc13.weight" else 0.0
            for weight in weights
        ]
        self.amount = recipe.weight_decay

    def construct(self, global_step: ms.Tensor, applied: ms.Tensor | None = None) -> bool:
        """Decay the weights for step `global_step`, unless `applied` (bool scalar) is False."""
        for weight, rate, towards in zip(self.weights, self.rates, self.towards):  # noqa: B905 (no strict in a graph)
            share = self.amount * rate(global_step)
            if applied is not None:
                share = ops.where(applied, share, 0.0)
            ops.assign_sub(weight, share * (weight - towards))
        return True


def clipped(gradients: tuple[ms.Tensor, ...], largest_norm: float) -> tuple[ms.Tensor, ...]:
    """Return the gradients, scaled down where the norm of all together is larger (Pascanu et al., 2013). The numbers
    are those of ops.clip_by_global_norm bit for bit, which MindSpore is about to remove."""
    largest = ms.Tensor([largest_norm], ms.float32)
    squares = [ops.square(gradient).sum().reshape((1,)) for gradient in gradients]
    norm = ops.sqrt(ops.addn(squares))
    norm = ops.where(norm >= largest, norm, largest)
    return tuple([gradient * largest / norm for gradient in gradients])


class Average(nn.Cell):
    """An exponential moving average of a net's weights (Polyak and Juditsky, 1992)."""

    def __init__(self, net: nn.Cell, decay: float) -> None:
        super().__init__(auto_prefix=False)
        self.decay = decay
        self.own = ms.ParameterTuple(net.trainable_params())
        self.averages = self.own.clone(prefix="ema", init="same")

    def update(self, step: int) -> None:
        """Update the average with the weights after step `step` (from 1). They count more in the first steps."""
        if step == 1:
            self(ms.Tensor(1.0, ms.float32))
        elif step % AVERAGE_INTERVAL == 0:
            self(ms.Tensor(1 - min(self.decay, (1 + step) / (10 + step)) ** AVERAGE_INTERVAL, ms.float32))

    @ms.jit
    def construct(self, share: ms.Tensor) -> ms.Tensor:
        for average, own in zip(self.averages, self.own):  # noqa: B905
            ops.assign_add(average, share * (own - average))
        return share
