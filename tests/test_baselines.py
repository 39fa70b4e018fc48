"""What the nets are compared with, against closed forms in plain NumPy."""

import shutil

import numpy as np

from src.data import image, listing, plain
from src.scoring.baselines import BEST_SCALE, CONSTANT, MEAN_MAP, OWN_SCALES, Baselines


def test_the_constants_and_scales_are_the_best_of_their_kind(nyu):
    pairs = listing.list_test(nyu)
    loaded = [plain.load_test_pair(pair) for pair in pairs]
    rgb, depth_m = np.stack([one for one, _ in loaded]), np.stack([image.network_depth(one) for _, one in loaded])
    ours = Baselines(nyu, pairs, 2)
    maps = {**ours.before(rgb), **ours.after(depth_m)}
    assert list(maps) == [CONSTANT, MEAN_MAP, BEST_SCALE, OWN_SCALES]
    target = np.log(depth_m.clip(0.1, 10).astype(np.float64))
    source = plain.PlainPairs(nyu)
    train = [np.log(source.load(index)[1].clip(0.1, 10)) for index in range(len(source.names))]
    np.testing.assert_allclose(maps[MEAN_MAP][0, 0], np.mean(train, 0), atol=1e-5)

    def error(name, shift=0.0):
        return np.square(maps[name] + shift - target).mean()

    for name in (CONSTANT, BEST_SCALE):  # no common shift makes them better
        assert error(name) < min(error(name, 0.01), error(name, -0.01))
    np.testing.assert_allclose((maps[OWN_SCALES] - target).mean((1, 2, 3)), 0, atol=1e-5)
    assert error(OWN_SCALES) < error(BEST_SCALE) < error(MEAN_MAP)


def test_without_training_pairs_the_constant_is_left(nyu, tmp_path):
    shutil.copytree(nyu / "Test", tmp_path / "Test")
    pairs = listing.list_test(tmp_path)
    ours = Baselines(tmp_path, pairs, 1)
    assert list(ours.before(np.zeros((2, 3, 228, 304), np.float32))) == [CONSTANT]
    assert ours.after(np.ones((2, 1, 55, 74), np.float32)) == {}
