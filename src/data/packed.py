"""Packs a training set: every pair is decoded, cropped and resized once, and stored in MindRecord shards.

The samples equal those of `plain.PlainPairs` bit for bit, with the same names and order, so that a seed gives the same
batches from both forms.
"""

import copy
import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from src.base import cli
from src.base.arrays import Array, Floats, Indices, Pixels
from src.base.files import StrPath, writable_folder, write_text
from src.data import image
from src.data.listing import DataError, Pair
from src.data.plain import Load, PlainPairs, decode_train_pair, decoding_pool, train_target
from src.data.sampling import Schedule
from src.data_loader import keep_freed_memory

MANIFEST = "manifest.json"
PAIRS_A_SHARD = 4096  # about 1 GB

# Properties that a packed sample depends on. Raise the version when src/data/image.py changes its results.
GEOMETRY: dict[str, Any] = {
    "version": 3,
    "full_size": list(image.FULL_SIZE),
    "crop_rows": list(image.CROP_ROWS),
    "crop_columns": list(image.CROP_COLUMNS),
    "interpolation": "bilinear over measured pixels, half-pixel centres",
    "depth_scale": float(image.TRAIN_DEPTH_SCALE),
    "rgb": ["uint8", *image.HALF_SIZE, 3],
    "depth_m": ["float32", *image.DEPTH_SIZE],
    "pixels": ["uint8", *image.HALF_SIZE],
}
_COLUMNS = ("rgb", "depth_m", "pixels")
_SCHEMA = {
    "index": {"type": "int32"},
    **{name: {"type": "bytes"} for name in _COLUMNS},
    **{f"{name}_crc": {"type": "int64"} for name in _COLUMNS},
}

# A page holds the rows of one write: 12 rows of 316 KB.
_PAGE_BYTES, _ROWS_A_WRITE = 4 << 20, 12
_PREFETCHED_BATCHES = 4


