"""The networks of Eigen, Puhrsch and Fergus, "Depth Map Prediction from a Single Image using a
Multi-Scale Deep Network" (NIPS 2014, arXiv 1406.2283).

RGB is float32 (N, 3, 228, 304) in [0, 1]; every depth map is (N, 1, 55, 74) **log depth**, the natural
logarithm of metres.
"""

import math

import mindspore as ms
import numpy as np
from mindspore import nn, ops
from mindspore.common.initializer import HeNormal, Initializer, Normal

RGB_SHAPE = (3, 228, 304)
DEPTH_SHAPE = (1, 55, 74)
DEPTH_CELLS = math.prod(DEPTH_SHAPE)


def _conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    padding: int | tuple[int, ...] | None = None,
    stride: int = 1,
    init: Initializer | None = None,
) -> nn.Conv2d:
    """Return a convolution with bias, He initialisation (He et al., ICCV 2015), and "same" padding unless given."""
    pad = {"pad_mode": "same"} if padding is None else {"pad_mode": "pad", "padding": padding}
    init = HeNormal(mode="fan_in", nonlinearity="relu") if init is None else init
    return nn.Conv2d(
        in_channels, out_channels, kernel_size, stride, has_bias=True, weight_init=init, bias_init="zeros", **pad
    )


def _upsample(in_channels: int, out_channels: int) -> nn.Conv2dTranspose:
    """Return a transposed convolution that doubles height and width. Every output pixel has `in_channels` inputs."""
    return nn.Conv2dTranspose(
        in_channels,
        out_channels,
        2,
        2,
        pad_mode="valid",
        has_bias=True,
        weight_init=Normal(math.sqrt(2 / in_channels)),
        bias_init="zeros",
    )


def _dense(in_channels: int, out_channels: int, weight_init: Initializer | ms.Tensor) -> nn.Dense:
    return nn.Dense(in_channels, out_channels, weight_init=weight_init, bias_init="zeros")


