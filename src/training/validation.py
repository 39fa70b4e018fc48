"""Scores a net after each epoch, on a Test folder or on held-out training scenes, and the mean map to compare with."""

import itertools
import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np

from src import metrics
from src.base import cli
from src.base.arrays import Floats
from src.base.errors import CheckFailed, UserError
from src.base.files import StrPath, write_text
from src.data.listing import DataError, names_digest
from src.data.plain import Source
from src.data.sampling import counter_rng
from src.data_loader import keep_freed_memory, readable_test_pairs, test_batches
from src.nets.device import Device
from src.scoring import baselines, evaluation
from src.training.options import DataOptions, RecipeOptions

_READ_AT_ONCE = 256  # held-out samples, of 220 KB each

logger = logging.getLogger(__name__)

Batch: TypeAlias = tuple[Sequence[int], Floats, Floats]


class Pictures(Protocol):
    """Validation pictures by index: interface of TestPictures and HeldOut."""

    names: list[str]
    fingerprint: str

    def file(self, index: int) -> object:
        """Return the name of a picture for messages."""

    def batches(self, indices: Sequence[int], batch_size: int, workers: int) -> Iterator[Batch]:
        """Yield (indices, RGB (N, 3, 228, 304) in [0, 1], metres (N, 1, 55, 74)) of the pictures that can be read."""


class TestPictures:
    """The Test part of a NYU folder. Reads every file once, and raises DataError or image.ImageError if one is bad."""

    def __init__(self, folder: StrPath, workers: int) -> None:
        self.pairs = readable_test_pairs(folder, workers)
        self.names = [pair.name for pair in self.pairs]
        self.fingerprint = evaluation.data_facts(self.pairs)["fingerprint"]

    def batches(self, indices: Sequence[int], batch_size: int, workers: int) -> Iterator[Batch]:
        """See Pictures."""
        left = iter(indices)
        for pairs, rgb, full_depth_m in test_batches([self.pairs[index] for index in indices], batch_size, workers):
            yield list(itertools.islice(left, len(pairs))), rgb, evaluation.targets(full_depth_m, "depthnet", pairs)

    def file(self, index: int) -> object:
        """See Pictures."""
        return self.pairs[index].rgb


class HeldOut:
    """Held-out training pairs. Reads every file once. If one is bad, raises image.ImageError; with `skip_bad` leaves it
    out."""

    def __init__(self, source: Source, workers: int, skip_bad: bool) -> None:
        self.source, self.skip_bad = source, skip_bad
        self.names = source.names
        self.fingerprint = names_digest(source.names)
        indices = range(len(self.names))
        readable = {index for batch, _, _ in self.batches(indices, _READ_AT_ONCE, workers) for index in batch}
        for index in sorted({*indices} - readable):
            logger.warning("bad sample, left out of the validation: %s", self.file(index))

    def batches(self, indices: Sequence[int], batch_size: int, workers: int) -> Iterator[Batch]:
        """See Pictures."""
        samples = itertools.chain.from_iterable(
            self.source.samples(indices[start : start + _READ_AT_ONCE], workers, self.skip_bad)
            for start in range(0, len(indices), _READ_AT_ONCE)
        )
        while batch := list(itertools.islice(samples, batch_size)):
            rgb = np.stack([rgb for _, rgb, _ in batch]).transpose(0, 3, 1, 2)
            yield (
                [index for index, _, _ in batch],
                rgb.astype(np.float32) / 255,
                np.stack([depth_m for _, _, depth_m in batch])[:, None],
            )

    def file(self, index: int) -> object:
        """See Pictures."""
        return self.source.file(index)


