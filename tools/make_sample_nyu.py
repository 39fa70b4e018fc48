"""Make a small folder in the layout and encodings of NYU Depth V2 from rendered rooms.

`tools/rooms.py` renders the rooms with their true depth. The demo, the page's examples and the tests use them
instead of NYU.
"""

import argparse
import logging
import os
import sys
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from src.base import cli
from src.base.arrays import Array
from src.base.errors import UserError
from src.base.files import StrPath, temporary_folder, writable_folder
from src.base.stopping import in_processes
from src.data import image
from tools.rooms import render

# isort: split
import cv2  # after src, which drops the variables that OpenCV reads at its import


def write(path: StrPath, pixels: Array) -> None:
    """Write a picture in the format of its file name ending. Raises OSError."""
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    if not cv2.imwrite(str(path), pixels):
        raise OSError(f"{path}: cannot write")


def make_pair(seed: int, job: tuple[int, Path, Path]) -> None:
    """Render a pair, and write it in the encoding of Train or Test.

    Args:
        seed: of the sample set.
        job: (number of the pair, RGB path, depth path). A .jpg belongs to Train.
    """
    number, rgb_path, depth_path = job
    rgb, depth_m = render(np.random.default_rng((seed, number)))
    write(rgb_path, rgb)
    is_train = rgb_path.suffix == ".jpg"
    write(depth_path, image.encode_train_depth(depth_m) if is_train else image.encode_test_depth(depth_m))


def jobs(folder: Path, scenes: int, pairs_per_scene: int, test_pairs: int) -> list[tuple[int, Path, Path]]:
    """Create the folders of a sample set. Returns (number, RGB path, depth path) of every pair. Arguments as in
    `make`."""
    paths = []
    for scene in range(scenes):
        scene_folder = folder / "Train" / f"sample_{scene + 1:04d}_out"
        scene_folder.mkdir(parents=True)
        paths += [(scene_folder / f"{n}.jpg", scene_folder / f"{n}.png") for n in range(1, pairs_per_scene + 1)]
    (folder / "Test").mkdir()
    paths += [
        (folder / "Test" / f"{n:05d}_colors.png", folder / "Test" / f"{n:05d}_depth.png") for n in range(test_pairs)
    ]
    return [(number, *pair) for number, pair in enumerate(paths)]


def make(folder: StrPath, scenes: int = 8, pairs_per_scene: int = 20, test_pairs: int = 24, seed: int = 0) -> int:
    """Render a sample set.

    Args:
        folder: a new or empty folder.
        scenes: number of training scenes.
        pairs_per_scene: training pairs per scene.
        test_pairs: number of test pairs.
        seed: random seed of the rooms.

    Returns:
        The number of pairs.

    Raises UserError if the folder is not empty or not writable.
    """
    folder = writable_folder(folder)
    with temporary_folder(folder) as work:
        if len(os.listdir(folder)) > 1:
            raise UserError(f"{folder}: not empty; expected an empty or a new folder")
        pairs = jobs(work, scenes, pairs_per_scene, test_pairs)
        with cli.progress(len(pairs), "rendering", "pair") as bar:
            for _ in in_processes(partial(make_pair, seed), pairs):
                bar.update()
        for part in ("Train", "Test"):
            os.replace(work / part, folder / part)
    return len(pairs)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("folder", type=Path, help="the new NYU folder")
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
