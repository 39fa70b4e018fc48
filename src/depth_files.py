"""What predict.py reads and writes: the pictures and videos that are meant, and the forms of a depth map."""

import collections
import glob
import logging
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from src import image, visual
from src.errors import UserError
from src.files import replacing
from src.pointcloud import write_ply

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")
ENDINGS = {"color": "_depth.png", "png16": "_depth16.png", "npy": "_depth.npy", "ply": ".ply", "side": "_side.png"}
VIDEO_ENDINGS = {"color": "_depth.mp4", "side": "_side.mp4"}

logger = logging.getLogger(__name__)


class VideoError(UserError):
    """A video that cannot be read or written. The message names the file."""


@dataclass(frozen=True)
class Job:
    """One input, and where its outputs go: `target` is a path without ending."""

    source: Path
    target: Path

    @property
    def is_video(self):
        """Whether the input is a video rather than a picture."""
        return self.source.suffix.lower() in VIDEOS

    def outputs(self, kinds):
        """The path of each kind of output; of a video's frames the folder, where there is a file for each."""
        if not self.is_video:
            return {kind: Path(f"{self.target}{ENDINGS[kind]}") for kind in kinds}
        return {kind: Path(f"{self.target}{VIDEO_ENDINGS.get(kind, '_frames')}") for kind in kinds}


def find(inputs, output_dir):
    """The Jobs of files, folders (searched through) and glob patterns; folders are kept below `output_dir`.

    What lies in `output_dir`, and depth maps beside their pictures in a NYU folder, are no inputs. Raises UserError.
    """
    sources = []
    for text in map(str, inputs):
        root, found = _expand(text)
        found = [path for path in found
                 if output_dir.resolve() not in path.resolve().parents and not _is_nyu_depth(path)]
        if not found:
            raise UserError(f"{text}: no picture or video; expected a file, a folder or a pattern of "
                            f"{' '.join((*PICTURES, *VIDEOS))}")
        sources += [(path, path.relative_to(root)) for path in found]
    stems = collections.Counter(relative.with_suffix("") for _, relative in sources)
    jobs = {}
    for path, relative in sources:
        stem = relative.with_suffix("")
        name = stem if stems[stem] == 1 else stem.with_name(relative.name.replace(".", "_"))
        job = Job(path, output_dir / name)
        if jobs.setdefault(job.target, job).source.resolve() != path.resolve():
            raise UserError(f"{path} and {jobs[job.target].source} would both become {job.target}: predict them apart")
    return list(jobs.values())


def _expand(text):
    """(folder that the outputs' folders are relative to, files) of one input."""
    path = Path(text)
    if path.is_dir():
        return path, sorted(file for file in path.rglob("*") if _is_input(file))
    if path.is_file():
        return path.parent, [path]
    files = sorted(Path(name) for name in glob.glob(text, recursive=True))
    fixed = next((parent for parent in path.parents if not glob.has_magic(str(parent))), Path())
    return fixed, [file for file in files if _is_input(file)]


def _is_input(path):
    return path.is_file() and path.suffix.lower() in PICTURES + VIDEOS and not path.name.startswith(".")


def _is_nyu_depth(path):
    return (path.name.endswith("_depth.png") and path.with_name(path.name.replace("_depth", "_colors")).is_file()) \
        or (path.suffix == ".png" and path.parent.name.endswith("_out") and path.with_suffix(".jpg").is_file())


@dataclass(frozen=True)
class Writer:
    """How depth maps are saved.

    Args:
        kinds: of ENDINGS: coloured PNG with a scale bar, 16-bit PNG in millimetres, float32 .npy in metres, point
            cloud, picture and coloured depth side by side.
        camera: function of (height, width) -> Intrinsics, for the point cloud.
    """

    kinds: tuple
    colormap: str
    max_depth: float
    camera: object

    def save(self, paths, rgb, depth_m):
        """Write a depth map in each kind of `paths`, whole or not at all."""
        for kind, path in paths.items():
            if kind == "npy":
                with replacing(path, "wb") as file:
                    np.save(file, depth_m)
            elif kind == "ply":
                write_ply(path, depth_m, rgb, self.camera(*depth_m.shape))
            else:
                _write_png(path, image.encode_test_depth(depth_m) if kind == "png16"
                           else self.picture(kind, rgb, depth_m))

    def picture(self, kind, rgb, depth_m):
        """The coloured depth with its scale bar, for "side" with the picture before it. uint8 RGB."""
        coloured = visual.with_scale_bar(visual.colour(depth_m, self.max_depth, self.colormap), self.max_depth,
                                         self.colormap)
        return np.hstack([rgb, coloured]) if kind == "side" else coloured


