"""The rendered rooms: true geometry, true encodings, one seed one set."""

import numpy as np
import pytest
from PIL import Image

from src.errors import UserError
from tools import make_sample_nyu as sample


def test_a_wall_straight_ahead_has_one_depth():
    """Depth is along the optical axis: a fronto-parallel wall is flat, whatever the angle of the ray."""
    rays = sample.camera_rays(0, 0)
    depth, axis = sample.cast_box(np.array([2.0, 1.5, 0.5]), rays, np.zeros(3), np.array([4.0, 3.0, 4.5]), inside=True)
    ahead = axis == 2
    assert ahead[253, 325]
    np.testing.assert_allclose(depth[ahead], 4.0)


def test_the_floor_has_the_depth_of_the_pinhole_equation():
    rays = sample.camera_rays(0, 0)
    depth, _ = sample.cast_box(np.array([5.0, 1.5, 1.0]), rays, np.zeros(3), np.array([10.0, 30.0, 90.0]), inside=True)
    for row in (300, 400, 479):
        assert depth[row, 324] == pytest.approx(1.5 * 519.47 / (row - 252.74))


def test_points_of_a_turned_camera_lie_on_the_walls():
    origin, low, high = np.array([2.0, 1.4, 1.0]), np.zeros(3), np.array([4.0, 2.8, 5.0])
    rays = sample.camera_rays(0.4, -0.2)
    depth, axis = sample.cast_box(origin, rays, low, high, inside=True)
    points = np.take_along_axis(origin + depth[..., None] * rays, axis[..., None], -1)[..., 0]
    np.testing.assert_allclose(np.minimum(np.abs(points - low[axis]), np.abs(points - high[axis])), 0, atol=1e-9)
    optical_axis = np.array([np.sin(0.4) * np.cos(0.2), -np.sin(0.2), np.cos(0.4) * np.cos(0.2)])
    np.testing.assert_allclose(rays @ optical_axis, 1)


def test_a_box_hides_what_is_behind_and_is_missed_beside():
    rays = sample.camera_rays(0, 0)
    box = np.array([1.0, 0.0, 2.0]), np.array([3.0, 1.4, 3.0])
    depth, _ = sample.cast_box(np.array([2.0, 1.0, 0.0]), rays, *box, inside=False)
    assert depth[253, 325] == pytest.approx(2.0)
    assert np.isinf(depth[0, 0])


def test_encodings_are_those_of_nyu(nyu):
    train, test = nyu / "Train" / "sample_0001_out", nyu / "Test"
    assert Image.open(train / "1.jpg").format == "JPEG" and Image.open(train / "1.png").mode == "L"
    assert Image.open(test / "00000_colors.png").mode == "RGB" and Image.open(test / "00000_depth.png").mode == "I;16"
    millimetres = np.asarray(Image.open(test / "00000_depth.png"))
    assert millimetres.shape == (480, 640) and 300 < millimetres.min() < millimetres.max() < 10_000


def test_the_same_seed_gives_the_same_files(nyu, tmp_path):
    sample.make(tmp_path / "NYU", scenes=1, pairs_per_scene=1, test_pairs=1, seed=1)
    name = "Train/sample_0001_out/1.png"
    assert (tmp_path / "NYU" / name).read_bytes() == (nyu / name).read_bytes()


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UserError, match="not empty"):
        sample.make(tmp_path)
