"""Check every file of a NYU folder, and report statistics and problems."""

import argparse
import collections
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from src import data_loader
from src.base import cli
from src.base.arrays import Array, Floats, Pixels
from src.base.files import StrPath, writable_folder, write_text
from src.data import image, listing, plain
from src.data.listing import Pair

# isort: split
import cv2  # after src, which drops the variables that OpenCV reads at its import

LOADERS = {"Train": (listing.train_files, image.load_train_depth), "Test": (listing.test_files, image.load_test_depth)}
HISTOGRAM_EDGES_M = np.linspace(0, 10, 51)
PRINTED_PROBLEMS = 20
# Two files contain the same picture if their thumbnails differ by at most SAME_LEVELS of 255 levels in the mean. JPEG
# compression changes a thumbnail by 1 level.
THUMBNAIL_SIZE, SAME_LEVELS = (16, 12), 2.0
EMPTY_SHARE = 1 / 8  # a picture counts as truncated if at least this share of rows, at its end, has a single colour
SHOWN_PAIRS = 4


@dataclass
class Split:
    """Statistics and problems of Train or Test."""

    name: str
    pairs: list[Pair] = field(default_factory=list)
    sizes: collections.Counter[tuple[int, int]] = field(default_factory=collections.Counter)
    low_m: float = np.inf
    high_m: float = 0.0
    unmeasured: float = 0.0  # sum over the good pairs of their share of unmeasured pixels
    histogram: Array = field(default_factory=lambda: np.zeros(len(HISTOGRAM_EDGES_M) - 1, np.int64))
    good: list[Pair] = field(default_factory=list)
    thumbnails: list[Pixels] = field(default_factory=list)  # of the good pairs
    problems: list[tuple[str, str]] = field(default_factory=list)  # (kind, message)

    def add(self, pair: Pair, facts: Mapping[str, Any]) -> None:
        """Add a pair. `facts`: as `inspect` returned them."""
        if "problem" in facts:
            self.problems.append(facts["problem"])
            return
        self.good.append(pair)
        self.sizes[facts["size"]] += 1
        self.low_m, self.high_m = min(self.low_m, facts["low_m"]), max(self.high_m, facts["high_m"])
        self.unmeasured += facts["unmeasured"]
        self.histogram += facts["histogram"]
        self.thumbnails.append(facts["thumbnail"])

    def summary(self) -> dict[str, Any]:
        """Return the statistics as values for JSON."""
        return {
            "pairs": len(self.pairs),
            "good_pairs": len(self.good),
            "scenes": len({pair.name.split("/")[0] for pair in self.pairs}) if self.name == "Train" else None,
            "sizes": {f"{height}x{width}": count for (height, width), count in self.sizes.most_common()},
            "depth_bits": 8 if self.name == "Train" else 16,
            "depth_m": [round(self.low_m, 3), round(self.high_m, 3)] if self.good else None,
            "unmeasured_share": self.unmeasured / len(self.good) if self.good else None,
        }


def inspect(pair: Pair, load_depth: Callable[[Path], Floats]) -> dict[str, Any]:
    """Read both files of a pair.

    Args:
        pair: the files.
        load_depth: reads the depth map as metres (H, W).

    Returns:
        The size, the range of depth in metres, the share of unmeasured pixels, a histogram and a thumbnail, by name;
        or {"problem": (kind, message)}.
    """
    try:
        rgb, depth_m = image.load_rgb(pair.rgb), load_depth(pair.depth)
        image.check_pair(rgb, depth_m, pair.rgb, pair.depth)
    except image.ImageError as error:
        kinds = {image.BitDepthError: "bit depth", image.SizeError: "size"}
        return {"problem": (kinds.get(type(error), "broken file"), str(error))}
    if empty := _empty_rows(rgb):
        return {"problem": ("broken file", f"{pair.rgb}: its last {empty} rows are of one colour: cut off?")}
    measured_m = depth_m[depth_m > 0]
    if not measured_m.size:
        return {"problem": ("no depth", f"{pair.depth}: no measured pixel")}
    if load_depth is image.load_test_depth and measured_m.max() <= 0.255:
        return {"problem": ("unit", f"{pair.depth}: 16-bit, but no pixel is over 255: 8-bit depth in a 16-bit file?")}
    if load_depth is image.load_test_depth and not np.any(np.rint(measured_m * 1000) % 257):
        return {"problem": ("unit", f"{pair.depth}: every pixel is a multiple of 257: 8-bit depth spread over 16?")}
    return {
        "size": rgb.shape[:2],
        "low_m": float(measured_m.min()),
        "high_m": float(measured_m.max()),
        "unmeasured": 1 - measured_m.size / depth_m.size,
        "histogram": np.histogram(measured_m[::16], HISTOGRAM_EDGES_M)[0],
        "thumbnail": cv2.resize(rgb, THUMBNAIL_SIZE, interpolation=cv2.INTER_AREA),
    }


