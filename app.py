"""Serve a web page that predicts the depth of pictures and videos."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from src.base import cli
from src.base.errors import UserError
from src.base.files import temporary_folder

if TYPE_CHECKING:
    from src.data.listing import Pair
    from src.prediction.predict import DepthPredictor

EXAMPLES = 12


def own_environment(work: Path) -> None:
    """Remove environment variables that would make Gradio use a proxy or allow more than the options do, and let it
    store its files in the folder `work`."""
    for name in list(os.environ):
        if name.upper().endswith("_PROXY") or (name.startswith("GRADIO_") and name != "GRADIO_ROOT_PATH"):
            del os.environ[name]
    os.environ.update(GRADIO_TEMP_DIR=str(work / "cache"), GRADIO_ANALYTICS_ENABLED="False")


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    add = parser.add_argument
    cli.add_nets(parser)
    add("--examples", type=Path, help="NYU folder whose test pairs are offered as examples (default: rendered rooms)")
    add("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 serves the page to your network")
    add("--port", type=cli.positive_int, default=7860)
    add("--queue", type=cli.positive_int, default=16, help="largest number of waiting visitors")
    options = cli.parse(parser, arguments, cli.NETS_NEED)
    cli.check_nets(parser, options)
    return options


def about(predictor: DepthPredictor) -> str:
    """Return a line of Markdown about the nets, with their accuracy if known."""
    if predictor.nets.sources != tuple(cli.SHIPPED.values()):
        return "Your own nets: `eval.py` measures their accuracy."
    return (
        "The nets in `weights/`: on 60 unseen pictures of NYU, the mean relative error of the depth is 24 % "
        "(abs_rel 0.238, delta1 0.572)."
    )


def examples(folder: Path | None, work: Path) -> Sequence[Pair]:
    """Return the test pairs that the page offers as examples.

    Args:
        folder: the user's NYU folder; None: rooms are rendered into `work`.
        work: an existing folder.
    """
    from src.data.listing import evenly, list_test

    if folder is None:
        from tools import make_sample_nyu

        folder = work / "rooms"
        make_sample_nyu.make(folder, scenes=1, pairs_per_scene=1, test_pairs=6, seed=4)
    return evenly(list_test(folder), EXAMPLES)


def main() -> int:
    options = parse_args()
    if options.port > 65535:
        raise UserError(f"--port {options.port}: expected 1 to 65535")
    with temporary_folder() as work:
        own_environment(work)
        from src.prediction.predict import from_options
        from web.page import Page

        predictor = from_options(options)
        page = Page(predictor, about(predictor), examples(options.examples, work), work, options.queue)
        blocks = page.launch(options.host, options.port)
        logging.info("%s (Ctrl-C ends it)", blocks.local_url)
        blocks.block_thread()
    return 0


if __name__ == "__main__":
    cli.run(main)
