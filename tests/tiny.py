"""A net of one convolution, for tests of what stands around the nets. forks.py loads it without pytest."""

from mindspore import nn


class TinyCoarse(nn.Cell):
    """CoarseNet's signature on one convolution."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 12, 4, pad_mode="valid", has_bias=True)

    def construct(self, rgb):
        return self.conv(rgb)
