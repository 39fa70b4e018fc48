"""What predict.py reads and writes: the pictures and videos that are meant, and the forms of a depth map."""

import collections
import contextlib
import glob
import io
import itertools
import logging
import os
import re
import struct
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import cv2
import numpy as np

from src import cli, folders, image, visual
from src.arrays import Array, Floats, Pixels
from src.data_loader import evenly
from src.errors import NotFinite, UserError
from src.files import StrPath, claim, printable, replacing, temporary_folder
from src.pointcloud import Intrinsics, write_ply
from src.predict import DepthPredictor, Maps, blended

if TYPE_CHECKING:
    from src.video import Video

PICTURES = (*image.JPEG_ENDINGS, ".png", ".bmp", ".webp", ".tif", ".tiff")
HEIF = (".heic", ".heif")  # found, so that it can be said that they are not read
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")
ENDINGS = {"color": "_depth.png", "png16": "_depth16.png", "npy": "_depth.npy", "exr": "_depth.exr", "ply": ".ply",
           "side": "_side.png"}
VIDEO_ENDINGS = {"color": "_depth.mp4", "side": "_side.mp4"}
FRAMES = "_frames"

# Pictures wait for each other as long as they have fewer pixels than this together.
PIXELS_AT_ONCE = 16_000_000
# Of so many pictures, or frames of a video, the range of the colours is taken.
SAMPLED = 16

logger = logging.getLogger(__name__)


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


def find(inputs: Iterable[StrPath], output_dir: Path) -> tuple[list[Job], list[str]]:
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
    claim([path for job in jobs for path in job.outputs(kinds).values()], overwrite)
    folders = {folder: job for job in jobs if (folder := job.frames(kinds))}
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


Group: TypeAlias = list[tuple[Job, Pixels | image.ImageError]]


@dataclass(frozen=True)
class Writer:
    """How depth maps are saved.

    Args:
        kinds: of ENDINGS: coloured PNG with a scale bar, 16-bit PNG in millimetres, float32 .npy and EXR in metres,
            point cloud, picture and coloured depth side by side.
        max_depth: metres at the end of the colours.
        camera: function of (height, width) -> Intrinsics, for the point cloud.
        follow_exif: where a photograph tells its focal length, that is its camera; and as the nets have learnt to take
            every picture for the Kinect's, what they predict is multiplied by the ratio of the focal lengths: an object
            that is as large in the picture of a longer lens is that much farther away.
    """

    kinds: tuple[str, ...]
    colormap: str
    max_depth: float
    camera: Callable[[int, int], Intrinsics]
    follow_exif: bool = False

    def of_photograph(self, path: StrPath, size: tuple[int, ...]) -> tuple["Writer", np.float32]:
        """(the Writer for one photograph, what its depth is multiplied by): as EXIF tells its camera, if it does."""
        focal_mm = image.focal_length_35mm(path) if self.follow_exif else None
        if not focal_mm:
            return self, np.float32(1)
        camera = Intrinsics.from_35mm(size[0], size[1], focal_mm)
        return replace(self, camera=lambda *_: camera), np.float32(camera.fx / Intrinsics.kinect(*size).fx)

    def save(self, paths: Mapping[str, Path], rgb: Pixels, depth_m: Floats) -> None:
        """Write a depth map in each kind of `paths`, whole or not at all."""
        for kind, path in paths.items():
            if kind == "npy":
                buffer = io.BytesIO()  # into a file, np.save would not say why it cannot
                np.save(buffer, depth_m)
                with replacing(path, "wb") as file:
                    file.write(buffer.getbuffer())
            elif kind == "exr":
                content = cv2.imencode(".exr", depth_m, [cv2.IMWRITE_EXR_TYPE, cv2.IMWRITE_EXR_TYPE_FLOAT])[1]
                with replacing(path, "wb") as file:
                    file.write(content.data)
            elif kind == "ply":
                write_ply(path, depth_m, rgb, self.camera(*depth_m.shape))
            elif kind == "png16":
                if depth_m.max() > image.MOST_TEST_DEPTH_M:
                    logger.warning("%s: what is deeper is written as %.3f m, the most that 16 bits of millimetres hold",
                                   path, image.MOST_TEST_DEPTH_M)
                _write_png(path, image.encode_test_depth(depth_m))
            else:
                _write_png(path, self.picture(kind, rgb, depth_m))

    def picture(self, kind: str, rgb: Pixels, depth_m: Floats) -> Pixels:
        """The coloured depth with its scale bar, for "side" with the picture before it. uint8 RGB."""
        coloured = visual.with_scale_bar(visual.colour(depth_m, self.max_depth, self.colormap), self.max_depth,
                                         self.colormap)
        return np.hstack([rgb, coloured]) if kind == "side" else coloured