def pack(folder: StrPath, out: StrPath, workers: int) -> dict[str, Any]:
    """Pack the Train part of a NYU folder. The manifest is written last, so that an unfinished packing has none.

    Args:
        folder: the NYU folder.
        out: a new or empty folder, or one with an unfinished packing, which is overwritten.
        workers: decoding threads.

    Returns:
        The manifest.

    Raises DataError, or image.ImageError naming a file that cannot be read.
    """
    source, out = PlainPairs(folder), Path(out)
    if out.is_dir():
        foreign = [path.name for path in out.iterdir() if not path.name.startswith("train_")]
        if foreign:
            raise DataError(f"{out}: holds {sorted(foreign)[0]}; expected an empty or a new folder")
    writable_folder(out)
    keep_freed_memory()
    shards: list[dict[str, Any]] = []
    with cli.progress(len(source.names), "packing", "pair") as bar, decoding_pool(workers) as pool:
        for start in range(0, len(source.names), PAIRS_A_SHARD):
            indices = range(start, min(start + PAIRS_A_SHARD, len(source.names)))
            path = out / f"train_{len(shards):03d}.mindrecord"
            _write_shard(path, source, indices, pool, bar)
            for file in (path, _index_file(path)):
                file.chmod(out.stat().st_mode & 0o666)  # MindRecord allows only their owner to read them
            shards.append({"pairs": len(indices), "files": [_fingerprint(path), _fingerprint(_index_file(path))]})
    manifest = {
        "source": str(folder),
        "data": source.data_digest(),
        "geometry": GEOMETRY,
        "pairs": len(source.names),
        "shards": shards,
        "names": source.names,
    }
    write_text(out / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return manifest


def _index_file(shard: Path) -> Path:
    return shard.with_name(f"{shard.name}.db")


def _write_shard(path: Path, source: PlainPairs, indices: range, pool: ThreadPoolExecutor, bar: cli.Progress) -> None:
    from mindspore.mindrecord import FileWriter

    writer = FileWriter(str(path), shard_num=1, overwrite=True)
    writer.set_page_size(_PAGE_BYTES)
    writer.add_schema(_SCHEMA, "NYU Depth V2 training pairs")
    for start in range(indices.start, indices.stop, _ROWS_A_WRITE):
        part = range(start, min(start + _ROWS_A_WRITE, indices.stop))
        pairs = source.pairs[part.start : part.stop]
        try:
            writer.write_raw_data(
                [_row(index, sample) for index, sample in zip(part, pool.map(_sample, pairs), strict=True)]
            )
        except RuntimeError as error:
            raise DataError(f"{path}: cannot be written: {_reason(error)}") from error
        bar.update(len(part))
    try:
        writer.commit()
    except RuntimeError as error:
        raise DataError(f"{path}: cannot be written: {_reason(error)}") from error


def _sample(pair: Pair) -> tuple[Pixels, Floats, Pixels]:
    """Read the inputs of both augmentations: whole picture, target, and whole depth map, as in GEOMETRY."""
    rgb, pixels = decode_train_pair(pair)
    return image.half_pixels(rgb), train_target(pixels), image.half_depth(pixels)


def _row(index: int, sample: Sequence[Array]) -> dict[str, Any]:
    columns = {name: array.tobytes() for name, array in zip(_COLUMNS, sample, strict=True)}
    return {"index": index, **columns, **{f"{name}_crc": zlib.crc32(column) for name, column in columns.items()}}


def _reason(error: Exception) -> str:
    """Return the line of MindSpore's message that states the error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if line.startswith("[ERROR]")), lines[0] if lines else str(error))


def _fingerprint(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _shaped(name: str, rows: Pixels) -> Array:
    """View the bytes of a column as arrays of the type and shape that GEOMETRY gives."""
    dtype, *shape = GEOMETRY[name]
    return rows.view(dtype).reshape(-1, *shape)


def open_training(folder: StrPath) -> "PlainPairs | PackedPairs":
    """Open a NYU folder (PlainPairs) or a packed folder (PackedPairs). Raises DataError."""
    folder = Path(folder)
    if (folder / MANIFEST).is_file():
        return PackedPairs(folder)
    if any(folder.glob("train_*.mindrecord")):
        raise DataError(f"{folder}: packing was not finished ({MANIFEST} is missing): pack it again")
    return PlainPairs(folder)


class PackedPairs:
    """The training pairs of a packed folder, read by MindSpore's MindDataset in whole batches. See PlainPairs.

    Raises DataError if the manifest does not match GEOMETRY, or a shard does not match the manifest.
    """

    form = "packed"

    def __init__(self, folder: StrPath) -> None:
        self.folder = Path(folder)
        try:
            manifest = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
            self.names, geometry, self._data = list(manifest["names"]), dict(manifest["geometry"]), manifest.get("data")
            self._files: list[dict[str, Any]] = [
                {"name": str(file["name"]), "bytes": int(file["bytes"]), "sha256": str(file["sha256"])}
                for shard in manifest["shards"]
                for file in shard["files"]
            ]
            if not all(isinstance(name, str) for name in self.names):
                raise TypeError("a name is not a text")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(f"{self.folder / MANIFEST}: not a manifest of a packed training set") from error
        if geometry != GEOMETRY:
            different = [key for key in GEOMETRY if geometry.get(key) != GEOMETRY[key]]
            raise DataError(
                f"{self.folder}: packed with another geometry ({', '.join(different)}): pack it again with this version"
            )
        self._row_numbers: Sequence[int] = range(len(self.names))
        self._checked: dict[str, set[int]] = {name: set() for name in _COLUMNS}
        for file in self._files:
            path = self.folder / file["name"]
            if not path.is_file() or path.stat().st_size != file["bytes"]:
                raise DataError(f"{path}: missing or not of {file['bytes']} bytes, as {MANIFEST} says")

    def part(self, indices: Sequence[int]) -> "PackedPairs":
        """Return a source of only these samples."""
        part = copy.copy(self)
        part.names = [self.names[index] for index in indices]
        part._row_numbers = [self._row_numbers[index] for index in indices]
        part._checked = {name: set() for name in _COLUMNS}
        return part

    def verify(self) -> None:
        """Compare every file with its checksum. Raises DataError naming the first that differs."""
        for file in self._files:
            path = self.folder / file["name"]
            if _fingerprint(path) != file:
                raise DataError(f"{path}: damaged: does not match its checksum in {MANIFEST}")

    def data_digest(self) -> str:
        """Return the digest of the files that were packed, as PlainPairs.data_digest computed it."""
        return self._data

    def file(self, index: int) -> str:
        """Return the name of sample `index` for messages."""
        return f"{self.folder}: {self.names[index]}"

    def read(
        self, schedule: Schedule, first_step: int, last_step: int, workers: int, whole: bool
    ) -> Iterator[tuple[int, Indices, Load]]:
        """Yield (epoch, sample indices, function that returns a sample as PlainPairs.load) for each step."""
        step, depth = first_step, "pixels" if whole else "depth_m"
        rows, columns = (slice(None), slice(None)) if whole else (image.HALF_ROWS, image.HALF_COLUMNS)
        while step < last_step:
            epoch, position = divmod(step, schedule.steps_per_epoch)
            steps = min(last_step - step, schedule.steps_per_epoch - position)
            indices = schedule.shard(epoch)[position * schedule.batch_size : (position + steps) * schedule.batch_size]
            for batch, *arrays in self._rows(indices, schedule.batch_size, workers, ["rgb", depth]):
                rgb, depths = (_shaped(name, array) for name, array in zip(("rgb", depth), arrays, strict=True))
                samples = dict(zip(batch.tolist(), zip(rgb[:, rows, columns], depths, strict=True), strict=True))
                yield epoch, batch, samples.__getitem__
            step += steps

    def depth_maps(
        self, indices: Sequence[int], workers: int, skip_bad: bool
    ) -> Iterator[Floats]:  # unused: pack() refuses bad files
        """Yield the depth (55, 74) in metres of these samples."""
        for _, depth_m in self._rows(indices, 64, workers, ["depth_m"]):
            yield from _shaped("depth_m", depth_m)

    def samples(self, indices: Sequence[int], workers: int, skip_bad: bool) -> Iterator[tuple[int, Pixels, Floats]]:
        """Yield (index, RGB, depth in metres) of these samples, in the shapes of PlainPairs.load."""
        for batch, rgb, depth_m in self._rows(indices, 64, workers, ["rgb", "depth_m"]):
            yield from zip(
                batch.tolist(),
                _shaped("rgb", rgb)[:, image.HALF_ROWS, image.HALF_COLUMNS],
                _shaped("depth_m", depth_m),
                strict=True,
            )

    def _rows(
        self, indices: Sequence[int] | Indices, batch_size: int, workers: int, columns: Sequence[str]
    ) -> Iterator[Any]:
        """Yield (indices, *columns) of batches, in the order of `indices`."""
        import mindspore.dataset as ds

        row_numbers = [self._row_numbers[int(index)] for index in indices]
        ds.config.set_prefetch_size(_PREFETCHED_BATCHES)
        shards = [str(self.folder / file["name"]) for file in self._files if file["name"].endswith(".mindrecord")]
        try:
            rows = ds.MindDataset(
                shards,
                ["index", *(f"{name}_crc" for name in columns), *columns],
                min(workers, ds.config.get_num_parallel_workers()),
                sampler=ds.SubsetSampler(row_numbers),
            ).batch(batch_size)
            for start, (stored, *arrays) in zip(
                range(0, len(indices), batch_size),
                rows.create_tuple_iterator(num_epochs=1, output_numpy=True),
                strict=True,
            ):
                batch = indices[start : start + batch_size]
                if list(stored.ravel()) != row_numbers[start : start + batch_size]:
                    raise DataError(f"{self.folder}: other rows than asked for: pack it again")
                for name, sums, rows_of in zip(columns, arrays, arrays[len(columns) :], strict=False):
                    self._check_rows(name, batch, sums.ravel(), rows_of)
                yield np.asarray(batch), *arrays[len(columns) :]
        except RuntimeError as error:
            raise DataError(f"{self.folder}: cannot be read: {_reason(error)}") from error

    def _check_rows(
        self, name: str, indices: Sequence[int] | Indices, sums: npt.NDArray[np.int64], rows: Pixels
    ) -> None:
        """Compare rows that are read for the first time with their checksums. Raises DataError naming a sample that
        differs."""
        checked = self._checked[name]
        for index, expected, row in zip(map(int, indices), sums, rows, strict=True):
            if index not in checked:
                if zlib.crc32(row) != expected:
                    raise DataError(f"{self.file(index)}: damaged: does not match its checksum: pack it again")
                checked.add(index)
