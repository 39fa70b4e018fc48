"""Keeps the predictions and files of the page's visitors."""

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

CACHE_S = 3600  # seconds after which files of visitors are deleted
VISITORS = 64  # largest number of visitors; the least recently active visitor is removed for a new one


@dataclass(frozen=True)
class Prediction:
    """A prediction that a visitor sees. All maps are in metres, and as large as `rgb`."""

    name: str
    rgb: Pixels  # uint8 (H, W, 3)
    depth_m: Floats  # float32 (H, W)
    coarse_m: Floats  # CoarseNet's depth, float32 (H, W)
    truth_m: Floats | None  # true depth, float32 (H, W), 0 = not measured
    camera: Intrinsics
    lens: float  # factor by which the depth was multiplied for the photo's lens
    seconds: float  # duration of the prediction
    folder: Path  # for the files to download

    @functools.cached_property
    def colour_end(self) -> float:
        """Metres at the automatic end of the colours, which covers the prediction and the true depth."""
        maps = [self.depth_m] if self.truth_m is None else [self.depth_m, self.truth_m]
        return max(map(depth_files.colour_end, maps))

    def discard(self) -> None:
        """Delete its files."""
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass
class Visit:
    """A visitor of the page."""

    folder: Path  # the visitor's files
    last: float  # time.monotonic() of the last event
    stopped: bool = False  # whether the visitor stopped their video, or left


class Visits:
    """The current visitors by session. The session's name comes from the client, and is never part of a path.

    A visitor is removed, with their folder, when they leave, after CACHE_S without an event, or when they are the least
    recently active of more than VISITORS.

    Args:
        folder: the parent of the visitors' folders.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._visits: dict[str | None, Visit] = {}  # least recently active first
        self._changing = threading.Lock()

    def of(self, request: gr.Request | None) -> Visit:
        """Return the Visit of a request's session, and create it if necessary."""
        session = request and request.session_hash
        with self._changing:
            visit = self._visits.pop(session, None) or Visit(Path(tempfile.mkdtemp(dir=self.folder)), 0)
            visit.last = time.monotonic()
            self._visits[session] = visit
            inactive = [key for key, other in self._visits.items() if visit.last - other.last > CACHE_S]
            surplus = list(self._visits)[len(inactive) : -VISITORS]  # the inactive visitors come first in the dict
            for key in [*inactive, *surplus]:
                self._remove(key)
            return visit

    def stop(self, request: gr.Request) -> None:
        """Stop the video of the visitor who sent this request."""
        with self._changing:
            if visit := self._visits.get(request.session_hash):
                visit.stopped = True

    def leave(self, request: gr.Request) -> None:
        """Remove a visitor who has closed the page."""
        with self._changing:
            self._remove(request.session_hash)

    def _remove(self, session: str | None) -> None:
        if visit := self._visits.pop(session, None):
            visit.stopped = True
            shutil.rmtree(visit.folder, ignore_errors=True)
