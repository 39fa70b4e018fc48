"""A net of one convolution, and a StopRequest that no signal reaches, for tests of what stands around the nets.
forks.py loads it without pytest."""

import contextlib
from types import SimpleNamespace

from mindspore import nn

NOBODY_STOPS = SimpleNamespace(deferred=contextlib.nullcontext, signal_number=0)


class TinyCoarse(nn.Cell):
    """CoarseNet's signature on one convolution."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 12, 4, pad_mode="valid", has_bias=True)

    def construct(self, rgb):
        return self.conv(rgb)