def _write_png(path: Path, pixels: Array) -> None:
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    content = cv2.imencode(".png", pixels)[1].tobytes()
    mark = struct.pack(">I", len(_MARK) - 4) + _MARK + struct.pack(">I", zlib.crc32(_MARK))
    with replacing(path, "wb") as file:
        file.write(content[:_MARK_AT - 4] + mark + content[_MARK_AT - 4:])


def predict_all(jobs: Sequence[Job], predictor: DepthPredictor, writer: Writer, size: int, bar: cli.Bar,
                known: Mapping[Job, Maps] | None = None) -> int:
    """Predict and save every Job, `size` pictures or frames at a time. The number of those that failed, which are
    named; the others go on. `known`: of `depth_range`."""
    failed = 0
    for group in _groups((job for job in jobs if not job.is_video), size):
        failed += _predict_group(group, predictor, writer, known or {})
        bar.update(len(group))
    for job in (job for job in jobs if job.is_video):
        failed += not _named(job, partial(_predict_video_shown, job, predictor, writer, size))
        bar.update()
    return failed


def depth_range(jobs: Sequence[Job], predictor: DepthPredictor, writer: Writer) -> tuple[float, dict[Job, Maps]]:
    """The end of the colours for these Jobs, one for all, and what was predicted for it.

    Returns:
        whole metres over the 98th percentile of the depth of at most SAMPLED of the Jobs (of a video, of as many of its
        frames), 10 where none can be predicted; and the maps (`DepthPredictor.maps`) of those that are pictures.
    """
    deepest, known = 0.0, {}
    for job in evenly(jobs, SAMPLED):
        with contextlib.suppress(UserError, NotFinite, OSError):
            for picture in _sampled_frames(job) if job.is_video else [image.load_rgb(job.source)]:
                (maps,) = predictor.maps([picture], [job.source])
                depth_m = blended(picture.shape[:2], maps)
                if not job.is_video:
                    known[job] = maps
                    depth_m *= writer.of_photograph(job.source, depth_m.shape)[1]
                deepest = max(deepest, colour_end(depth_m))
    return deepest or 10.0, known


def colour_end(depth_m: Floats) -> float:
    """Where the colours of a depth map may end: whole metres over its 98th percentile."""
    return float(np.floor(np.percentile(depth_m, 98)) + 1)


def _sampled_frames(job: Job) -> Iterator[Pixels]:
    from src import video

    return video.Video(job.source).sampled(SAMPLED)


def _named(job: Job, work: Callable[[], object]) -> bool:
    """Whether `work` ended well; else its error is logged with the input that it is about."""
    try:
        work()
    except (UserError, NotFinite, OSError) as error:
        logger.warning("skipped: %s", error if str(job.source) in str(error) else f"{job.source}: {error}")
        return False
    return True


def _groups(jobs: Iterable[Job], size: int) -> Iterator[Group]:
    """Lists of (job, RGB or the error that it cannot be read), at most `size` and PIXELS_AT_ONCE each."""
    group: Group = []
    pixels = 0
    for job in jobs:
        loaded: Pixels | image.ImageError
        try:
            loaded = image.load_rgb(job.source)
            pixels += loaded.size // 3
        except image.ImageError as error:
            loaded = error
        group.append((job, loaded))
        if len(group) == size or pixels >= PIXELS_AT_ONCE:
            yield group
            group, pixels = [], 0
    if group:
        yield group


