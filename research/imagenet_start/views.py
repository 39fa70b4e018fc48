"""Draw views of the training pictures and store them with the teacher's maps.

    python views.py teacher.onnx VIEWS --pairs NYU [--more_pairs NYU2] [--rooms FOLDER]

Pairs give views under the paper's augmentation (section 3.4) with their true depth; rooms are pictures without depth.
Each view also has the depth that regression.py predicts from the teacher's maps. Views are drawn from (seed, number),
stored in shards of 500, and a shard that is there is not made again.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from regression import DepthRegression
from teacher import Teacher, student_targets

from src.data import image
from src.data.listing import list_train

SHARD = 500
JPEG_QUALITY = 95
INT8_STEP = 6 / 127  # standard deviations: the maps are kept as int8 within 6 of them


def pair_view(
    rgb: np.ndarray, depth_m: np.ndarray, view: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """One view of a 480x640 pair: uint8 (228, 304, 3) and metres (55, 74), 0 = not measured. View 0 is the picture."""
    if view == 0:
        return image.network_pixels(rgb), image.network_depth(depth_m)[0]
    zoom = rng.uniform(1, 1.5)
    angle = np.deg2rad(rng.uniform(-5, 5))
    room = np.array([304, 228]) * (1 - 1 / zoom) + np.array([16, 12]) / zoom  # how far the window may move
    centre = np.array([319.5, 239.5]) + rng.uniform(-1, 1, 2) * room
    cosine, sine = 2 / zoom * np.cos(angle), 2 / zoom * np.sin(angle)
    turn = np.array([[cosine, -sine], [sine, cosine]])
    to_source = np.column_stack([turn, centre - turn @ (151.5, 113.5)])
    size, inverse = image.RGB_SIZE[::-1], cv2.WARP_INVERSE_MAP
    rgb = cv2.warpAffine(rgb, to_source, size, flags=cv2.INTER_LINEAR | inverse, borderMode=cv2.BORDER_REFLECT)
    depth_m = cv2.warpAffine(depth_m, to_source, size, flags=cv2.INTER_NEAREST | inverse)  # 0 outside
    depth_m = image.resize_depth(depth_m, image.DEPTH_SIZE) / np.float32(zoom)
    return (rgb[:, ::-1], depth_m[:, ::-1]) if rng.random() < 0.5 else (rgb, depth_m)


def room_view(rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random 4:3 window of a picture: uint8 (228, 304, 3)."""
    height, width = rgb.shape[:2]
    window = min(width, height * 4 / 3) / rng.uniform(1, 1.25)
    columns, rows = int(window), int(window * 3 / 4)
    top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
    view = cv2.resize(rgb[top : top + rows, left : left + columns], image.RGB_SIZE[::-1], interpolation=cv2.INTER_CUBIC)
    return view[:, ::-1] if rng.random() < 0.5 else view


def store(folder: Path, jobs: list, draw, teacher: Teacher, regression: DepthRegression) -> None:
    """Make one shard: the views `draw(job)` as JPEG with the teacher's maps and the log depth. `draw` returns
    (picture, metres or None)."""
    pictures, maps4, maps5, log_depth, guess = [], [], [], [], []
    for start in range(0, len(jobs), 20):
        drawn = [draw(job) for job in jobs[start : start + 20]]
        batch = []
        for picture, _ in drawn:
            _, jpeg = cv2.imencode(
                ".jpg", np.ascontiguousarray(picture[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
            )
            pictures.append(jpeg.ravel())
            batch.append(cv2.imdecode(jpeg, cv2.IMREAD_COLOR)[..., ::-1])
        maps = teacher.maps(np.stack(batch))
        fine, coarse = regression.standardised(*student_targets(maps))
        maps4.append(np.clip(np.rint(fine / INT8_STEP), -127, 127).astype(np.int8))
        maps5.append(np.clip(np.rint(coarse / INT8_STEP), -127, 127).astype(np.int8))
        guess.append(regression.predict(maps))
        for _, depth_m in drawn:
            log_depth.append(np.full(image.DEPTH_SIZE, np.nan, np.float32))
            if depth_m is not None:
                np.log(np.clip(depth_m, 0.1, 10), out=log_depth[-1], where=depth_m > 0)
    arrays = {
        "jpeg": np.concatenate(pictures),
        "ends": np.cumsum([len(jpeg) for jpeg in pictures]),
        "maps4": np.concatenate(maps4),
        "maps5": np.concatenate(maps5),
        "log_depth": np.stack(log_depth).astype(np.float16),
        "guess": np.concatenate(guess).astype(np.float16),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
        (Path(unfinished) / "shard").mkdir()
        for name, array in arrays.items():
            np.save(Path(unfinished) / "shard" / name, array)
        os.rename(Path(unfinished) / "shard", folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("views", type=Path)
    parser.add_argument("--regression", type=Path, default=Path("regression.npz"))
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument(
        "--more_pairs", type=Path, help="further pairs in NYU's layout; names that --pairs has are left out"
    )
    parser.add_argument("--views_per_pair", type=int, default=8)
    parser.add_argument("--views_per_more", type=int, default=2)
    parser.add_argument("--rooms", type=Path, help="a folder of pictures without depth")
    parser.add_argument("--most_rooms", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    teacher, regression = Teacher(options.teacher), DepthRegression.load(options.regression)

    pairs = list_train(options.pairs)
    names = {pair.name for pair in pairs}
    jobs = [(pair, view) for pair in pairs for view in range(options.views_per_pair)]
    if options.more_pairs:
        more = [pair for pair in list_train(options.more_pairs) if pair.name not in names]
        jobs += [(pair, view) for pair in more for view in range(options.views_per_more)]
    np.random.default_rng(options.seed).shuffle(jobs)
    jobs = [(number, *job) for number, job in enumerate(jobs)]

    def draw_pair(job):
        number, pair, view = job
        rng = np.random.default_rng([options.seed, 0, number])
        return pair_view(image.load_rgb(pair.rgb), image.load_train_depth(pair.depth), view, rng)

    rooms = sorted(options.rooms.rglob("*.jpg")) if options.rooms else []
    np.random.default_rng(options.seed).shuffle(rooms)
    rooms = list(enumerate(rooms[: options.most_rooms]))

    def draw_room(job):
        number, path = job
        return room_view(image.load_rgb(path), np.random.default_rng([options.seed, 1, number])), None

    shards = [
        (kind, start, jobs[start : start + SHARD], draw)
        for kind, jobs, draw in (("pairs", jobs, draw_pair), ("rooms", rooms, draw_room))
        for start in range(0, len(jobs), SHARD)
    ]
    begun = time.time()
    for kind, start, jobs, draw in shards:
        folder = options.views / f"{kind}-{start // SHARD:04}"
        if not folder.exists():
            store(folder, jobs, draw, teacher, regression)
            print(f"{folder}: {len(jobs)} views, {time.time() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main()
