"""Score a trained CoarseNet and FineNet on the Test part of NYU Depth V2."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from src.base import cli
from src.base.files import writable_folder


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    add = parser.add_argument
    add("--test_data", type=Path, help="the NYU folder, or its Test folder")
    add("--compare", type=Path, nargs=2, metavar="RUN",
        help="instead: two folders of --output_dir side by side, with the intervals of their differences")
    add("--coarse_ckpt_model", type=Path, help="default: Model/Ckpt/FinalCoarseNet.ckpt, or else weights/ of this repo")
    add("--fine_ckpt_model", type=Path, help="default: Model/Ckpt/FinalFineNet.ckpt, or else weights/ of this repo")
    add("--device_target", choices=("auto", "Ascend", "GPU", "CPU"), default="auto")
    add("--device_id", type=cli.non_negative_int, default=0)
    add("--batch_size", type=cli.positive_int, default=8)
    add("--protocol", choices=("depthnet", "eigen"), default="depthnet",
        help="depthnet: 55x74, depth clipped to [0.1, 10] m; eigen: the full picture on the usual crop")
    add("--flip_average", action="store_true",
        help="score the mean of log depth of each picture and of its mirror image")
    add("--baselines", action="store_true",
        help="score also the best constant depth and, where Train is beside Test, the mean log-depth map of its pairs")
    add("--output_dir", type=Path, help="write metrics.json, per_image.csv, panels.png and report.html there")
    evaluates = "--test_data", lambda options: options.test_data is not None
    options = cli.parse(parser, arguments, dict.fromkeys(
        ("coarse_ckpt_model", "fine_ckpt_model", "device_target", "device_id", "batch_size", "protocol", "flip_average",
         "baselines", "output_dir"), evaluates))
    if (options.test_data is None) == (options.compare is None):
        parser.error("expected --test_data to evaluate, or --compare")
    return options


def versions() -> dict[str, str]:
    import cv2
    import mindspore
    import numpy
    import PIL

    return {module.__name__: module.__version__ for module in (mindspore, numpy, cv2, PIL)}


def evaluate(options: argparse.Namespace) -> int:
    from src.data import listing

    pairs = listing.list_test(options.test_data)  # a mistake is said now: importing MindSpore takes seconds
    from src.nets import checkpoint, device
    from src.prediction.predict import flip_averaged
    from src.scoring import baselines, evaluation, report, visual
    from src.training import stages

    device.select(options.device_target, options.device_id)
    if not (options.coarse_ckpt_model or options.fine_ckpt_model):
        options.coarse_ckpt_model, options.fine_ckpt_model = cli.default_or_shipped_checkpoints()
    options.coarse_ckpt_model = options.coarse_ckpt_model or cli.default_checkpoint("CoarseNet")
    options.fine_ckpt_model = options.fine_ckpt_model or cli.default_checkpoint("FineNet")
    if options.output_dir:
        writable_folder(options.output_dir)
    coarse, fine = checkpoint.load_coarse(options.coarse_ckpt_model), checkpoint.load_fine(options.fine_ckpt_model)
    checkpoint.warn_of_another_coarse(coarse, fine)
    predict = stages.predictors(coarse, fine)
    if options.flip_average:
        predict = flip_averaged(predict)
    details: dict[str, evaluation.Details] = {}
    workers = cli.default_workers()
    scores = evaluation.score(pairs, predict, options.protocol, options.batch_size, workers,
                              details if options.output_dir else None,
                              baselines.Baselines(options.test_data, pairs, workers) if options.baselines else None)
    logging.info("%d images, protocol %s\n%s", len(pairs), options.protocol, evaluation.table(scores))
    if options.baselines:
        logging.info("%s: fitted to the targets that they are scored against",
                     ", ".join(name for name in baselines.SEEN if name in scores))
    if options.output_dir:
        checkpoints = {"CoarseNet": str(options.coarse_ckpt_model), "FineNet": str(options.fine_ckpt_model)}
        used = versions()
        data = evaluation.data_facts(pairs)
        evaluation.write_report(options.output_dir, scores, checkpoints, used, data)
        panels = visual.panels(evaluation.panel_rows(pairs, scores["FineNet"], predict))
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