def _predict_group(group: Group, predictor: DepthPredictor, writer: Writer, known: Mapping[Job, Maps]) -> int:
    """Predict and save a group; the number that failed. When it cannot be predicted together, each is by itself."""
    loaded = [(job, rgb) for job, rgb in group if isinstance(rgb, np.ndarray)]
    for _, error in (one for one in group if not isinstance(one[1], np.ndarray)):
        logger.warning("skipped: %s", error)
    failed = len(group) - len(loaded)
    try:
        new = [(job, rgb) for job, rgb in loaded if job not in known]
        maps = predictor.maps([rgb for _, rgb in new], [job.source for job, _ in new])
        known = {**known, **{job: one for (job, _), one in zip(new, maps, strict=True)}}
    except (UserError, NotFinite) as error:
        if len(group) > 1:
            return failed + sum(_predict_group([one], predictor, writer, known) for one in loaded)
        logger.warning("skipped: %s", error)
        return failed + 1

    def save(job: Job, rgb: Pixels) -> None:
        depth_m = blended(rgb.shape[:2], known[job])
        job.target.parent.mkdir(parents=True, exist_ok=True)
        one, factor = writer.of_photograph(job.source, depth_m.shape)
        if one is not writer:
            logger.info("%s: another lens than the Kinect's, by its EXIF: depth times %.2f", job.source, factor)
        one.save(job.outputs(writer.kinds), rgb, depth_m * factor)

    return failed + sum(not _named(job, partial(save, job, rgb)) for job, rgb in loaded)


def _predict_video_shown(job: Job, predictor: DepthPredictor, writer: Writer, size: int) -> None:
    from src import video

    clip = video.Video(job.source)
    with cli.progress(clip.count, printable(job.source.name), "frame") as bar:
        predict_video(job, clip, predictor, writer, size, bar)


def predict_video(job: Job, clip: "Video", predictor: DepthPredictor, writer: Writer, size: int, bar: cli.Bar) -> None:
    """Predict a video frame by frame: all of its outputs, or none; `bar` is told of each. Raises VideoError naming it,
    also (after the outputs are written) when the video ends before it says it does.

    Args:
        clip: the job's source, opened.
        size: frames that are predicted at a time.
    """
    from src import video

    outputs, frames_folder = job.outputs(writer.kinds), job.frames(writer.kinds)
    job.target.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        videos = {kind: stack.enter_context(video.Writer(path, clip.tick)) for kind, path in outputs.items()}
        frames_out = stack.enter_context(_Frames(frames_folder, writer)) if frames_folder else None
        number, frames = 0, clip.frames()
        while batch := list(itertools.islice(frames, size)):
            names = [f"{job.source}: frame {number + place}" for place in range(len(batch))]
            depths = predictor.predict([rgb for rgb, _ in batch], names)
            for (rgb, at), depth_m in zip(batch, depths, strict=True):
                for kind, out in videos.items():
                    out.add(writer.picture(kind, rgb, depth_m), at)
                if frames_out:
                    frames_out.add(rgb, depth_m)
                number += 1
                bar.update()
        for out in videos.values():
            out.finish()
        if frames_out:
            frames_out.finish()
    clip.check_whole()


class _Frames(contextlib.ExitStack):
    """A file a frame, in a new folder that takes the place of an earlier one's frames when it is complete."""

    def __init__(self, folder: Path, writer: Writer) -> None:
        super().__init__()
        self.folder, self.writer, self.count = folder, writer, 0
        self.kinds = [kind for kind in writer.kinds if kind not in VIDEO_ENDINGS]
        self.partial = self.enter_context(temporary_folder(folder.parent))

    def add(self, rgb: Pixels, depth_m: Floats) -> None:
        """Write the next frame."""
        self.writer.save({kind: self.partial / f"{self.count:06d}{ENDINGS[kind]}" for kind in self.kinds}, rgb, depth_m)
        self.count += 1

    def finish(self) -> None:
        """Put the frames in their place; those of an earlier, longer video go."""
        self.folder.mkdir(exist_ok=True)
        new = {path.name for path in self.partial.iterdir()}
        for name in sorted(new):
            os.replace(self.partial / name, self.folder / name)
        for path in self.folder.iterdir():
            ending = _FRAME.fullmatch(path.name)
            if ending and path.name not in new and ending[1] in {ENDINGS[kind] for kind in self.kinds}:
                path.unlink()
