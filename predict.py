"""Predict the depth of pictures and videos, and save it as images, arrays or point clouds."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from src.base import cli
from src.base.errors import CheckFailed
from src.base.files import writable_folder

if TYPE_CHECKING:
    from src.prediction.job import Job
    from src.prediction.pointcloud import Intrinsics
    from src.prediction.predict import Maps


def positive_float_or_auto(text: str) -> float | str:
    """Argparse type: a finite number > 0, or "auto"."""
    return text if text == "auto" else cli.positive_float(text)


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line. Raises UserError naming an option without effect."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    add = parser.add_argument
    add("--input", nargs="+", required=True, help="pictures, videos, folders, or quoted glob patterns")
    add("--output_dir", type=Path, default=Path("predictions"), help="output folder; keeps the inputs' subfolders")
    cli.add_nets(parser)
    add(
        "--save",
        nargs="+",
        choices=("color", "png16", "npy", "exr", "ply", "side"),
        default=["color"],
        help="coloured PNG, 16-bit PNG in mm, float32 metres as NumPy or OpenEXR file, point cloud, picture beside "
        "coloured depth",
    )
    add("--colormap", default="viridis", help="name of a matplotlib colour map")
    add(
        "--max_depth",
        type=positive_float_or_auto,
        default="auto",
        help="metres at the end of the colours; auto: the next whole metre above the 98th percentile of the depth",
    )
    add(
        "--camera",
        choices=("exif", "nyu"),
        default="exif",
        help="camera of a photo; exif: with the focal length of its EXIF if present, else NYU's Kinect",
    )
    add(
        "--fov",
        type=cli.positive_float,
        help="point cloud: horizontal field of view in degrees (default: NYU's Kinect)",
    )
    for name in ("--fx", "--fy", "--cx", "--cy"):
        add(
            name,
            type=cli.positive_float if name[2] == "f" else cli.finite_float,
            help="point cloud: intrinsics in pixels; give all four instead of --fov",
        )
    add("--overwrite", action="store_true", help="replace existing outputs")
    coloured = "--save color or side", lambda options: bool({"color", "side"} & set(options.save))
    options = cli.parse(
        parser,
        arguments,
        {
            **cli.NETS_NEED,
            "colormap": coloured,
            "max_depth": coloured,
            "camera": ("neither --fov nor --fx", lambda options: not (options.fov or options.fx)),
        },
    )
    cli.check_nets(parser, options)
    check_camera(parser, options)
    return options


def check_camera(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Exit with an error if the options of the point cloud's camera do not belong together."""
    intrinsics = [options.fx, options.fy, options.cx, options.cy]
    if intrinsics.count(None) not in (0, 4) or (options.fov and options.fx is not None):
        parser.error("expected --fov, or --fx --fy --cx --cy together, or none of them")
    if options.fov and options.fov >= 180:
        parser.error(f"--fov {options.fov:g}: expected less than 180 degrees")


def camera(options: argparse.Namespace) -> Callable[[int, int], Intrinsics]:
    """Return the camera that the options choose, as a function of a picture's (height, width)."""
    from src.prediction.pointcloud import Intrinsics

    if options.fov:
        return lambda height, width: Intrinsics.from_fov(height, width, options.fov)
    if options.fx is not None:
        return lambda height, width: Intrinsics(options.fx, options.fy, options.cx, options.cy)
    return Intrinsics.kinect


def main() -> int:
    options = parse_args()
    from src.prediction import depth_files
    from src.prediction.job import check_outputs, find_jobs
    from src.prediction.predict import from_options
    from src.scoring import visual

    visual.check_colormap(options.colormap)
    jobs, unread = find_jobs(options.input, options.output_dir)
    if any(job.is_video for job in jobs):
        import src.prediction.video  # noqa: F401 (if PyAV is missing, this raises before the work starts)
    kinds = tuple(dict.fromkeys(options.save))
    check_outputs(jobs, kinds, options.overwrite)
    writable_folder(options.output_dir)
    predict = from_options(options)
    own_camera = options.fov or options.fx
    writer = depth_files.Writer(
        kinds,
        options.colormap,
        options.max_depth,
        camera(options),
        follow_exif=options.camera == "exif" and not own_camera,
    )
    known: dict[Job, Maps] = {}
    if options.max_depth == "auto":
        has_colours = {"color", "side"} & set(kinds)
        max_depth, known = depth_files.depth_range(jobs, predict, writer) if has_colours else (10.0, {})
        writer = dataclasses.replace(writer, max_depth=max_depth)
    with cli.progress(len(jobs), "predicting", "file") as bar, cli.log_above_progress():
        failed = depth_files.predict_all(jobs, predict, writer, options.batch_size, bar, known)
    logging.info("%d predicted, in %s", len(jobs) - failed, options.output_dir)
    problems = [f"{failed} of {len(jobs)} failed"] * bool(failed) + [
        f"{len(unread)} of the folders and links could not be read"
    ] * bool(unread)
    if problems:
        raise CheckFailed("; ".join(problems))
    return 0


if __name__ == "__main__":
    cli.run(main)
