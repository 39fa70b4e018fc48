"""The rendered rooms: true geometry and tidy furniture."""

import numpy as np
import pytest

from tools import rooms


def test_a_wall_straight_ahead_has_one_depth():
    """Depth is along the optical axis: a fronto-parallel wall is flat, whatever the angle of the ray."""
    rays = rooms.camera_rays(0, 0)
    depth, axis = rooms.cast_box(np.array([2.0, 1.5, 0.5]), rays, np.zeros(3), np.array([4.0, 3.0, 4.5]), inside=True)
    ahead = axis == 2
    assert ahead[253, 325]
    np.testing.assert_allclose(depth[ahead], 4.0)


def test_the_floor_has_the_depth_of_the_pinhole_equation():
    rays = rooms.camera_rays(0, 0)
    depth, _ = rooms.cast_box(np.array([5.0, 1.5, 1.0]), rays, np.zeros(3), np.array([10.0, 30.0, 90.0]), inside=True)
    for row in (300, 400, 479):
        assert depth[row, 324] == pytest.approx(1.5 * 519.47 / (row - 252.74))


def test_points_of_a_turned_camera_lie_on_the_walls():
    origin, low, high = np.array([2.0, 1.4, 1.0]), np.zeros(3), np.array([4.0, 2.8, 5.0])
    rays = rooms.camera_rays(0.4, -0.2)
    depth, axis = rooms.cast_box(origin, rays, low, high, inside=True)
    points = np.take_along_axis(origin + depth[..., None] * rays, axis[..., None], -1)[..., 0]
    np.testing.assert_allclose(np.minimum(np.abs(points - low[axis]), np.abs(points - high[axis])), 0, atol=1e-9)
    optical_axis = np.array([np.sin(0.4) * np.cos(0.2), -np.sin(0.2), np.cos(0.4) * np.cos(0.2)])
    np.testing.assert_allclose(rays @ optical_axis, 1)


def test_a_box_hides_what_is_behind_and_is_missed_beside():
    rays = rooms.camera_rays(0, 0)
    box = np.array([1.0, 0.0, 2.0]), np.array([3.0, 1.4, 3.0])
    depth, _ = rooms.cast_box(np.array([2.0, 1.0, 0.0]), rays, *box, inside=False)
    assert depth[253, 325] == pytest.approx(2.0)
    assert np.isinf(depth[0, 0])


def test_a_box_is_cast_wherever_it_is_seen():
    """Only the part of the picture is looked at in which a box can be: all that it covers is in it."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(150):
        yaw, pitch, origin = rng.uniform(-1, 1), rng.uniform(-0.5, 0.5), rng.uniform(0, 3, 3)
        low = rng.uniform(-2, 5, 3)
        one = rooms.Box(low, low + rng.uniform(0.05, 2, 3), rooms.WHITE)
        if (origin > one.low).all() and (origin < one.high).all():
            continue
        depth, _ = rooms.cast_box(origin, rooms.camera_rays(yaw, pitch), one.low, one.high, inside=False)
        hit = np.isfinite(depth)
        part = rooms.seen_in(one, origin, rooms.camera_axes(yaw, pitch))
        covered += hit[part].any()
        hit[part] = False
        assert not hit.any()
    assert covered > 20


def test_furniture_stands_in_the_room_and_in_nothing_else():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        size, origin = np.array([4.0, 2.6, 5.0]), np.array([2.0, 1.5, 0.5])
        on_walls, panes, doorways = rooms.fittings(rng, size)
        pieces = rooms.furnish(rng, size, origin, doorways)
        for one in [*on_walls, *panes, *(one for piece in pieces for one in piece)]:
            assert (one.low < one.high).all() and (one.low > -1e-9).all() and (one.high < size + 1e-9).all()
        taken = [(piece, rooms.footprint(piece)) for piece in pieces]
        for number, (_, (low, high)) in enumerate(taken):
            assert ((low > origin[[0, 2]]) | (high < origin[[0, 2]])).any()
            for other_low, other_high in [area for _, area in taken[:number]] + doorways:
                assert ((high < other_low) | (low > other_high)).any()


def test_a_rendered_room_is_a_photograph_of_its_depth():
    """Well exposed, in colour, and where depth jumps the picture does, too: more than elsewhere."""
    for seed in range(4):
        rgb, depth_m = rooms.render(np.random.default_rng(seed))
        assert rgb.shape == (480, 640, 3) and depth_m.shape == (480, 640)
        assert depth_m.min() > 0.2 and depth_m.max() < 10
        assert 60 < np.median(rgb) < 220 and (rgb == 255).all(-1).mean() < 0.3
        grey = rgb.astype(float).mean(-1)
        jump = np.abs(np.diff(np.log(depth_m), axis=1)) > 0.1
        step = np.abs(np.diff(grey, axis=1))
        assert jump.any() and step[jump].mean() > 3 * step[~jump].mean()