def _empty_rows(rgb: Pixels) -> int:
    """Return the number of rows at a picture's end that have a single colour, or 0 if less than EMPTY_SHARE of all."""
    varied = np.flatnonzero((rgb != rgb[-1, -1]).any((1, 2)))
    empty = len(rgb) - 1 - (varied[-1] if varied.size else -1)
    return int(empty) if varied.size and empty >= EMPTY_SHARE * len(rgb) else 0


def check_split(folder: StrPath, name: str, workers: int) -> Split:
    """Inspect every pair of a folder's Train or Test. `workers`: number of threads."""
    find, load_depth = LOADERS[name]
    split = Split(name)
    try:
        files = find(folder)
    except listing.DataError as error:
        kind = "two files" if isinstance(error, listing.TwoFiles) else "missing folder"
        split.problems.append((kind, str(error)))
        return split
    split.problems += [("not readable", text) for text in files.search.unread]
    split.problems += [
        ("left out", f"{path}: left out, {reason}") for reason, paths in files.search.left_out.items() for path in paths
    ]
    split.problems += [("missing partner", text) for text in listing.missing_partners(files.rgb, files.depth)]
    split.pairs = listing.matched(files.rgb, files.depth)
    if not split.pairs:
        split.problems.append(("missing folder", f"{folder}: no pairs in {name}; {listing.LAYOUT}"))
    with plain.decoding_pool(workers) as pool, cli.progress(len(split.pairs), f"checking {name}", "pair") as bar:
        for pair, facts in zip(split.pairs, pool.map(lambda pair: inspect(pair, load_depth), split.pairs), strict=True):
            split.add(pair, facts)
            bar.update()
    return split


def check(folder: StrPath, workers: int) -> dict[str, Split]:
    """Inspect a NYU folder. Returns {"Train": Split, "Test": Split}. Raises DataError if there is no such folder."""
    if not Path(folder).is_dir():
        raise listing.DataError(f"{folder}: no such folder; {listing.LAYOUT}")
    data_loader.keep_freed_memory()
    splits = {name: check_split(folder, name, workers) for name in LOADERS}
    train, test = splits["Train"], splits["Test"]
    test.problems += [
        ("duplicate", f"{of_test.rgb} is the picture {of_train.rgb}") for of_test, of_train in _in_both(test, train)
    ]
    return splits


def _in_both(test: Split, train: Split) -> Iterator[tuple[Pair, Pair]]:
    """Yield (test pair, training pair) of each test picture that is also in Train, by their thumbnails."""
    if not train.good:
        return
    known = np.stack(train.thumbnails).reshape(len(train.good), -1).astype(np.int16)
    for pair, thumbnail in zip(test.good, test.thumbnails, strict=True):
        difference = np.abs(known - thumbnail.ravel()).mean(1)
        nearest = int(difference.argmin())
        if difference[nearest] <= SAME_LEVELS:
            yield pair, train.good[nearest]


def report(splits: Mapping[str, Split]) -> dict[str, Any]:
    """Return the statistics and problems of the splits as values for JSON."""
    return {
        name: {**split.summary(), "problems": [{"kind": kind, "what": text} for kind, text in split.problems]}
        for name, split in splits.items()
    }


