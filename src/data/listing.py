"""Lists the pairs of picture and depth map in a NYU folder."""

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from src.base import folders
from src.base.errors import UserError
from src.base.files import StrPath
from src.data import image

logger = logging.getLogger(__name__)

LAYOUT = "expected NYU/Train/<scene>_out/<n>.jpg + <n>.png and NYU/Test/<id>_colors.png + <id>_depth.png"

T = TypeVar("T")


class DataError(UserError):
    """A data folder cannot be used. The message names the folder or the files."""


class TwoFiles(DataError):
    """Two files stand for the same sample. The message names them."""


class Pair(NamedTuple):
    """A picture and its depth map. `name` is <id> for a test pair and <scene>/<n> for a training pair."""

    name: str
    rgb: Path
    depth: Path


def _natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key that orders numbers by value: 2 before 10."""
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in name.split("/")]


def _split_folder(folder: StrPath, split: str) -> Path:
    """Return `folder`/`split`, or `folder` itself if that is its name. Raises DataError if there is neither."""
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; {LAYOUT}")
    if (folder / split).is_dir():
        return folder / split
    if folder.resolve().name == split:
        return folder
    content = ", ".join(sorted(entry.name for entry in folder.iterdir())[:5]) or "nothing"
    raise DataError(f"{folder}: no {split} folder in it (found: {content}); {LAYOUT}")


def missing_partners(rgb_by_name: Mapping[str, Path], depth_by_name: Mapping[str, Path]) -> list[str]:
    """Return a message for each file whose partner is missing."""

    def missing(name: str) -> str:
        return (
            f"{rgb_by_name[name]} has no depth map"
            if name in rgb_by_name
            else f"{depth_by_name[name]} has no RGB image"
        )

    return [missing(name) for name in sorted(set(rgb_by_name) ^ set(depth_by_name), key=_natural_key)]


def matched(rgb_by_name: Mapping[str, Path], depth_by_name: Mapping[str, Path]) -> list[Pair]:
    """Return a Pair for each name that has both files, in natural order."""
    return [
        Pair(name, rgb_by_name[name], depth_by_name[name])
        for name in sorted(set(rgb_by_name) & set(depth_by_name), key=_natural_key)
    ]


class Files(NamedTuple):
    """The files of Train or Test by sample name, paired or not, and the result of the search."""

    rgb: dict[str, Path]
    depth: dict[str, Path]
    search: folders.SearchResult


def train_files(folder: StrPath) -> Files:
    """Find the files of `folder`/Train. Raises DataError if there is no such folder or two files are one sample."""
    root = _split_folder(folder, "Train")
    search = folders.search(root, ("*", "*"), (*image.JPEG_ENDINGS, ".png"))
    if outside := folders.search(root, ("*",)).files:
        search.left_out["in no scene's folder"] = outside

    def name_of(path: Path) -> str:
        return f"{path.parent.name}/{path.stem}"

    return Files(_by_name(search, image.JPEG_ENDINGS, name_of), _by_name(search, (".png",), name_of), search)


def test_files(folder: StrPath) -> Files:
    """Find the files of `folder`/Test. Raises DataError if there is no such folder or two files are one sample."""
    search = folders.search(_split_folder(folder, "Test"), ("*",), ("_colors.png", "_depth.png"))

    def name_of(path: Path) -> str:
        return path.name[: path.name.rindex("_")]

    return Files(_by_name(search, ("_colors.png",), name_of), _by_name(search, ("_depth.png",), name_of), search)


def _by_name(search: folders.SearchResult, endings: tuple[str, ...], name_of: Callable[[Path], str]) -> dict[str, Path]:
    by_name: dict[str, Path] = {}
    for path in (path for path in search.files if path.name.lower().endswith(endings)):
        earlier = by_name.setdefault(name_of(path), path)
        if earlier != path:
            raise TwoFiles(f"{path} and {earlier}: two files of one name: expected one of them")
    return by_name


def list_train(folder: StrPath) -> list[Pair]:
    """List the pairs of `folder`/Train by scene and number, in the same order on every machine. Raises DataError."""
    return _all_pairs(folder, train_files(folder))


def list_test(folder: StrPath) -> list[Pair]:
    """List the pairs of `folder`/Test by id. Raises DataError."""
    return _all_pairs(folder, test_files(folder))


def _all_pairs(folder: StrPath, files: Files) -> list[Pair]:
    """Return the Pairs. Raises DataError if a folder cannot be read, a partner is missing, or there is no pair. Logs
    other files that are left out."""
    if files.search.unread:
        raise DataError("; ".join(files.search.unread[:3]) + _more(files.search.unread))
    for reason, paths in files.search.left_out.items():
        logger.warning("left out, %s: %s", reason, folders.named(paths))
    unpaired = missing_partners(files.rgb, files.depth)
    if unpaired:
        raise DataError("; ".join(unpaired[:3]) + _more(unpaired))
    if not files.rgb:
        raise DataError(f"{folder}: no image pairs; {LAYOUT}")
    return matched(files.rgb, files.depth)


def _more(sentences: Sequence[str]) -> str:
    return f" (and {len(sentences) - 3} more)" if len(sentences) > 3 else ""


def names_digest(names: Iterable[str]) -> str:
    """Return a hexadecimal digest of these names in this order."""
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def evenly(sequence: Sequence[T], most: int) -> list[T]:
    """Return at most `most` items of a list or range, evenly spaced."""
    count = min(most, len(sequence))
    return [sequence[number * len(sequence) // count] for number in range(count)]
