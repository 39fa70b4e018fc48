"""Searches folders for files, with the same rules in every command.

Files that file servers and desktops create (LITTER) are ignored. Links are followed. A folder that several paths lead
to is searched once, so that cycles of links end.
"""

import fnmatch
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from src.base.files import StrPath

# First line: hidden names (including those of macOS, Jupyter, NFS and rsync), then names of macOS, Windows and Linux.
# Second line: names of Synology and QNAP file servers.
LITTER = re.compile(
    r"\..*|__MACOSX|Icon\r|(eh)?Thumbs\.db|desktop\.ini|\$RECYCLE\.BIN|System Volume Information|lost\+found"
    r"|@eaDir|@tmp|@__thumb|[#@]recycle|[#@](Recently-)?Snapshot|.*@Syno(EAStream|Resource)",
    re.IGNORECASE | re.DOTALL,
)
BELOW = ("**",)  # the pattern for all files below a folder

# Reasons why a path is left out, as messages print them.
OTHER_ENDING = "another ending than is taken"
FOLDER = "a folder, which is not searched"
KNOWN = "a link to a folder that is searched already"
NO_FILE = "neither a file nor a folder"
_MOST_NAMED = 5


@dataclass
class SearchResult:
    """The result of a search.

    Attributes:
        files: the matching files, sorted. A broken link with a matching name is included: reading it will fail.
        unread: a message for each folder that cannot be read and each link that cannot be followed.
        left_out: other paths that match the pattern, by the reason why they were left out.
    """

    files: list[Path] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    left_out: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))


def is_litter(name: str) -> bool:
    """Return whether a file or folder of this name was put there by a system and not by the user."""
    return LITTER.fullmatch(name) is not None


def search(root: StrPath, pattern: Sequence[str] = BELOW, endings: tuple[str, ...] = ("",)) -> SearchResult:
    """Find the files below folder `root` that match a glob pattern and have one of these endings.

    Args:
        root: the folder.
        pattern: the parts of the pattern, such as ("*", "**").
        endings: of file names, in lower case; upper case matches too.
    """
    result, known = SearchResult(), set()
    folders: list[tuple[str, ...]] = [()]
    links: list[tuple[str, ...]] = []
    while folders or links:
        parts = folders.pop() if folders else links.pop(0)  # links last: their targets may be reachable without them
        folder = Path(root, *parts)
        try:
            status, entries = folder.stat(), list(os.scandir(folder))
        except OSError as error:
            result.unread.append(f"{folder}: cannot be read: {error.strerror}")
            continue
        if (status.st_dev, status.st_ino) in known and "**" in pattern:
            result.left_out[KNOWN].append(folder)
            continue
        known.add((status.st_dev, status.st_ino))
        for entry in (entry for entry in entries if not is_litter(entry.name)):
            inner, path = (*parts, entry.name), folder / entry.name
            searchable, matches = _may_contain(inner, pattern), _matches(inner, pattern)
            if searchable or matches:
                wanted = matches and entry.name.lower().endswith(endings)
                kind = _kind(entry, wanted)
                if kind == FOLDER and searchable:
                    (links if entry.is_symlink() else folders).append(inner)
                elif kind == "file" and wanted:
                    result.files.append(path)
                elif kind in (FOLDER, NO_FILE):
                    result.left_out[kind].append(path)
                elif kind != "file":
                    result.unread.append(f"{path}: a link that cannot be followed: {kind}")
                elif matches:
                    result.left_out[OTHER_ENDING].append(path)
    result.unread.sort()
    for paths in (result.files, *result.left_out.values()):
        paths.sort()
    return result


def _kind(entry: os.DirEntry[str], wanted: bool) -> str:
    """Return FOLDER, "file", NO_FILE (such as a pipe, which would block), or the reason why a link cannot be followed.
    A broken link counts as a file if its name is `wanted`."""
    try:
        if entry.is_dir():
            return FOLDER
        if entry.is_file():
            return "file"
        if not entry.is_symlink():
            return NO_FILE
        entry.stat()
        return NO_FILE
    except OSError as error:
        return "file" if wanted else str(error.strerror)


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Return whether a path matches a glob pattern."""
    if not parts or not pattern:
        return not parts and set(pattern) <= {"**"}
    if pattern[0] == "**":
        return _matches(parts, pattern[1:]) or _matches(parts[1:], pattern)
    return fnmatch.fnmatch(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _may_contain(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Return whether a path below the folder `parts` could match a glob pattern."""
    if not parts or not pattern or pattern[0] == "**":
        return bool(pattern)
    return fnmatch.fnmatch(parts[0], pattern[0]) and _may_contain(parts[1:], pattern[1:])


def named(names: Iterable[object]) -> str:
    """Return the first _MOST_NAMED names as text, and the number of the others."""
    texts = list(map(str, names))
    more = f" and {len(texts) - _MOST_NAMED} more" if len(texts) > _MOST_NAMED else ""
    return ", ".join(texts[:_MOST_NAMED]) + more
