"""Score the result files of the C++ program against the labels of preprocess.py. Needs no MindSpore."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from src import metrics
from src.base import cli, folders
from src.base.arrays import Floats
from src.base.errors import UserError
from src.base.files import writable_folder
from src.data import image
from src.scoring import evaluation

RESULT_ENDING, LABEL_ENDING = "_0.bin", ".bin"


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("--result_path", type=Path, default=Path("result_Files"), help="folder of <id>_0.bin")
    parser.add_argument(
        "--label_file", type=Path, default=Path("preprocess_Result/label"), help="folder of <id>.bin, metres"
    )
    parser.add_argument("--output_dir", type=Path, help="write metrics.json and per_image.csv there")
    return parser.parse_args(arguments)


def names(folder: Path, ending: str) -> list[str]:
    """Return the ids of the files with this ending in `folder`, sorted. Raises UserError if there are none."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    search = folders.search(folder, ("*",), (ending,))
    if search.unread or not search.files:
        raise UserError(search.unread[0] if search.unread else f"{folder}: no file *{ending} in it")
    return [path.name[: -len(ending)] for path in search.files]


def check_same(labels: list[str], results: list[str], result_path: Path) -> None:
    """Raise UserError naming labels without a result, and results without a label.

    Args:
        labels, results: ids of the files.
        result_path: the folder of the results, for the message.
    """
    missing, surplus = sorted(set(labels) - set(results)), sorted(set(results) - set(labels))
    problems = [
        f"{len(ids)} {problem}: " + ", ".join(f"{name}{RESULT_ENDING}" for name in ids[:5])
        for problem, ids in (("missing", missing), ("without a label", surplus))
        if ids
    ]
    if problems:
        raise UserError(f"{result_path}: " + "; ".join(problems))


def read(path: Path) -> Floats:
    """Read a float32 map (1, 1, 55, 74). Raises UserError if the file has another size or contains NaN or infinity."""
    content = np.fromfile(path, np.uint8)
    expected = 4 * image.DEPTH_SIZE[0] * image.DEPTH_SIZE[1]
    if content.size != expected:
        raise UserError(f"{path}: {content.size} bytes, expected {expected} (float32 1x1x55x74)")
    values = content.view(np.float32).reshape(1, 1, *image.DEPTH_SIZE)
    if not np.isfinite(values).all():
        raise UserError(f"{path}: not finite")
    return values


def main() -> int:
    options = parse_args()
    labels = names(options.label_file, LABEL_ENDING)
    check_same(labels, names(options.result_path, RESULT_ENDING), options.result_path)
    if options.output_dir:
        writable_folder(options.output_dir)
    scores = evaluation.Scores("depthnet")
    for name in labels:
        log_depth = read(options.result_path / f"{name}{RESULT_ENDING}")
        scores.add([name], log_depth, read(options.label_file / f"{name}{LABEL_ENDING}"))
    if options.output_dir:
        evaluation.write_report(options.output_dir, {"FineNet": scores}, {"results": str(options.result_path)}, {})
    mean = scores.means()
    logging.info("%d images, protocol depthnet, si: %.6f", len(labels), mean["si"])
    logging.info("%s", metrics.final_line("FineNet", mean))
    return 0


if __name__ == "__main__":
    cli.run(main)
