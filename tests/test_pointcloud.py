"""Depth to points: true walls are flat and square."""

import numpy as np
import pytest

from src.prediction.pointcloud import Intrinsics, points
from tools import rooms


def room(yaw=0.3, pitch=-0.2):
    """An empty rendered room: true depth (480, 640), and which of its walls each pixel shows."""
    rays = rooms.camera_rays(yaw, pitch)
    origin = np.array([1.5, 1.4, 0.5])
    depth_m, axis = rooms.cast_box(origin, rays, np.zeros(3), np.array([4.0, 2.6, 5.0]), inside=True)
    side = np.take_along_axis(rays, axis[..., None], -1)[..., 0] > 0
    return depth_m.astype(np.float32), axis * 2 + side


def plane_residual(cloud):
    """Largest distance in metres from the best plane."""
    centred = cloud.astype(np.float64) - cloud.mean(0, dtype=np.float64)
    return np.abs(centred @ np.linalg.svd(centred, full_matrices=False)[2][2]).max()


def test_walls_of_a_rendered_room_are_flat_and_square(run, tmp_path):
    depth_m, wall = room()
    cloud = points(depth_m, Intrinsics.kinect(480, 640))
    walls = [cloud[(wall == number).ravel()] for number in np.unique(wall)]
    assert len(walls) >= 4
    for each in walls:
        assert plane_residual(each) < 1e-4
    normals = [np.linalg.svd(each - each.mean(0), full_matrices=False)[2][2] for each in walls]
    angles = np.abs(np.array(normals) @ np.array(normals).T)
    np.testing.assert_allclose(angles, np.round(angles), atol=1e-3)  # parallel or at right angles
    bent = points(depth_m, Intrinsics.from_fov(480, 640, 90))  # with other intrinsics the walls still lie flat,
    assert plane_residual(bent[(wall == wall[240, 320]).ravel()]) < 1e-4  # but no longer at right angles
    bent_normals = [
        np.linalg.svd(bent[(wall == n).ravel()][::50] - bent[(wall == n).ravel()].mean(0))[2][2]
        for n in np.unique(wall)
    ]
    angles = np.abs(np.array(bent_normals) @ np.array(bent_normals).T)
    assert np.abs(angles - np.round(angles)).max() > 0.1


def test_field_of_view_gives_the_focal_length():
    camera = Intrinsics.from_fov(480, 640, 90)
    assert camera.fx == pytest.approx(320) and camera.fy == camera.fx and (camera.cx, camera.cy) == (319.5, 239.5)
    double = Intrinsics.kinect(960, 1280)
    assert double.fx == pytest.approx(2 * 518.86)
    assert double.cx + 0.5 == pytest.approx(2 * (324.58 + 0.5))  # the same ray, half-pixel centres
