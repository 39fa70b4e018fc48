"""Convert the Test part of NYU Depth V2 to the .bin files that the C++ program reads. Needs no MindSpore."""

import argparse
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from src.base import cli
from src.base.errors import UserError
from src.base.files import replacing, writable_folder
from src.data import image
from src.data.listing import Pair, list_test
from src.data.plain import decoding_pool, load_test_pair


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("--dataset_path", type=Path, required=True, help="the NYU folder, or its Test folder")
    parser.add_argument(
        "--output_path",
        type=Path,
        default=Path("preprocess_Result"),
        help="folder for img_data/<id>.bin (1x3x228x304) and label/<id>.bin (1x1x55x74), float32",
    )
    return parser.parse_args(arguments)


def write_pair(folder: Path, pair: Pair) -> None:
    """Write the two .bin files of a test pair into `folder`. Raises image.ImageError naming a file."""
    rgb, depth_m = load_test_pair(pair)
    for name, array in (("img_data", rgb), ("label", image.network_depth(depth_m))):
        with replacing(folder / name / f"{pair.name}.bin", "wb") as file:
            file.write(array.tobytes())


def check_folder(folder: Path, names: set[str]) -> None:
    """Raise UserError if `folder` contains .bin files of other pictures, which would be scored too.

    Args:
        folder: the output folder.
        names: names of the .bin files that this run writes.
    """
    for path in (path for part in ("img_data", "label") for path in sorted((folder / part).glob("*.bin"))):
        if path.name not in names and not path.name.startswith("."):
            raise UserError(f"{path}: of another run: move {folder} away, or name another folder with --output_path")


def main() -> int:
    options = parse_args()
    pairs = list_test(options.dataset_path)
    check_folder(options.output_path, {f"{pair.name}.bin" for pair in pairs})
    for name in ("img_data", "label"):
        writable_folder(options.output_path / name)
    with decoding_pool() as pool, cli.progress(len(pairs), "preprocessing", "image") as bar:
        for _ in pool.map(partial(write_pair, options.output_path), pairs):
            bar.update()
    logging.info("%d images in %s", len(pairs), options.output_path)
    return 0


if __name__ == "__main__":
    cli.run(main)
