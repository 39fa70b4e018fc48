"""Pairs of a NYU folder as the nets get them. DEPTHNET_NYU names a folder of the real set."""

import os
import shutil

import numpy as np
import pytest

from src.data import image, listing, plain
from src.data.plain import PlainPairs
from src.data.sampling import Schedule
from src.data_loader import TrainingData
from src.prediction.predict import DepthPredictor
from tests.conftest import NEEDS_NYU, REAL_NYU, as_it_is, paint, red_is_depth


def test_every_command_sees_a_larger_picture_in_the_same_way(tmp_path):
    """960x1280: what training, evaluation and prediction give the nets is one thing."""
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (960, 1280, 3), np.uint8)
    train, test = tmp_path / "NYU" / "Train" / "x_out", tmp_path / "NYU" / "Test"
    decoded = image.load_rgb(paint(train / "1.jpg", rgb, quality=95))
    paint(train / "1.png", np.full((960, 1280), 99, np.uint8))
    paint(test / "1_colors.png", decoded)
    paint(test / "1_depth.png", np.full((960, 1280), 999, np.uint16))
    trained = PlainPairs(tmp_path / "NYU").load(0)[0].transpose(2, 0, 1)
    evaluated = plain.load_test_pair(listing.list_test(tmp_path / "NYU")[0])[0]
    seen = []
    DepthPredictor(lambda one: seen.append(one) or red_is_depth(one), as_it_is)(decoded)
    np.testing.assert_array_equal(evaluated, seen[0][0])
    assert np.abs(trained / 255 - evaluated).max() < 0.51 / 255
    averaged = decoded.reshape(480, 2, 640, 2, 3).mean((1, 3))[12:468, 16:624].reshape(228, 2, 304, 2, 3).mean((1, 3))
    assert np.abs(averaged.transpose(2, 0, 1) / 255 - evaluated).max() < 1.5 / 255


def test_the_digest_of_the_data_changes_with_any_file(nyu, tmp_path):
    folder = shutil.copytree(nyu, tmp_path / "NYU")
    before = PlainPairs(folder).data_digest()
    assert before == PlainPairs(folder).data_digest()
    for name in ("sample_0002_out/3.jpg", "sample_0002_out/3.png"):
        path = folder / "Train" / name
        status = path.stat()
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        assert PlainPairs(folder).data_digest() != before
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert PlainPairs(folder).data_digest() == before


def test_samples_are_those_that_are_asked_for(nyu, tmp_path):
    folder = shutil.copytree(nyu, tmp_path / "NYU")
    (folder / "Train" / "sample_0001_out" / "2.jpg").write_bytes(b"no picture")
    source = PlainPairs(folder)
    with pytest.raises(image.ImageError, match=r"2\.jpg: broken image"):
        list(source.samples([5, 1, 0], 2, False))
    found = list(source.samples([5, 1, 0], 2, skip_bad=True))
    assert [index for index, _, _ in found] == [5, 0]
    for index, rgb, depth_m in found:
        pair = source.pairs[index]
        np.testing.assert_array_equal(rgb, image.network_pixels(image.load_rgb(pair.rgb)))
        metres = image.network_depth(image.load_train_depth(pair.depth))[0]
        np.testing.assert_allclose(depth_m, metres, rtol=1e-6)
        for ours, theirs in zip(source.load(index), (rgb, depth_m), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_a_depth_map_is_decoded_once_as_far_as_targets_are_kept(nyu, tmp_path, monkeypatch):
    folder = shutil.copytree(nyu, tmp_path / "NYU")
    schedule = Schedule(8, 4, seed=1)
    expected = list(TrainingData(PlainPairs(nyu), schedule).batches(2, 4))
    data = TrainingData(PlainPairs(folder), schedule)
    list(data.batches(0, 2))
    forgetful = []
    for most in (7 * 55 * 74 * 4, 7 * 55 * 74 * 4 - 1):
        monkeypatch.setattr(plain, "KEPT_BYTES", most)
        forgetful.append(TrainingData(PlainPairs(folder), schedule, workers=1))
        list(forgetful[-1].batches(0, 2))
    for path in (folder / "Train").glob("*/*.png"):
        path.unlink()
    for ours, theirs in zip(data.batches(2, 4), expected, strict=True):
        for array, wanted in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(array, wanted)
    for one in forgetful:
        with pytest.raises(image.ImageError, match="no such file"):
            list(one.batches(2, 4))


@NEEDS_NYU
def test_pairs_are_listed_and_readable_in_metres():
    train, test = PlainPairs(REAL_NYU), listing.list_test(REAL_NYU)
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


@NEEDS_NYU
def test_depth_lies_over_the_picture():
    """Depth edges coincide with picture edges more often than when one of the two is flipped."""
    train, agreement = PlainPairs(REAL_NYU), []
    for index in range(0, len(train.names), 50):
        rgb, depth_m = train.load(index)
        grey = image.resize(rgb.mean(2).astype(np.float32), image.DEPTH_SIZE)
        edges = [np.abs(np.diff(array, axis=1)).ravel() for array in (grey, np.log(depth_m), np.log(depth_m[:, ::-1]))]
        agreement.append(np.corrcoef(edges[0], edges[1])[0, 1] - np.corrcoef(edges[0], edges[2])[0, 1])
    assert np.mean(agreement) > 0.02
