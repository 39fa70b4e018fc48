"""Finds the inputs of predict.py and names their outputs."""

import collections
import glob
import logging
import os
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2

from src.base import cli, folders
from src.base.errors import UserError
from src.base.files import StrPath, claim
from src.data import image

logger = logging.getLogger(__name__)

PICTURES = (*image.JPEG_ENDINGS, ".png", ".bmp", ".webp", ".tif", ".tiff")
HEIF = (".heic", ".heif")  # not supported, but searched for, so that they are reported
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")

# File name endings of each kind of output. Of a video the kinds in VIDEO_ENDINGS are written as a video, and the other
# kinds as a folder of frames.
ENDINGS = {
    "color": "_depth.png",
    "png16": "_depth16.png",
    "npy": "_depth.npy",
    "exr": "_depth.exr",
    "ply": ".ply",
    "side": "_side.png",
}
VIDEO_ENDINGS = {"color": "_depth.mp4", "side": "_side.mp4"}
FRAMES = "_frames"
FRAME_NAME = re.compile(r"\d{6,}(" + "|".join(map(re.escape, ENDINGS.values())) + ")")

# The chunk that marks PNG files of predict.py, without its length and checksum, and its offset in the file.
PNG_MARK, PNG_MARK_OFFSET = b"tEXtSoftware\0DepthNet on MindSpore", 37


@dataclass(frozen=True)
class Job:
    """An input file (`source`), and the path of its outputs without their endings (`target`)."""

    source: Path
    target: Path

    @property
    def is_video(self) -> bool:
        """Whether the input is a video rather than a picture."""
        return self.source.suffix.lower() in VIDEOS

    def outputs(self, kinds: Collection[str]) -> dict[str, Path]:
        """Return the path of each kind of output file, without the kinds of a video that are frames (see `frames`)."""
        if not self.is_video:
            return {kind: Path(f"{self.target}{ENDINGS[kind]}") for kind in kinds}
        return {kind: Path(f"{self.target}{VIDEO_ENDINGS[kind]}") for kind in kinds if kind in VIDEO_ENDINGS}

    def frames(self, kinds: Collection[str]) -> Path | None:
        """Return the folder for the frames of a video, or None if none of the kinds is a file per frame."""
        return Path(f"{self.target}{FRAMES}") if self.is_video and set(kinds) - set(VIDEO_ENDINGS) else None


def find_jobs(inputs: Iterable[StrPath], output_dir: Path) -> tuple[list[Job], list[str]]:
    """Find the input files.

    The search leaves out and logs outputs of an earlier run beside their inputs, files in `output_dir`, and depth maps
    beside their pictures in a NYU folder. A file that the user names is never left out.

    Args:
        inputs: files, folders (searched recursively) and glob patterns.
        output_dir: the folder for the outputs, which keeps the subfolders of the inputs.

    Returns:
        (Jobs, a message for each folder or link that cannot be read).

    Raises UserError if an input matches no file, or if two files would have the same outputs.
    """
    sources, unread = [], []
    for text in map(str, inputs):
        root, search = _expand(text, output_dir)
        for message in search.unread:
            logger.warning("%s", message)
        for reason, paths in search.left_out.items():
            logger.warning("left out, %s: %s", reason, folders.named(paths))
        if not search.files:
            raise UserError(
                f"{text}: no picture or video; expected a file, a folder or a pattern of "
                f"{' '.join((*PICTURES, *VIDEOS))}"
            )
        sources += [(path, path.relative_to(root)) for path in search.files]
        unread += search.unread
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
    """Check that all outputs of the Jobs may be written.

    Args:
        jobs: inputs and outputs.
        kinds: keys of ENDINGS.
        overwrite: whether existing outputs may be replaced.

    Raises UserError naming an output that may not be written.
    """
    if "exr" in kinds:
        os.environ["OPENCV_IO_ENABLE_OPENEXR"] = "1"  # OpenCV's EXR support is off by default
        if not cv2.haveImageWriter(".exr"):
            raise UserError(f"OpenCV {cv2.__version__} was built without EXR: {cli.how_to_install('cv2')}")
    outputs = [path for job in jobs for path in job.outputs(kinds).values()]
    job_of_folder = {folder: job for job in jobs if (folder := job.frames(kinds))}
    sources = {os.path.realpath(job.source) for job in jobs}
    for path in (*outputs, *job_of_folder):
        if os.path.realpath(path) in {*sources, *map(os.path.dirname, sources)}:
            raise UserError(f"{path} would replace an input, or what is beside it: --output_dir names another folder")
    claim(outputs, overwrite)
    for job in jobs:
        for parent in job.target.parents:
            if parent in job_of_folder:
                raise UserError(
                    f"{job.source} and the frames of {job_of_folder[parent].source} would both go into {parent}: "
                    "predict them apart"
                )
    for folder in job_of_folder:
        if folder.exists() and not (overwrite and folder.is_dir()):
            raise UserError(f"{folder} is there already: --overwrite replaces it, --output_dir names another folder")


def _expand(text: str, output_dir: Path) -> tuple[Path, folders.SearchResult]:
    """Find the files of an input. Returns (folder that the output paths are relative to, search result)."""
    path = Path(text)
    if path.is_file():
        return path.parent, folders.SearchResult([path])
    root = path if path.is_dir() else next(parent for parent in path.parents if not glob.has_magic(str(parent)))
    search = folders.search(root, path.relative_to(root).parts or folders.BELOW, PICTURES + HEIF + VIDEOS)
    real_root, real_output = root.resolve(), output_dir.resolve()
    stems = {file.with_suffix("") for file in search.files}

    def reason_to_skip(file: Path) -> str | None:
        if real_root in real_output.parents and real_output in file.resolve().parents:
            return "in the output folder"
        if _is_output(file, stems):
            return "what this program has made of a picture or video beside it"
        return "the depth map of a picture beside it" if _is_nyu_depth(file) else None

    inputs = []
    for file in search.files:
        if reason := reason_to_skip(file):
            search.left_out[reason].append(file)
        else:
            inputs.append(file)
    return root, replace(search, files=inputs)


def _is_output(path: Path, stems: set[Path]) -> bool:
    """Return whether a file is an output of predict.py: by its name, and a PNG also by its mark.

    Args:
        path: the file.
        stems: paths of the other files without their endings; an output has the name of one of them.
    """
    has_output_name = any(
        path.name.endswith(ending) and path.with_name(path.name.removesuffix(ending)) in stems
        for ending in (*ENDINGS.values(), *VIDEO_ENDINGS.values())
    ) or (
        path.parent.name.endswith(FRAMES)
        and FRAME_NAME.fullmatch(path.name) is not None
        and path.parent.with_name(path.parent.name.removesuffix(FRAMES)) in stems
    )
    return has_output_name and (path.suffix != ".png" or _is_marked(path))


def _is_marked(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(PNG_MARK_OFFSET + len(PNG_MARK)).endswith(PNG_MARK)
    except OSError:  # reported when the file is read
        return False


def _is_nyu_depth(path: Path) -> bool:
    """Return whether a file is the depth map of a picture in the Train or Test layout of NYU."""
    return (path.name.endswith("_depth.png") and path.with_name(path.name.replace("_depth", "_colors")).is_file()) or (
        path.suffix == ".png" and path.parent.name.endswith("_out") and path.with_suffix(".jpg").is_file()
    )
