"""What predict.py reads and writes: the pictures and videos that are meant, and the forms of a depth map."""

import contextlib
import io
import itertools
import logging
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import cv2
import numpy as np

from src.base import cli
from src.base.arrays import Array, Floats, Pixels
from src.base.errors import NotFinite, UserError
from src.base.files import StrPath, printable, replacing, temporary_folder
from src.data import image
from src.data.listing import evenly
from src.prediction.job import _FRAME, _MARK, _MARK_AT, ENDINGS, VIDEO_ENDINGS, Job
from src.prediction.pointcloud import Intrinsics, write_ply
from src.prediction.predict import DepthPredictor, Maps, blended
from src.scoring import visual

if TYPE_CHECKING:
    from src.prediction.video import Video


# Pictures wait for each other as long as they have fewer pixels than this together.
PIXELS_AT_ONCE = 16_000_000


# Of so many pictures, or frames of a video, the range of the colours is taken.
SAMPLED = 16


logger = logging.getLogger(__name__)


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
    from src.prediction import video

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
    from src.prediction import video

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
    from src.prediction import video

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
