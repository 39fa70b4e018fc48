"""What the nets are compared with, against closed forms in plain NumPy and SciPy."""

import os

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from src import baselines, data_loader, image
from src.baselines import BEST_SCALE, CONSTANT, KERNEL, MEAN_MAP, OWN_SCALES, Baselines, KernelRegression
from src.data_loader import PlainPairs


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "depthnet"


def test_the_constants_and_scales_are_the_best_of_their_kind(nyu, cache):
    pairs = data_loader.list_test(nyu)
    loaded = [data_loader.load_test_pair(pair) for pair in pairs]
    rgb, depth_m = np.stack([one for one, _ in loaded]), np.stack([image.network_depth(one) for _, one in loaded])
    ours = Baselines(nyu, pairs, 2)
    maps = {**ours.before(rgb), **ours.after(depth_m)}
    assert list(maps) == [CONSTANT, MEAN_MAP, BEST_SCALE, KERNEL, OWN_SCALES]
    target = np.log(depth_m.clip(0.1, 10).astype(np.float64))
    train = [np.log(data_loader.load_train_pair(pair)[1].clip(0.1, 10)) for pair in data_loader.list_train(nyu)]
    np.testing.assert_allclose(maps[MEAN_MAP][0, 0], np.mean(train, 0), atol=1e-5)

    def error(name, shift=0.0):
        return np.square(maps[name] + shift - target).mean()

    for name in (CONSTANT, BEST_SCALE):  # no common shift makes them better
        assert error(name) < min(error(name, 0.01), error(name, -0.01))
    np.testing.assert_allclose((maps[OWN_SCALES] - target).mean((1, 2, 3)), 0, atol=1e-5)
    assert error(OWN_SCALES) < error(BEST_SCALE) < error(MEAN_MAP)


def test_the_kernel_regression_is_one(nyu, cache):
    """Against the textbook's formula with SciPy's distances."""
    source = PlainPairs(nyu)
    samples = list(source.samples(range(8), 1, False))
    pictures = [one for _, rgb, _ in samples for one in (rgb, np.ascontiguousarray(rgb[:, ::-1]))]
    targets = [one for _, _, depth_m in samples for one in (depth_m, depth_m[:, ::-1])]
    rows = np.array([baselines.features(picture) for picture in pictures], np.float64)
    assert rows.shape == (16, 1884)
    scale = rows.std(0) + 0.01 * rows.std(0).mean()
    rows = (rows - rows.mean(0)) / scale
    distances = cdist(rows, rows, "sqeuclidean")
    kernel = np.exp(-distances / np.median(distances))
    logs = np.log(np.array(targets)).reshape(16, -1)
    fitted = kernel @ np.linalg.solve(kernel + baselines.RIDGE * np.eye(16), logs - logs.mean(0)) + logs.mean(0)
    rgb = np.stack(pictures[::2]).transpose(0, 3, 1, 2) / np.float32(255)
    maps = fitted.reshape(8, 2, 55, 74)
    expected = (maps[:, 0] + maps[:, 1, :, ::-1]) / 2
    for _ in range(2):  # fitted, and from the cache
        ours = KernelRegression.of(source, range(8), 1)(rgb)
        np.testing.assert_allclose(ours[:, 0], expected, atol=1e-4)
        (file,) = cache.iterdir()
        file.touch()


def test_a_cache_that_is_damaged_or_cannot_be_written_is_done_without(nyu, cache):
    source = PlainPairs(nyu)
    expected = KernelRegression.of(source, range(8), 1).weights
    (file,) = cache.iterdir()
    for content in (b"", file.read_bytes()[:1000], b"PK\3\4" + bytes(100)):
        file.write_bytes(content)
        np.testing.assert_array_equal(KernelRegression.of(source, range(8), 1).weights, expected)
    os.environ["XDG_CACHE_HOME"] = "/proc/nowhere"
    np.testing.assert_array_equal(KernelRegression.of(source, range(8), 1).weights, expected)
