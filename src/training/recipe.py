"""How the weights of a stage move: rates, decay, clipping, averaging. By default as the reference's: Adam, one rate."""

import math
from dataclasses import dataclass, fields
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn, ops
from mindspore.nn.learning_rate_schedule import LearningRateSchedule

AVERAGE_INTERVAL = 8  # steps from one update of the averaged weights to the next


@dataclass(frozen=True)
class Recipe:
    """What may differ from Adam at a constant rate.

    Args:
        schedule: "constant", or "cosine": from the rate to 0 at the stage's last step (Loshchilov and Hutter, 2017).
        warmup_steps: steps in which the rate grows to its value.
        dense_lr_scale: of the dense layers' rate to the others'; one step moves an output of theirs by up to the rate
            times the sum of thousands of inputs.
        weight_decay: decoupled, as in AdamW (Loshchilov and Hutter, 2019), of all weights but the biases; a layer that
            starts as the identity decays towards it.
        clip_norm: the largest norm of all gradients together; 0 is any.
        ema: how much of the averaged weights stays at a step; 0 is no averaging.
    """

    schedule: str = "constant"
    warmup_steps: int = 0
    dense_lr_scale: float = 1.0
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    ema: float = 0.0

    def changes(self) -> dict[str, Any]:
        """The settings that are not the reference's, by name."""
        return {one.name: getattr(self, one.name) for one in fields(self) if getattr(self, one.name) != one.default}

    def lr_scale(self, parameter: ms.Parameter) -> float:
        """What this parameter's learning rate is multiplied by."""
        return self.dense_lr_scale if parameter.name.startswith("fc") else 1.0

    def is_constant(self) -> bool:
        """Whether every weight moves at one rate from the first step to the last."""
        return self.schedule == "constant" and not self.warmup_steps and self.dense_lr_scale == 1


class Rate(LearningRateSchedule):
    """The learning rate as a function of the step: warm-up, then constant or half a cosine."""

    def __init__(self, learning_rate: float, recipe: Recipe, last_step: int) -> None:
        super().__init__()
        self.learning_rate, self.cosine = learning_rate, recipe.schedule == "cosine"
        self.warmup_steps, self.last_step = max(recipe.warmup_steps, 1), max(last_step, 1)

    def construct(self, global_step: ms.Tensor) -> ms.Tensor:
        step = global_step.astype(ms.float32)
        rate = self.learning_rate * ops.minimum((step + 1) / self.warmup_steps, 1)
        if self.cosine:
            rate = rate * (0.5 + 0.5 * ops.cos(math.pi * ops.minimum(step / self.last_step, 1)))
        return rate


class Adam(nn.Adam):
    """Adam that can leave an update out without a branch: on Ascend a graph with a branch does not compile where the
    process sees fewer than twelve cores, and makes the host wait once more a step (MindSpore 2.10)."""

    beta1_power: ms.Parameter
    beta2_power: ms.Parameter

    @ms.jit
    def construct(self, gradients: tuple[ms.Tensor, ...], applied: ms.Tensor | None = None) -> bool:
        """One update. Where `applied` (bool, no dimensions) is False, every weight, moment and count stays."""
        rates = self.get_lr()
        beta1, beta2, one = self.beta1, self.beta2, self.global_step_increase_tensor
        if applied is not None:
            beta1, beta2 = ops.where(applied, beta1, 1.0), ops.where(applied, beta2, 1.0)
            one = applied.astype(ms.int32).reshape((1,))
        self.assignadd(self.global_step, one)
        power1, power2 = self.beta1_power * beta1, self.beta2_power * beta2
        self.beta1_power, self.beta2_power = power1, power2
        if applied is not None:
            power1 = ops.where(applied, power1, 0.0)  # before the first update it is 1: Adam divides by 1 - power1
        for place, gradient in enumerate(gradients):
            rate = rates[place] if self.is_group_lr else rates
            if applied is not None:  # moment * 1 + 0 * (1 - 1), weight - 0 * moment
                gradient, rate = ops.where(applied, gradient, 0.0), ops.where(applied, rate, 0.0)
            self.opt(
                self.parameters[place],
                self.moment1[place],
                self.moment2[place],
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
    """The optimizer of a stage."""
    if recipe.is_constant():
        return Adam(net.trainable_params(), learning_rate)
    groups: dict[float, list[ms.Parameter]] = {scale: [] for scale in (1.0, recipe.dense_lr_scale)}
    for parameter in net.trainable_params():
        groups[recipe.lr_scale(parameter)].append(parameter)
    return Adam(
        [
            {"params": parameters, "lr": Rate(learning_rate * scale, recipe, last_step)}
            for scale, parameters in groups.items()
            if parameters
        ]
    )


class Decay(nn.Cell):
    """Takes a share of every weight away; that of fc13, the identity at its start, of its difference from that."""

    def __init__(self, net: nn.Cell, learning_rate: float, recipe: Recipe, last_step: int) -> None:
        super().__init__(auto_prefix=False)
        weights = [parameter for parameter in net.trainable_params() if parameter.ndim > 1]
        self.weights = ms.ParameterTuple(weights)
        self.rates = [Rate(learning_rate * recipe.lr_scale(weight), recipe, last_step) for weight in weights]
        self.towards = [
            ms.Tensor(np.eye(len(weight), dtype=np.float32)) if weight.name == "fc13.weight" else 0.0
            for weight in weights
        ]
        self.amount = recipe.weight_decay

    def construct(self, global_step: ms.Tensor, applied: ms.Tensor | None = None) -> bool:
        """Where `applied` (bool, no dimensions) is False, the weights stay."""
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
    """A copy of a net's weights that follows them slowly (Polyak and Juditsky, 1992)."""

    def __init__(self, net: nn.Cell, decay: float) -> None:
        super().__init__(auto_prefix=False)
        self.decay = decay
        self.own = ms.ParameterTuple(net.trainable_params())
        self.averages = self.own.clone(prefix="ema", init="same")

    def update(self, step: int) -> None:
        """Take in the weights after step `step` (from 1); the younger the average, the more they count."""
        if step == 1:
            self(ms.Tensor(1.0, ms.float32))
        elif step % AVERAGE_INTERVAL == 0:
            self(ms.Tensor(1 - min(self.decay, (1 + step) / (10 + step)) ** AVERAGE_INTERVAL, ms.float32))

    @ms.jit
    def construct(self, share: ms.Tensor) -> ms.Tensor:
        for average, own in zip(self.averages, self.own):  # noqa: B905
            ops.assign_add(average, share * (own - average))
        return share
