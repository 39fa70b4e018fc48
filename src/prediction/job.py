"""What predict.py is asked to read, and where its outputs go."""

import collections
import glob
import logging
import os
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2

from src.base import folders
from src.base.errors import UserError
from src.base.files import StrPath, claim
from src.data import image

logger = logging.getLogger(__name__)


PICTURES = (*image.JPEG_ENDINGS, ".png", ".bmp", ".webp", ".tif", ".tiff")


HEIF = (".heic", ".heif")  # found, so that it can be said that they are not read


VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")


ENDINGS = {"color": "_depth.png", "png16": "_depth16.png", "npy": "_depth.npy", "exr": "_depth.exr", "ply": ".ply",
           "side": "_side.png"}


VIDEO_ENDINGS = {"color": "_depth.mp4", "side": "_side.mp4"}


FRAMES = "_frames"


@dataclass(frozen=True)
class Job:
    """One input, and where its outputs go: `target` is a path without ending."""

    source: Path
    target: Path

    @property
    def is_video(self) -> bool:
        """Whether the input is a video rather than a picture."""
        return self.source.suffix.lower() in VIDEOS

    def outputs(self, kinds: Collection[str]) -> dict[str, Path]:
        """The path of each kind of output file; of a video's frames see `frames`."""
        if not self.is_video:
            return {kind: Path(f"{self.target}{ENDINGS[kind]}") for kind in kinds}
        return {kind: Path(f"{self.target}{VIDEO_ENDINGS[kind]}") for kind in kinds if kind in VIDEO_ENDINGS}

    def frames(self, kinds: Collection[str]) -> Path | None:
        """The folder of a video's outputs that are a file a frame, or None."""
        return Path(f"{self.target}{FRAMES}") if self.is_video and set(kinds) - set(VIDEO_ENDINGS) else None


def find_jobs(inputs: Iterable[StrPath], output_dir: Path) -> tuple[list[Job], list[str]]:
    """The Jobs of files, folders (searched through) and glob patterns; folders are kept below `output_dir`.

    What an earlier run has made of a picture beside it, what lies in an `output_dir` within a folder, and depth maps
    beside their pictures in a NYU folder, are no inputs; what a search leaves out is logged. A file that is named by
    itself is taken, whatever it is.

    Returns:
        the Jobs, and a sentence for each folder and link that cannot be read. Raises UserError.
    """
    sources, unread = [], []
    for text in map(str, inputs):
        root, found = _expand(text, output_dir)
        for sentence in found.unread:
            logger.warning("%s", sentence)
        for why, paths in found.left_out.items():
            logger.warning("left out, %s: %s", why, folders.named(paths))
        if not found.files:
            raise UserError(f"{text}: no picture or video; expected a file, a folder or a pattern of "
                            f"{' '.join((*PICTURES, *VIDEOS))}")
        sources += [(path, path.relative_to(root)) for path in found.files]
        unread += found.unread
    stems = collections.Counter(relative.with_suffix("") for _, relative in sources)
    jobs: dict[Path, Job] = {}
    for path, relative in sources:
        stem = relative.with_suffix("")
        name = stem if stems[stem] == 1 else stem.with_name(relative.name.replace(".", "_"))
        job = Job(path, output_dir / name)
        if jobs.setdefault(job.target, job).source.resolve() != path.resolve():
            raise UserError(f"{path} and {jobs[job.target].source} would both become {job.target}: predict them apart")
    return list(jobs.values()), unread


def check_outputs(jobs: Sequence[Job], kinds: Collection[str], overwrite: bool) -> None:
    """Decide that all outputs of the Jobs may be written. Raises UserError."""
    if "exr" in kinds:
        os.environ["OPENCV_IO_ENABLE_OPENEXR"] = "1"  # OpenCV wants to be asked, for the sake of who reads such files
        if not cv2.haveImageWriter(".exr"):
            raise UserError(f"OpenCV {cv2.__version__} was built without EXR: see requirements-predict.txt")
    outputs = [path for job in jobs for path in job.outputs(kinds).values()]
    folders = {folder: job for job in jobs if (folder := job.frames(kinds))}
    sources = {os.path.realpath(job.source) for job in jobs}
    for path in (*outputs, *folders):
        if os.path.realpath(path) in {*sources, *map(os.path.dirname, sources)}:
            raise UserError(f"{path} would replace an input, or what is beside it: --output_dir names another folder")
    claim(outputs, overwrite)
    for job in jobs:
        for parent in job.target.parents:
            if parent in folders:
                raise UserError(f"{job.source} and the frames of {folders[parent].source} would both go into {parent}: "
                                "predict them apart")
    for folder in folders:
        if folder.exists() and not (overwrite and folder.is_dir()):
            raise UserError(f"{folder} is there already: --overwrite replaces it, --output_dir names another folder")


def _expand(text: str, output_dir: Path) -> tuple[Path, folders.Found]:
    """(folder that the outputs' folders are relative to, what was found) of one input."""
    path = Path(text)
    if path.is_file():
        return path.parent, folders.Found([path])
    root = path if path.is_dir() else next(parent for parent in path.parents if not glob.has_magic(str(parent)))
    found = folders.search(root, path.relative_to(root).parts or folders.BELOW, PICTURES + HEIF + VIDEOS)
    here, out = root.resolve(), output_dir.resolve()
    stems = {file.with_suffix("") for file in found.files}

    def why_not(file: Path) -> str | None:
        if here in out.parents and out in file.resolve().parents:
            return "in the output folder"
        if _is_output(file, stems):
            return "what this program has made of a picture or video beside it"
        return "the depth map of a picture beside it" if _is_nyu_depth(file) else None

    taken = []
    for file in found.files:
        if why := why_not(file):
            found.left_out[why].append(file)
        else:
            taken.append(file)
    return root, replace(found, files=taken)


def _is_output(path: Path, stems: set[Path]) -> bool:
    """Whether predict.py has made it of another of the inputs: by its name, and a PNG by its mark."""
    made = any(path.name.endswith(ending) and path.with_name(path.name.removesuffix(ending)) in stems
               for ending in (*ENDINGS.values(), *VIDEO_ENDINGS.values())) \
        or (path.parent.name.endswith(FRAMES) and _FRAME.fullmatch(path.name) is not None
            and path.parent.with_name(path.parent.name.removesuffix(FRAMES)) in stems)
    return made and (path.suffix != ".png" or _is_marked(path))


def _is_marked(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(_MARK_AT + len(_MARK)).endswith(_MARK)
    except OSError:  # who reads it will say so
        return False


# The first chunk that `_write_png` puts behind a PNG's header, less its length.
_MARK, _MARK_AT = b"tEXtSoftware\0DepthNet on MindSpore", 37


_FRAME = re.compile(r"\d{6,}(" + "|".join(map(re.escape, ENDINGS.values())) + ")")


def _is_nyu_depth(path: Path) -> bool:
    return (path.name.endswith("_depth.png") and path.with_name(path.name.replace("_depth", "_colors")).is_file()) \
        or (path.suffix == ".png" and path.parent.name.endswith("_out") and path.with_suffix(".jpg").is_file())
