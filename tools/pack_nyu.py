"""Pack the training pairs of a NYU folder: decode, crop and resize them once, to train faster."""

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from src.base import cli


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("data", type=Path, help="the NYU folder, or with --verify the packed folder")
    parser.add_argument("out", type=Path, nargs="?", help="the new folder: 260 KB per pair, 13 GB for all of NYU")
    parser.add_argument("--workers", type=cli.positive_int, default=cli.default_workers(), help="decoding threads")
    parser.add_argument("--verify", action="store_true", help="check a packed folder against its checksums instead")
    needs = {"workers": ("DATA OUT", lambda options: not options.verify)}
    options = cli.parse(parser, None, needs)
    if options.verify != (options.out is None):
        parser.error("expected DATA OUT, or PACKED --verify")
    from src.data import packed

    if options.verify:
        pairs = packed.PackedPairs(options.data)
        pairs.verify()
        logging.info("%s: %d pairs, every file matches its checksum", options.data, len(pairs.names))
        return 0
    manifest = packed.pack(options.data, options.out, options.workers)
    logging.info(
        "%d pairs in %s: train.py --data_url takes it in place of the NYU folder", manifest["pairs"], options.out
    )
    return 0


if __name__ == "__main__":
    cli.run(main)
