"""Make a small folder in NYU Depth V2's layout and encodings from rooms that are rendered here.

Every room is a box with furniture (boxes), seen by a pinhole camera with the intrinsics of NYU's Kinect; depth is
the true distance along the optical axis, by ray casting. It stands in for NYU where NYU is not at hand: the demo
and the tests run on it.
"""

import argparse
import logging
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from src import cli, image
from src.errors import UserError
from src.files import writable_folder
from src.pointcloud import Intrinsics

HEIGHT, WIDTH = 480, 640
KINECT = Intrinsics.kinect(HEIGHT, WIDTH)
FURNITURE_M = (0.4, 1.8)
MAX_DEPTH_M = 9.9  # below the 10 m that 8 bits can tell
FLASH, FALLOFF = 1.6, 0.35  # the light is at the camera: with the tiles' size, what tells how far a surface is


def camera_rays(yaw, pitch):
    """Ray directions (H, W, 3) with unit length along the optical axis, so that a ray's parameter is depth.

    World axes: x right, y up, z forward at yaw 0; `pitch` below 0 looks down. Radians.
    """
    x = (np.arange(WIDTH) - KINECT.cx) / KINECT.fx
    y = (KINECT.cy - np.arange(HEIGHT)) / KINECT.fy
    rays = np.stack(np.broadcast_arrays(x[None, :], y[:, None], 1.0), axis=-1)
    tilt = np.array([[1, 0, 0], [0, np.cos(pitch), np.sin(pitch)], [0, -np.sin(pitch), np.cos(pitch)]])
    turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    return rays @ (turn @ tilt).T


