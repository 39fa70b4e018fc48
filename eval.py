"""Score a trained CoarseNet and FineNet on the Test part of NYU Depth V2."""

import argparse
import importlib
import logging
from collections.abc import Sequence
from pathlib import Path

from src.base import cli
from src.base.files import writable_folder


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line. Raises UserError naming an option without effect."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    add = parser.add_argument
    add("--test_data", type=Path, help="the NYU folder, or its Test folder")
    add(
        "--compare",
        type=Path,
        nargs=2,
        metavar="RUN",
        help="compare two folders written by --output_dir instead, with confidence intervals of their differences",
    )
    cli.add_nets(parser)
    add(
        "--protocol",
        choices=("depthnet", "eigen"),
        default="depthnet",
        help="depthnet: 55x74, depth clipped to [0.1, 10] m; eigen: full resolution on the usual crop",
    )
    add(
        "--baselines",
        action="store_true",
        help="also score the best constant depth and, if Train is beside Test, the mean log-depth map of its pairs",
    )
    add("--output_dir", type=Path, help="write metrics.json, per_image.csv, panels.png and report.html there")
    evaluation = "--test_data", lambda options: options.test_data is not None
    checkpoints = "--test_data and no --coarse_onnx", lambda options: options.test_data and not options.coarse_onnx
    of_checkpoints = ("coarse_ckpt_model", "fine_ckpt_model")
    names = (action.dest for action in parser._actions if action.dest not in ("help", "test_data", "compare"))
    needs: cli.Needs = {name: checkpoints if name in of_checkpoints else evaluation for name in names}
    options = cli.parse(parser, arguments, needs)
    cli.check_nets(parser, options)
    if (options.test_data is None) == (options.compare is None):
        parser.error("expected --test_data to evaluate, or --compare")
    return options


def versions(runtime: str) -> dict[str, str]:
    """Return the versions of the libraries that affect a prediction. `runtime`: "mindspore" or "onnxruntime"."""
    return {name: importlib.import_module(name).__version__ for name in (runtime, "numpy", "cv2", "PIL")}


def evaluate(options: argparse.Namespace) -> int:
    """Score the nets and write the report. Returns the exit code."""
    from src.data import listing

    pairs = listing.list_test(options.test_data)  # before MindSpore is imported, which takes seconds
    from src.nets.nets import Nets, files_from_options
    from src.scoring import baselines, evaluation, report, visual

    files = files_from_options(options)
    if options.output_dir:
        writable_folder(options.output_dir)
    nets = Nets(*files, options.flip_average)
    details: dict[str, evaluation.Details] = {}
    workers = cli.default_workers()
    scores = evaluation.score(
        pairs,
        nets,
        options.protocol,
        options.batch_size,
        workers,
        details if options.output_dir else None,
        baselines.Baselines(options.test_data, pairs, workers) if options.baselines else None,
    )
    logging.info("%d images, protocol %s\n%s", len(pairs), options.protocol, evaluation.table(scores))
    if options.baselines:
        logging.info(
            "%s: fitted to the targets that they are scored against",
            ", ".join(name for name in baselines.SEEN if name in scores),
        )
    if options.output_dir:
        checkpoints = dict(zip(("CoarseNet", "FineNet"), map(str, nets.sources), strict=True))
        used = versions("onnxruntime" if options.coarse_onnx else "mindspore")
        data = evaluation.data_facts(pairs)
        evaluation.write_report(options.output_dir, scores, checkpoints, used, data)
        panels = visual.panels(evaluation.panel_rows(pairs, scores["FineNet"], nets))
        panels_png = visual.save_figure(panels, options.output_dir / "panels.png")
        report.write(options.output_dir / "report.html", scores, details, panels_png, checkpoints, used, data)
        logging.info("report in %s", options.output_dir)
    logging.info("%s", evaluation.final_lines(scores))
    return 0


def main() -> int:
    options = parse_args()
    if not options.compare:
        return evaluate(options)
    from src.scoring import comparison

    logging.info("%s", comparison.compare(*options.compare))
    return 0


if __name__ == "__main__":
    cli.run(main)
