"""What is scored after each epoch: a Test folder, or training scenes that are held out; and what has to be beaten."""

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
    """What a net is validated on: TestPictures, HeldOut.

    `file` is what to call a picture in a message; `batches` yields (indices, RGB (N, 3, 228, 304) in [0, 1],
    metres (N, 1, 55, 74)) of those that are asked for and can be read.
    """

    names: list[str]
    fingerprint: str

    def file(self, index: int) -> object: ...
    def batches(self, indices: Sequence[int], batch_size: int, workers: int) -> Iterator[Batch]: ...


class TestPictures:
    """The Test part of a NYU folder. Raises DataError and image.ImageError: every file is read once."""

    def __init__(self, folder: StrPath, workers: int) -> None:
        self.pairs = readable_test_pairs(folder, workers)
        self.names = [pair.name for pair in self.pairs]
        self.fingerprint = evaluation.data_facts(self.pairs)["fingerprint"]

    def batches(self, indices: Sequence[int], batch_size: int, workers: int) -> Iterator[Batch]:
        """As Pictures says."""
        left = iter(indices)
        for pairs, rgb, full_depth_m in test_batches([self.pairs[index] for index in indices], batch_size, workers):
            yield list(itertools.islice(left, len(pairs))), rgb, evaluation.targets(full_depth_m, "depthnet", pairs)

    def file(self, index: int) -> object:
        """Its RGB picture."""
        return self.pairs[index].rgb


class HeldOut:
    """Training pairs that are not trained on, as the net would see them. Every file is read once: what cannot be read
    raises image.ImageError, or with `skip_bad` is left out."""

    def __init__(self, source: Source, workers: int, skip_bad: bool) -> None:
        self.source, self.skip_bad = source, skip_bad
        self.names = source.names
        self.fingerprint = names_digest(source.names)
        every = range(len(self.names))
        readable = {index for indices, _, _ in self.batches(every, _READ_AT_ONCE, workers) for index in indices}
        for index in sorted({*every} - readable):
            logger.warning("bad sample, left out of the validation: %s", self.file(index))

    def batches(self, indices: Sequence[int], batch_size: int, workers: int) -> Iterator[Batch]:
        """As Pictures says."""
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
        """As the Source calls it."""
        return self.source.file(index)


def split_scenes(names: Sequence[str], share: float, seed: int) -> tuple[list[int], list[int]]:
    """(indices to train on, indices to hold out) of training pairs: this share of the scenes, one at least, chosen by
    the seed. What NYU recorded in several parts (living_room_0001a, living_room_0001b) is one scene.

    Raises DataError where there is one scene only.
    """
    scenes = [re.sub(r"(?<=\d)[a-z](_out)?$", "", name.split("/")[0]) for name in names]
    every = sorted(set(scenes))
    if len(every) < 2:
        raise DataError(f"--val_scenes: {len(every)} scene of training pairs: expected two or more")
    count = min(max(1, round(share * len(every))), len(every) - 1)
    held_out = {every[place] for place in counter_rng(seed, 0).permutation(len(every))[:count]}
    train, held = (
        [index for index, scene in enumerate(scenes) if (scene in held_out) is wanted] for wanted in (False, True)
    )
    logger.info("held out for validation: %d of %d scenes, %d of %d pairs", count, len(every), len(held), len(names))
    return train, held


class Validation:
    """Scores a net; at the first time also the mean log-depth map of the training pairs, which it has to beat, into
    Log/mean_map.json.

    Args:
        pictures: the Pictures.
        source: the pairs that are trained on.
        skip_bad: whether what cannot be read of them is left out of their mean.
        mean_map_file: where to write what the mean map scores.
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
        self.marked = False

    def __call__(self, predict: Callable[[Floats], Floats]) -> dict[str, float]:
        """A dict of metrics. Raises on every rank when one cannot score its share."""
        if not self.marked:
            self._score_mean_map()
            self.marked = True
        return self._score(predict)

    def _score(self, predict: Callable[[Floats], Floats]) -> dict[str, float]:
        """Each rank scores its share of the pictures; the sums make the mean over all."""
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
        shown = mean_map
        scored = self._score(lambda rgb: np.broadcast_to(shown, (len(rgb), *shown.shape)))
        if self.device.is_first:
            write_text(self.mean_map_file, json.dumps({"of": self.names, **scored}, indent=2) + "\n")


def prepare_validation(
    data: DataOptions, recipe: RecipeOptions, source: Source, device: Device, mean_map_file: Path
) -> tuple[Validation | None, Source]:
    """Return the Validation that --val_data or --val_scenes asks for, or None, and the pairs that are left to train on.

    Raises DataError, and image.ImageError for a validation picture that cannot be read.
    """
    pictures: Pictures | None = None
    if data.val_data:
        logger.info(
            "Best*Net.ckpt will be those that predict the Test part of %s best: what they score there is no "
            "test any more (--val_scenes 0.1 holds out training scenes for it)",
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
    """What mean_map.json holds, or {}: the metrics of the mean map, and `of`, what they were measured on."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