def split_scenes(names: Sequence[str], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Choose scenes to hold out. Several recordings of a room (living_room_0001a, living_room_0001b) are one scene.

    Args:
        names: names of the training pairs, <scene>/<number>.
        share: share of the scenes to hold out; at least one scene is.
        seed: decides which scenes.

    Returns:
        (indices to train on, indices to hold out) of the pairs.

    Raises DataError if there is only one scene.
    """
    scenes = [re.sub(r"(?<=\d)[a-z](_out)?$", "", name.split("/")[0]) for name in names]
    distinct = sorted(set(scenes))
    if len(distinct) < 2:
        raise DataError(f"--val_scenes: {len(distinct)} scene of training pairs: expected two or more")
    count = min(max(1, round(share * len(distinct))), len(distinct) - 1)
    held_out = {distinct[number] for number in counter_rng(seed, 0).permutation(len(distinct))[:count]}
    train = [index for index, scene in enumerate(scenes) if scene not in held_out]
    held = [index for index, scene in enumerate(scenes) if scene in held_out]
    logger.info("held out for validation: %d of %d scenes, %d of %d pairs", count, len(distinct), len(held), len(names))
    return train, held


class Validation:
    """Scores a net. The first call also scores the mean log-depth map of the training pairs, which the net should beat.

    Args:
        pictures: the validation pictures.
        batch_size: pictures per batch.
        workers: decoding threads.
        device: the device of this process; each rank scores its share of the pictures.
        source: the training pairs.
        skip_bad: leave unreadable pairs out of the mean map, instead of giving the mean map up.
        mean_map_file: the JSON file for the scores of the mean map.
    """

    def __init__(
        self,
        pictures: Pictures,
        batch_size: int,
        workers: int,
        device: Device,
        source: Source,
        skip_bad: bool,
        mean_map_file: Path,
    ) -> None:
        self.pictures, self.batch_size, self.workers, self.device = pictures, batch_size, workers, device
        self.source, self.skip_bad, self.mean_map_file = source, skip_bad, mean_map_file
        self.names = names_digest([pictures.fingerprint, *source.names])
        self.mean_map_scored = False

    def __call__(self, predict: Callable[[Floats], Floats]) -> dict[str, float]:
        """Return the mean of each metric over all pictures.

        Args:
            predict: function from RGB (N, 3, 228, 304) in [0, 1] to log depth (N, 1, 55, 74).

        Raises CheckFailed, UserError or OSError on every rank if any rank cannot score its share.
        """
        if not self.mean_map_scored:
            self._score_mean_map()
            self.mean_map_scored = True
        return self._score(predict)

    def _score(self, predict: Callable[[Floats], Floats]) -> dict[str, float]:
        """Score this rank's share of the pictures, and return the means over all ranks' pictures."""
        share, failure = range(len(self.pictures.names))[self.device.rank :: self.device.ranks], None
        scores, sums = evaluation.Scores("depthnet"), np.zeros(2 * len(metrics.METRICS))
        keep_freed_memory()
        try:
            with cli.progress(total=len(share), desc="scoring", unit="image") as bar:
                for indices, rgb, depth_m in self.pictures.batches(share, self.batch_size, self.workers):
                    log_depth = metrics.finite(predict(rgb), map(self.pictures.file, indices))
                    scores.add([], log_depth, depth_m)
                    bar.update(len(indices))
            columns = np.array([scores.per_image[name] for name in metrics.METRICS])
            sums = np.concatenate([np.nansum(columns, 1), np.count_nonzero(~np.isnan(columns), 1)])
        except (UserError, CheckFailed, OSError) as error:
            failure = error
        summed = self.device.sum([*sums, failure is not None])
        if summed[-1]:
            raise failure or CheckFailed("another rank could not score its pictures: see its log")
        totals, counts = np.split(summed[:-1].astype(np.float64), 2)
        if not counts.all():
            raise CheckFailed("no measured pixel in any target: nothing to score")
        return dict(zip(metrics.METRICS, (totals / counts).tolist(), strict=True))

    def _score_mean_map(self) -> None:
        """Write the scores of the mean map, unless the file has those of the same pictures and pairs."""
        known = mean_map_scores(self.mean_map_file).get("of") == self.names
        if self.device.broadcast_int(int(known)):  # rank 0's counts
            return
        mean_map, failure = None, None
        try:
            mean_map = baselines.mean_map(self.source, self.workers, self.skip_bad)
        except (UserError, OSError) as error:
            failure = error
        if self.device.sum([mean_map is None])[0] or mean_map is None:
            logger.warning("warning: no mean map to compare with: %s", failure or "another rank could not make it")
            return
        log_depth = mean_map
        scores = self._score(lambda rgb: np.broadcast_to(log_depth, (len(rgb), *log_depth.shape)))
        if self.device.is_first:
            write_text(self.mean_map_file, json.dumps({"of": self.names, **scores}, indent=2) + "\n")


def prepare_validation(
    data: DataOptions, recipe: RecipeOptions, source: Source, device: Device, mean_map_file: Path
) -> tuple[Validation | None, Source]:
    """Return the Validation that --val_data or --val_scenes asks for, or None, and the pairs that are left to train on.

    Raises DataError, and image.ImageError for a validation picture that cannot be read.
    """
    pictures: Pictures | None = None
    if data.val_data:
        logger.info(
            "Best*Net.ckpt will be chosen on the Test part of %s: their scores there are no test results "
            "(--val_scenes 0.1 chooses on held-out training scenes instead)",
            data.val_data,
        )
        pictures = TestPictures(data.val_data, data.workers)
    elif data.val_scenes:
        train, held_out = split_scenes(source.names, data.val_scenes, recipe.seed)
        pictures = HeldOut(source.part(held_out), data.workers, data.skip_bad)
        source = source.part(train)
    if pictures is None:
        return None, source
    return (Validation(pictures, recipe.batch_size, data.workers, device, source, data.skip_bad, mean_map_file), source)


def mean_map_scores(path: StrPath) -> dict[str, Any]:
    """Return the content of mean_map.json: the metrics of the mean map, and `of`, a digest of the pictures and training
    pairs. {} if there is no such file."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
