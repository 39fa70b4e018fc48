"""Visitors of the page: their predictions, and the folders of their files."""

import functools
import shutil
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import gradio as gr

from src.base.arrays import Floats, Pixels
from src.prediction import depth_files
from src.prediction.pointcloud import Intrinsics

CACHE_S = 3600  # what visitors have sent and got is deleted after this


# The page knows so many visitors at most; who has been quiet for longest goes when another one comes.
VISITORS = 64


@dataclass(frozen=True)
class Shown:
    """One prediction, as a visitor's page keeps it."""

    name: str
    rgb: Pixels  # uint8 (H, W, 3)
    depth_m: Floats  # float32 (H, W)
    coarse_m: Floats  # CoarseNet's
    truth_m: Floats | None  # 0 where not measured
    camera: Intrinsics
    lens: float  # what the depth was multiplied by
    seconds: float
    folder: Path  # of the files to download

    @functools.cached_property
    def colour_end(self) -> float:
        """Metres at the end of the colours where nobody says: the prediction and the truth fit."""
        maps = [self.depth_m] if self.truth_m is None else [self.depth_m, self.truth_m]
        return max(map(depth_files.colour_end, maps))

    def discard(self) -> None:
        """Delete its files."""
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass
class Visit:
    """One visitor's: a folder of the server's own choosing, and whether the video is to end."""

    folder: Path
    last: float  # time.monotonic() of the last event
    stopped: bool = False


class Visits:
    """The visitors that are there. What a client calls its session is a key here, and never part of a path.

    Args:
        folder: where each gets a folder, which is removed when the visitor leaves, is quiet for CACHE_S, or is the
            longest quiet of more than VISITORS.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._visits: dict[str | None, Visit] = {}  # the longest quiet first
        self._changing = threading.Lock()

    def of(self, request: gr.Request | None) -> Visit:
        """The Visit of a request; a new one where the session has none."""
        session = request and request.session_hash
        with self._changing:
            visit = self._visits.pop(session, None) or Visit(Path(tempfile.mkdtemp(dir=self.folder)), 0)
            visit.last = time.monotonic()
            self._visits[session] = visit
            quiet = [key for key, other in self._visits.items() if visit.last - other.last > CACHE_S]
            for key in [*quiet, *list(self._visits)[len(quiet):-VISITORS]]:
                self._remove(key)
            return visit

    def stop(self, request: gr.Request) -> None:
        """End this visitor's video."""
        with self._changing:
            if visit := self._visits.get(request.session_hash):
                visit.stopped = True

    def leave(self, request: gr.Request) -> None:
        """This visitor has closed the page."""
        with self._changing:
            self._remove(request.session_hash)

    def _remove(self, session: str | None) -> None:
        if visit := self._visits.pop(session, None):
            visit.stopped = True
            shutil.rmtree(visit.folder, ignore_errors=True)