def _write_png(path, pixels):
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    with replacing(path, "wb") as file:
        file.write(cv2.imencode(".png", pixels)[1].tobytes())


def predict_pictures(jobs, predictor, writer, size, bar):
    """Predict and save pictures, `size` at a time. The number of those that could not be read, which are named."""
    failed = 0
    for start in range(0, len(jobs), size):
        loaded = []
        for job in jobs[start:start + size]:
            try:
                loaded.append((job, image.load_rgb(job.source)))
            except image.ImageError as error:
                logger.warning("skipped: %s", error)
                failed += 1
        for (job, rgb), depth_m in zip(loaded, predictor.predict([rgb for _, rgb in loaded]), strict=True):
            job.target.parent.mkdir(parents=True, exist_ok=True)
            writer.save(job.outputs(writer.kinds), rgb, depth_m)
        bar.update(len(jobs[start:start + size]))
    return failed


def predict_video(job, predictor, writer, size):
    """Predict a video frame by frame. Raises VideoError naming it."""
    capture = cv2.VideoCapture(str(job.source))
    rate = capture.get(cv2.CAP_PROP_FPS) or 25
    frames = _frames(job.source, capture)
    job.target.parent.mkdir(parents=True, exist_ok=True)
    outputs = job.outputs(writer.kinds)
    videos = {kind: _Video(path, rate) for kind, path in outputs.items() if kind in VIDEO_ENDINGS}
    try:
        number = 0
        while batch := [frame for _, frame in zip(range(size), frames, strict=False)]:
            for rgb, depth_m in zip(batch, predictor.predict(batch), strict=True):
                for kind, video in videos.items():
                    video.add(writer.picture(kind, rgb, depth_m))
                kinds = [kind for kind in outputs if kind not in videos]
                if kinds:
                    folder = outputs[kinds[0]]
                    folder.mkdir(exist_ok=True)
                    writer.save({kind: folder / f"{number:06d}{ENDINGS[kind]}" for kind in kinds}, rgb, depth_m)
                number += 1
        for video in videos.values():
            video.finish()
    finally:
        capture.release()
        for video in videos.values():
            video.discard()


def _frames(path, capture):
    """The frames of a video as RGB; VideoError when there is none."""
    read, frame = capture.read()
    if not read:
        raise VideoError(f"{path}: not a readable video")

    def rest(read, frame):
        while read:
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            read, frame = capture.read()

    return rest(read, frame)


class _Video:
    """An MP4 that takes its name when it is complete."""

    def __init__(self, path, rate):
        self.path, self.rate, self.partial, self.writer = path, rate, path.with_name(f".{path.name}-partial-.mp4"), None

    def add(self, rgb):
        """Append a frame; MP4 wants even sizes, so an odd last row or column goes."""
        height, width = (length // 2 * 2 for length in rgb.shape[:2])
        if self.writer is None:
            codec = cv2.VideoWriter_fourcc(*"mp4v")
            self.writer = cv2.VideoWriter(str(self.partial), codec, self.rate, (width, height))
            if not self.writer.isOpened():
                raise VideoError(f"{self.path}: cannot write a video there")
        self.writer.write(cv2.cvtColor(rgb[:height, :width], cv2.COLOR_RGB2BGR))

    def finish(self):
        """Close the file and give it its name."""
        self.writer.release()
        self.partial.replace(self.path)

    def discard(self):
        """Remove what was not finished."""
        self.partial.unlink(missing_ok=True)
