"""What the nets are compared with, against closed forms in plain NumPy."""

import shutil

import numpy as np
import pytest

from src.base.errors import UserError
from src.data import image, listing, plain
from src.data.plain import PlainPairs
from src.scoring import baselines
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


@pytest.mark.parametrize(
    ("damage", "named"), [("empty", "no image pairs"), ("partner", "has no "), ("broken picture", "broken image")]
)
def test_baselines_that_cannot_be_fitted_are_a_mistake(nyu, tmp_path, damage, named):
    data = shutil.copytree(nyu, tmp_path / "NYU")
    depth = next((data / "Train").glob("*/*.png"))
    if damage == "broken picture":
        depth.write_bytes(b"no picture")
    elif damage == "partner":
        depth.unlink()
    else:
        shutil.rmtree(data / "Train")
        (data / "Train").mkdir()
    with pytest.raises(UserError, match=named):
        baselines.Baselines(data, listing.list_test(data), 1)


def test_mean_log_depth_is_the_mean_over_measured_pixels(nyu):
    source = PlainPairs(nyu)
    targets = np.stack([image.network_depth(image.load_train_depth(pair.depth))[0] for pair in source.pairs])
    mean = baselines.mean_log_depth(source.depth_maps(range(8), 2, False))
    np.testing.assert_allclose(mean[0], np.log(targets.astype(np.float64)).mean(0), rtol=1e-5)
    holes = targets.copy()
    holes[0, :9], holes[1:, 9], holes[:, 10] = 0, 0, 0
    mean = baselines.mean_log_depth(holes)
    np.testing.assert_allclose(mean[0, :9], np.log(targets[1:, :9].astype(np.float64)).mean(0), rtol=1e-5)
    np.testing.assert_allclose(mean[0, 9], np.log(targets[0, 9]), rtol=1e-5)  # of the one that has it
    assert (mean[0, 10] == 0).all()


def test_the_mean_map_is_of_what_can_be_read(nyu, tmp_path):
    source = plain.PlainPairs(shutil.copytree(nyu, tmp_path / "NYU"))
    source.pairs[5].depth.write_bytes(b"no picture")
    with pytest.raises(image.ImageError, match=r"\.png: broken image"):
        baselines.mean_map(source, 2)
    others = [source.load(index)[1].clip(0.1, 10) for index in range(len(source.names)) if index != 5]
    np.testing.assert_allclose(baselines.mean_map(source, 2, skip_bad=True)[0], np.log(others).mean(0), rtol=1e-5)
