"""Twins of the networks and of their training loss in PyTorch, written from the paper and the design table: what the
tests compare with, and what the benchmarks time beside."""

import torch
from torch.nn import functional as F


def weights(net):
    return {p.name: torch.from_numpy(p.asnumpy().copy()) for p in net.get_parameters()}


def conv(w, name, x, **options):
    return F.conv2d(x, w[f"{name}.weight"], w.get(f"{name}.bias"), **options)


def pool(x):
    return F.max_pool2d(F.relu(x), 2)


def coarse_twin(w, rgb):
    x1 = pool(conv(w, "conv1", rgb, padding=3))
    x2 = pool(conv(w, "conv2", x1, padding=(1, 2)))
    x3 = pool(conv(w, "conv3", x2, padding=1))
    x = pool(conv(w, "conv4", x3, padding=1))
    assert x2.shape[2:] == (56, 76) and x3.shape[2:] == (28, 38) and x.shape[2:] == (14, 19)
    for _ in range(3):
        x = F.relu(conv(w, "conv5", x, padding=1))
    x = torch.cat((x3, F.relu(F.conv_transpose2d(x, w["deconv6.weight"], w["deconv6.bias"], stride=2))), 1)
    x = F.relu(conv(w, "conv7", x, padding=1))
    x = torch.cat((x2, F.relu(F.conv_transpose2d(x, w["deconv8.weight"], w["deconv8.bias"], stride=2))), 1)
    x = F.relu(conv(w, "conv9", F.pad(x, (0, 0, 1, 0))))
    for name in ("conv10", "conv11", "conv12"):
        x = conv(w, name, x, padding=1)
    return F.linear(x.flatten(1), w["fc13.weight"], w["fc13.bias"]).view(-1, 1, 55, 74)


def paper_twin(w, rgb, kept=None):
    x = pool(conv(w, "conv1", rgb, stride=4))
    x = pool(conv(w, "conv2", x, padding=2))
    x = F.relu(conv(w, "conv3", x, padding=1))
    x = F.relu(conv(w, "conv4", x, padding=1))
    x = F.relu(conv(w, "conv5", x, stride=2))
    assert x.shape[1:] == (256, 6, 8)
    x = F.relu(F.linear(x.flatten(1), w["fc6.weight"], w["fc6.bias"]))
    if kept is not None:
        x = x * kept * 2
    return F.linear(x, w["fc7.weight"], w["fc7.bias"]).view(-1, 1, 55, 74)


def fine_twin(w, rgb, coarse_log_depth):
    x = torch.cat((pool(conv(w, "conv1", rgb, stride=2)), coarse_log_depth), 1)
    return conv(w, "conv3", F.relu(conv(w, "conv2", x, padding=2)), padding=2)


def composite_loss(log_depth, depth_m):
    """The training loss, over (N, 1, 55, 74) log depth and metres, 0 where not measured."""
    measured = (depth_m > 0).to(log_depth.dtype)
    d = (depth_m.clamp(0.1, 10).log() - log_depth) * measured
    count = measured.sum((1, 2, 3)).clamp(1)
    down = d.diff(dim=2) * measured[:, :, 1:] * measured[:, :, :-1]
    right = d.diff(dim=3) * measured[..., 1:] * measured[..., :-1]
    absolute = sum(part.abs().sum((1, 2, 3)) for part in (d, down, right))
    return ((absolute + d.square().sum((1, 2, 3))) / count - 0.5 * (d.sum((1, 2, 3)) / count).square()).mean()


TWINS = {"CoarseNet": coarse_twin, "PaperCoarseNet": paper_twin, "FineNet": fine_twin}