class CoarseNet(nn.Cell):
    """The model zoo's coarse net: an encoder, two skip connections and one dense layer (21,899,723 parameters).

    `conv5` is one set of weights applied three times. The dense layer starts as the identity, so that the
    convolutions learn from the first step.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = _conv(3, 64, 7)
        self.conv2 = _conv(64, 128, 5, padding=(1, 1, 2, 2))
        self.conv3 = _conv(128, 256, 3)
        self.conv4 = _conv(256, 512, 3)
        self.conv5 = _conv(512, 512, 3)
        self.deconv6 = _upsample(512, 256)
        self.conv7 = _conv(512, 128, 3)
        self.deconv8 = _upsample(128, 64)
        self.conv9 = _conv(192, 64, 3, padding=(1, 0, 0, 0))
        # No activation follows these three layers, so their initialisation preserves variance (LeCun et al., 1998).
        self.conv10 = _conv(64, 32, 3, init=Normal(math.sqrt(1 / (9 * 64))))
        self.conv11 = _conv(32, 16, 3, init=Normal(math.sqrt(1 / (9 * 32))))
        # A tenth of that, so that training starts near log depth 0 (1 m) for every seed.
        self.conv12 = _conv(16, 1, 3, init=Normal(0.1 * math.sqrt(1 / (9 * 16))))
        self.fc13 = _dense(DEPTH_CELLS, DEPTH_CELLS, ms.Tensor(np.eye(DEPTH_CELLS, dtype=np.float32)))
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2, 2)
        # Mixed precision O1 rewrites `construct`, which then cannot use ops.concat or constants of this module.
        self.concat, self.depth_shape = ops.Concat(1), (-1, *DEPTH_SHAPE)

    def construct(self, rgb: ms.Tensor) -> ms.Tensor:
        """(N, 3, 228, 304) RGB -> (N, 1, 55, 74) log depth."""
        x1 = self.pool(self.relu(self.conv1(rgb)))
        x2 = self.pool(self.relu(self.conv2(x1)))
        x3 = self.pool(self.relu(self.conv3(x2)))
        x = self.pool(self.relu(self.conv4(x3)))
        x = self.relu(self.conv5(x))
        x = self.relu(self.conv5(x))
        x = self.relu(self.conv5(x))
        x = self.concat((x3, self.relu(self.deconv6(x))))
        x = self.relu(self.conv7(x))
        x = self.concat((x2, self.relu(self.deconv8(x))))
        x = self.relu(self.conv9(x))
        x = self.conv12(self.conv11(self.conv10(x))).flatten(start_dim=1)
        return self.fc13(x).reshape(self.depth_shape)


class PaperCoarseNet(nn.Cell):
    """The paper's own coarse net (section 3.1, figure 1), with two dense layers (70,757,734 parameters).

    The caller draws the dropout mask (0.5 after the first dense layer) and passes it to `construct` while training, so
    that the mask is a function of seed, epoch and sample.
    """

    dropout_units = 4096
    dropout_rate = 0.5

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = _conv(3, 96, 11, padding=0, stride=4)
        self.conv2 = _conv(96, 256, 5, padding=2)
        self.conv3 = _conv(256, 384, 3)
        self.conv4 = _conv(384, 384, 3)
        self.conv5 = _conv(384, 256, 3, padding=0, stride=2)
        self.fc6 = _dense(256 * 6 * 8, self.dropout_units, Normal(math.sqrt(2 / (256 * 6 * 8))))
        # Small, so that training starts near the bias for every seed: the 4,096 inputs are all non-negative.
        self.fc7 = _dense(self.dropout_units, DEPTH_CELLS, Normal(0.001))
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2, 2)
        self.depth_shape = (-1, *DEPTH_SHAPE)  # not a constant of this module: see CoarseNet

    def construct(self, rgb: ms.Tensor, kept_units: ms.Tensor | None = None) -> ms.Tensor:
        """(N, 3, 228, 304) RGB, and while training (N, 4096) of 0 and 1 -> (N, 1, 55, 74) log depth."""
        x = self.relu(self.fc6(self.features(rgb)))
        if kept_units is not None:
            x = x * kept_units / (1 - self.dropout_rate)
        return self.fc7(x).reshape(self.depth_shape)

    def features(self, rgb: ms.Tensor) -> ms.Tensor:
        """(N, 3, 228, 304) RGB -> (N, 12288), the input of the dense layers."""
        x = self.pool(self.relu(self.conv1(rgb)))
        x = self.pool(self.relu(self.conv2(x)))
        x = self.relu(self.conv3(x))
        x = self.relu(self.conv4(x))
        x = self.relu(self.conv5(x))
        return x.reshape((-1, 256 * 6 * 8))


class FineNet(nn.Cell):
    """The fine net (section 3.2): local detail on top of the coarse prediction (119,309 parameters, no biases)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 63, 9, 2, pad_mode="valid", weight_init=Normal(0.01))
        self.conv2 = nn.Conv2d(64, 64, 5, pad_mode="pad", padding=2, weight_init=Normal(0.01))
        self.conv3 = nn.Conv2d(64, 1, 5, pad_mode="pad", padding=2, weight_init=Normal(0.01))
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2, 2)
        self.concat = ops.Concat(1)

    def start_as_identity(self) -> None:
        """Initialise FineNet to return its coarse input: two channels of conv2 pass the positive and the negative part
        through the ReLU, and conv3 combines them. The other channels of conv3 start at 0."""
        conv2, conv3 = self.conv2.weight.asnumpy().copy(), np.zeros(self.conv3.weight.shape, np.float32)
        for channel, sign in enumerate((1, -1)):
            conv2[channel] = 0
            conv2[channel, 63, 2, 2] = conv3[0, channel, 2, 2] = sign
        self.conv2.weight.set_data(ms.Tensor(conv2))
        self.conv3.weight.set_data(ms.Tensor(conv3))

    def construct(self, rgb: ms.Tensor, coarse_log_depth: ms.Tensor) -> ms.Tensor:
        """(N, 3, 228, 304) RGB and (N, 1, 55, 74) coarse log depth -> (N, 1, 55, 74) log depth."""
        x = self.pool(self.relu(self.conv1(rgb)))
        x = self.concat((x, coarse_log_depth))
        return self.conv3(self.relu(self.conv2(x)))


COARSE_NETS: dict[str, type[CoarseNet] | type[PaperCoarseNet]] = {"default": CoarseNet, "paper": PaperCoarseNet}