def table(splits: Mapping[str, Split]) -> str:
    """Return the statistics and the number of problems by kind as a text table."""
    from tabulate import tabulate

    columns = {name: split.summary() for name, split in splits.items()}
    kinds = {name: collections.Counter(kind for kind, _ in split.problems) for name, split in splits.items()}

    def row(label: str, show: Callable[[dict[str, Any]], object]) -> list[object]:
        return [label, *(show(columns[name]) for name in splits)]

    rows = [
        row("pairs", lambda s: s["pairs"]),
        row("scenes", lambda s: s["scenes"] or ""),
        row("size", lambda s: ", ".join(s["sizes"])),
        row("depth bits", lambda s: s["depth_bits"]),
        row("depth, m", lambda s: "{:.2f} to {:.2f}".format(*s["depth_m"]) if s["depth_m"] else ""),
        row("unmeasured", lambda s: f"{s['unmeasured_share']:.2%}" if s["depth_m"] else ""),
        *(
            [f"! {kind}", *(kinds[name][kind] or "" for name in splits)]
            for kind in sorted(set().union(*kinds.values()))
        ),
    ]
    return tabulate(rows, ["", *splits], disable_numparse=True)


def draw(splits: Mapping[str, Split], path: Path) -> None:
    """Save a figure with some pairs of each split and the histograms of their depth."""
    from src.scoring import visual

    figure = visual.new_figure(3 * SHOWN_PAIRS, 11)
    *split_figures, bottom = figure.subfigures(3, 1, squeeze=False, height_ratios=[4, 4, 3])[:, 0]
    axis = bottom.subplots()
    for split, part in zip(splits.values(), split_figures, strict=True):
        part.suptitle(f"{split.name}: {len(split.pairs)} pairs")
        pairs = listing.evenly(split.good, SHOWN_PAIRS)
        axes = part.subplots(2, SHOWN_PAIRS)
        for pair_axis in axes.flat:
            pair_axis.axis("off")
        for pair, (top, below) in zip(pairs, axes.T, strict=False):
            top.imshow(image.load_rgb(pair.rgb))
            top.set_title(visual.label(pair.name), fontsize=8)
            depth_m = LOADERS[split.name][1](pair.depth)
            drawn = below.imshow(np.where(depth_m > 0, depth_m, np.nan), vmin=0, vmax=10)
        if pairs:
            part.colorbar(drawn, ax=axes.ravel().tolist(), label="m")
            axis.stairs(split.histogram / split.histogram.sum(), HISTOGRAM_EDGES_M, label=split.name)
    axis.set(xlabel="depth, m", ylabel="share of the measured pixels", xlim=(0, 10))
    axis.legend()
    visual.save_figure(figure, path)


def present(splits: Mapping[str, Split], output_dir: Path | None) -> int:
    """Print the report, and write it to `output_dir` if given. Returns the exit code: 1 if there are problems."""
    logging.info("%s", table(splits))
    problems = [text for split in splits.values() for _, text in split.problems]
    for text in problems[:PRINTED_PROBLEMS]:
        logging.info("wrong: %s", text)
    if len(problems) > PRINTED_PROBLEMS:
        logging.info("and %d more", len(problems) - PRINTED_PROBLEMS)
    if output_dir:
        writable_folder(output_dir)
        write_text(output_dir / "check.json", json.dumps(report(splits), indent=2) + "\n")
        draw(splits, output_dir / "check.png")
        logging.info("report in %s", output_dir)
    logging.info("%s", f"{len(problems)} problems" if problems else "nothing is wrong")
    return cli.CHECK_FAILED if problems else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("data", type=Path, help="the NYU folder")
    parser.add_argument("--output_dir", type=Path, help="write check.json (every problem) and check.png there")
    parser.add_argument("--workers", type=cli.positive_int, default=cli.default_workers(), help="threads")
    options = parser.parse_args()
    return present(check(options.data, options.workers), options.output_dir)


if __name__ == "__main__":
    cli.run(main)