def cast_box(origin, rays, low, high, inside):
    """Depth (H, W) at which rays from `origin` meet the axis-aligned box, and the axis of the face they meet.

    From `inside` it is the exit; from outside the entry, infinite where the ray misses.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        bounds = np.stack(((low - origin) / rays, (high - origin) / rays))
    near, far = bounds.min(axis=0), bounds.max(axis=0)
    if inside:
        return far.min(axis=-1), far.argmin(axis=-1)
    entry, leave = near.max(axis=-1), far.min(axis=-1)
    return np.where((entry < leave) & (entry > 0), entry, np.inf), near.argmax(axis=-1)


def furnish(rng, size, origin, count):
    """Boxes (low, high) on the floor of a room, none of them around the camera."""
    boxes = []
    while len(boxes) < count:
        extent = rng.uniform(*FURNITURE_M, 3) * (1, 0.8, 1)
        corner = rng.uniform((0, 0, 0), np.maximum(size - extent, 0.01)) * (1, 0, 1)
        if np.any((origin < corner - 0.4) | (origin > corner + extent + 0.4)):
            boxes.append((corner, corner + extent))
    return boxes


def texture(points, axis, rng):
    """A box's albedo (H, W, 3): a colour for each axis that a face looks along, and tiles or stripes of a metric
    size on it."""
    colour = rng.uniform(0.5, 1.0, (3, 3))[axis]
    period = rng.uniform(0.25, 0.4)
    across = np.take_along_axis(points, ((axis + 1) % 3)[..., None], -1)[..., 0]
    along = np.take_along_axis(points, ((axis + 2) % 3)[..., None], -1)[..., 0]
    pattern = np.sin(2 * np.pi * across / period)
    if rng.random() < 0.5:
        pattern = pattern * np.sin(2 * np.pi * along / period)
    return colour * (1 - rng.uniform(0.05, 0.3) * (pattern > 0))[..., None]


def render(rng):
    """One view of one room: uint8 RGB (480, 640, 3) and float64 depth in metres (480, 640)."""
    size = np.array([rng.uniform(3, 6.5), rng.uniform(2.4, 3.2), rng.uniform(3, 7)])
    origin = size * (rng.uniform(0.3, 0.7), 0, rng.uniform(0.05, 0.3)) + (0, rng.uniform(1.2, 1.7), 0)
    rays = camera_rays(rng.uniform(-0.35, 0.35), rng.uniform(-0.3, 0.0))
    surfaces = [(np.zeros(3), size, True)]
    surfaces += [(low, high, False) for low, high in furnish(rng, size, origin, rng.integers(2, 6))]
    depth, albedo, facing = np.full((HEIGHT, WIDTH), np.inf), np.zeros((HEIGHT, WIDTH, 3)), np.zeros((HEIGHT, WIDTH))
    for low, high, inside in surfaces:
        met, axis = cast_box(origin, rays, low, high, inside)
        closer = met < depth
        depth = np.where(closer, met, depth)
        points = origin + np.where(closer, met, 0)[..., None] * rays
        albedo = np.where(closer[..., None], texture(points, axis, rng), albedo)
        cosine = np.abs(np.take_along_axis(rays, axis[..., None], -1)[..., 0]) / np.linalg.norm(rays, axis=-1)
        facing = np.where(closer, cosine, facing)
    light = rng.uniform(0.85, 1.0) * (0.5 + 0.5 * facing) * FLASH / (1 + FALLOFF * depth**2)
    shaded = albedo * light[..., None] + rng.normal(0, 0.015, (HEIGHT, WIDTH, 1))
    return (np.clip(shaded, 0, 1) * 255).round().astype(np.uint8), np.minimum(depth, MAX_DEPTH_M)


def write(path, pixels):
    """Write a picture by its ending. Raises OSError."""
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    if not cv2.imwrite(str(path), pixels):
        raise OSError(f"{path}: cannot write")


def make_pair(seed, job):
    """Render pair `job` = (number, RGB path, depth path) and write it in the encoding of its folder."""
    number, rgb_path, depth_path = job
    rgb, depth_m = render(np.random.default_rng((seed, number)))
    write(rgb_path, rgb)
    is_train = rgb_path.suffix == ".jpg"
    write(depth_path, image.encode_train_depth(depth_m) if is_train else image.encode_test_depth(depth_m))


def jobs(folder, scenes, pairs_per_scene, test_pairs):
    """(number, RGB path, depth path) of every pair; creates the folders."""
    found = []
    for scene in range(scenes):
        scene_folder = folder / "Train" / f"sample_{scene + 1:04d}_out"
        scene_folder.mkdir(parents=True)
        found += [(scene_folder / f"{n}.jpg", scene_folder / f"{n}.png") for n in range(1, pairs_per_scene + 1)]
    (folder / "Test").mkdir()
    found += [(folder / "Test" / f"{n:05d}_colors.png", folder / "Test" / f"{n:05d}_depth.png")
              for n in range(test_pairs)]
    return [(number, *paths) for number, paths in enumerate(found)]


def make(folder, scenes=8, pairs_per_scene=20, test_pairs=24, seed=0):
    """Write the whole sample set into `folder`, which must be empty or absent. Raises UserError."""
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: not empty; expected an empty or a new folder")
    writable_folder(folder)
    todo = jobs(folder, scenes, pairs_per_scene, test_pairs)
    with ProcessPoolExecutor() as pool, cli.progress(len(todo), "rendering", "pair") as bar:
        for _ in pool.map(partial(make_pair, seed), todo):
            bar.update()
    return len(todo)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("folder", type=Path, help="the NYU folder to make")
    parser.add_argument("--scenes", type=cli.positive_int, default=8)
    parser.add_argument("--pairs_per_scene", type=cli.positive_int, default=20)
    parser.add_argument("--test_pairs", type=cli.positive_int, default=24)
    parser.add_argument("--seed", type=cli.non_negative_int, default=0)
    options = parser.parse_args()
    count = make(options.folder, options.scenes, options.pairs_per_scene, options.test_pairs, options.seed)
    logging.info("%d pairs in %s", count, options.folder)
    return 0


if __name__ == "__main__":
    cli.run(main)
