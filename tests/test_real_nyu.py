"""What the rendered rooms cannot tell: the project's conventions on real NYU data. DEPTHNET_NYU names its folder."""

import os

import numpy as np
import pytest

from src.data import image, listing, plain

FOLDER = os.environ.get("DEPTHNET_NYU")
pytestmark = pytest.mark.skipif(not FOLDER, reason="DEPTHNET_NYU is not set")


def test_pairs_are_listed_and_readable_in_metres():
    train, test = plain.PlainPairs(FOLDER), listing.list_test(FOLDER)
    medians = []
    for index in range(0, len(train.names), 50):
        rgb, depth_m = train.load(index)
        assert rgb.shape == (228, 304, 3) and depth_m.shape == (55, 74)
        medians.append(np.median(depth_m))
    for pair in test[::5]:
        rgb, depth_m = plain.load_test_pair(pair)
        assert rgb.shape == (3, 228, 304) and depth_m.shape == image.FULL_SIZE
        medians.append(np.median(depth_m))
    assert 1 < np.median(medians) < 4  # rooms, in metres
    assert min(medians) > 0.3 and max(medians) < 10


def test_depth_lies_over_the_picture():
    """Depth edges coincide with picture edges more often than when one of the two is flipped."""
    train, agreement = plain.PlainPairs(FOLDER), []
    for index in range(0, len(train.names), 50):
        rgb, depth_m = train.load(index)
        grey = image.resize(rgb.mean(2).astype(np.float32), image.DEPTH_SIZE)
        edges = [np.abs(np.diff(array, axis=1)).ravel() for array in (grey, np.log(depth_m), np.log(depth_m[:, ::-1]))]
        agreement.append(np.corrcoef(edges[0], edges[1])[0, 1] - np.corrcoef(edges[0], edges[2])[0, 1])
    assert np.mean(agreement) > 0.02
