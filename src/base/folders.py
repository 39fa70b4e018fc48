"""Searches folders for files, with the same rules in every command.

Files of file servers and desktops (LITTER) are ignored. Links are followed. A folder reached twice is searched once, so
that cycles end.
"""

import fnmatch
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from src.base.files import StrPath

# Hidden names (including those of macOS, Jupyter, NFS and rsync); macOS, Windows, Linux; Synology and QNAP.
LITTER = re.compile(
    r"\..*|__MACOSX|Icon\r|(eh)?Thumbs\.db|desktop\.ini|\$RECYCLE\.BIN|System Volume Information|lost\+found"
    r"|@eaDir|@tmp|@__thumb|[#@]recycle|[#@](Recently-)?Snapshot|.*@Syno(EAStream|Resource)",
    re.IGNORECASE | re.DOTALL,
)
BELOW = ("**",)  # the pattern for all files below a folder

OTHER_ENDING = "another ending than is taken"
FOLDER = "a folder, which is not searched"
KNOWN = "a link to a folder that is searched already"
NO_FILE = "neither a file nor a folder"
_NAMED = 5


@dataclass
class Found:
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


def search(root: StrPath, pattern: Sequence[str] = BELOW, endings: tuple[str, ...] = ("",)) -> Found:
    """Find the files below folder `root` that match a glob pattern and have one of these endings.

    Args:
        root: the folder.
        pattern: the parts of the pattern, such as ("*", "**").
        endings: in lower case; upper case matches too.
    """
    found, known = Found(), set()
    folders: list[tuple[str, ...]] = [()]
    links: list[tuple[str, ...]] = []
    while folders or links:
        parts = folders.pop() if folders else links.pop(0)  # links last: their targets may be reachable without them
        folder = Path(root, *parts)
        try:
            status, entries = folder.stat(), list(os.scandir(folder))
        except OSError as error:
            found.unread.append(f"{folder}: cannot be read: {error.strerror}")
            continue
        if (status.st_dev, status.st_ino) in known and "**" in pattern:
            found.left_out[KNOWN].append(folder)
            continue
        known.add((status.st_dev, status.st_ino))
        for entry in (entry for entry in entries if not is_litter(entry.name)):
            inner = (*parts, entry.name)
            enters, takes = _leads(inner, pattern), _matches(inner, pattern)
            if enters or takes:
                is_taken = takes and entry.name.lower().endswith(endings)
                kind = _kind(entry, is_taken)
                if kind == FOLDER and enters:
                    (links if entry.is_symlink() else folders).append(inner)
                elif kind == "file" and is_taken:
                    found.files.append(folder / entry.name)
                elif kind in (FOLDER, NO_FILE):
                    found.left_out[kind].append(folder / entry.name)
                elif kind != "file":
                    found.unread.append(f"{folder / entry.name}: a link that cannot be followed: {kind}")
                elif takes:
                    found.left_out[OTHER_ENDING].append(folder / entry.name)
    found.unread.sort()
    for paths in (found.files, *found.left_out.values()):
        paths.sort()
    return found


def _kind(entry: os.DirEntry[str], is_taken: bool) -> str:
    """Return FOLDER, "file", NO_FILE (such as a pipe, which would block), or why a link cannot be followed. A broken
    link counts as a file if `is_taken`."""
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
        return "file" if is_taken else str(error.strerror)


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Return whether a path matches a glob pattern."""
    if not parts or not pattern:
        return not parts and set(pattern) <= {"**"}
    if pattern[0] == "**":
        return _matches(parts, pattern[1:]) or _matches(parts[1:], pattern)
    return fnmatch.fnmatch(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _leads(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Return whether a path in this folder could match a glob pattern."""
    if not parts or not pattern or pattern[0] == "**":
        return bool(pattern)
    return fnmatch.fnmatch(parts[0], pattern[0]) and _leads(parts[1:], pattern[1:])


def named(names: Iterable[object]) -> str:
    """Return the first names as text, and the number of the others."""
    texts = list(map(str, names))
    more = f" and {len(texts) - _NAMED} more" if len(texts) > _NAMED else ""
    return ", ".join(texts[:_NAMED]) + more
