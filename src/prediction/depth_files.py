"""Predicts lists of pictures and videos, and writes their depth maps."""

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
from src.prediction.job import ENDINGS, FRAME_NAME, PNG_MARK, PNG_MARK_OFFSET, VIDEO_ENDINGS, Job
from src.prediction.pointcloud import Intrinsics, write_ply
from src.prediction.predict import DepthPredictor, Maps, blended
from src.scoring import visual

if TYPE_CHECKING:
    from src.prediction.video import Video

# A group of pictures that are predicted together ends with the picture that brings it to this number of pixels.
PIXELS_AT_ONCE = 16_000_000
# Largest number of inputs, and of frames of a video, that determine the range of the colours.
SAMPLED = 16

logger = logging.getLogger(__name__)

Group: TypeAlias = list[tuple[Job, Pixels | image.ImageError]]


@dataclass(frozen=True)
class Writer:
    """Writes depth maps.

    Args:
        kinds: keys of ENDINGS: coloured PNG with a scale bar, 16-bit PNG in millimetres, float32 .npy and EXR in
            metres, point cloud, picture and coloured depth side by side.
        colormap: name of a matplotlib colour map.
        max_depth: metres at the end of the colours.
        camera: function of (height, width) -> Intrinsics, for the point cloud.
        follow_exif: if a photo's EXIF has a focal length, use it for the point cloud, and multiply the depth by the
            ratio of this focal length to the Kinect's. The nets learnt from Kinect pictures only: an object that looks
            equally large through a longer lens is farther away by this ratio.
    """

    kinds: tuple[str, ...]
    colormap: str
    max_depth: float
    camera: Callable[[int, int], Intrinsics]
    follow_exif: bool = False

    def of_photograph(self, path: StrPath, size: tuple[int, ...]) -> tuple["Writer", np.float32]:
        """Return (Writer with the camera of a photo's EXIF, factor for its depth), or (this Writer, 1) without EXIF.

        Args:
            path: the photo.
            size: (H, W) of its depth map.
        """
        focal_mm = image.focal_length_35mm(path) if self.follow_exif else None
        if not focal_mm:
            return self, np.float32(1)
        camera = Intrinsics.from_35mm(size[0], size[1], focal_mm)
        return replace(self, camera=lambda *_: camera), np.float32(camera.fx / Intrinsics.kinect(*size).fx)

    def save(self, paths: Mapping[str, Path], rgb: Pixels, depth_m: Floats) -> None:
        """Write a depth map, each file atomically.

        Args:
            paths: kind to path.
            rgb: uint8 (H, W, 3).
            depth_m: metres (H, W).
        """
        for kind, path in paths.items():
            if kind == "npy":
                buffer = io.BytesIO()  # np.save hides the reason if it cannot write to a file
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
                    logger.warning(
                        "%s: what is deeper is written as %.3f m, the most that 16 bits of millimetres hold",
                        path,
                        image.MOST_TEST_DEPTH_M,
                    )
                _write_png(path, image.encode_test_depth(depth_m))
            else:
                _write_png(path, self.picture(kind, rgb, depth_m))

    def picture(self, kind: str, rgb: Pixels, depth_m: Floats) -> Pixels:
        """Draw the coloured depth with its scale bar, and if `kind` is "side" the picture on its left.

        Args:
            kind: "color" or "side".
            rgb: uint8 (H, W, 3).
            depth_m: metres (H, W).

        Returns:
            uint8 RGB (H, W', 3).
        """
        coloured = visual.with_scale_bar(
            visual.colour(depth_m, self.max_depth, self.colormap), self.max_depth, self.colormap
        )
        return np.hstack([rgb, coloured]) if kind == "side" else coloured


def _write_png(path: Path, pixels: Array) -> None:
    """Write uint8 RGB (H, W, 3) or uint16 (H, W) as a PNG that contains PNG_MARK."""
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    content = cv2.imencode(".png", pixels)[1].tobytes()
    chunk = struct.pack(">I", len(PNG_MARK) - 4) + PNG_MARK + struct.pack(">I", zlib.crc32(PNG_MARK))
    start = PNG_MARK_OFFSET - 4
    with replacing(path, "wb") as file:
        file.write(content[:start] + chunk + content[start:])


def predict_all(
    jobs: Sequence[Job],
    predictor: DepthPredictor,
    writer: Writer,
    size: int,
    bar: cli.Bar,
    known: Mapping[Job, Maps] | None = None,
) -> int:
    """Predict and save every Job. Logs failed Jobs and continues with the others.

    Args:
        jobs: inputs and outputs.
        predictor: predicts the depth.
        writer: writes it.
        size: largest number of pictures or frames predicted at a time.
        bar: updated for each Job.
        known: predictions that `depth_range` returned; these pictures are not predicted again.

    Returns:
        The number of Jobs that failed.
    """
    failed = 0
    for group in _groups((job for job in jobs if not job.is_video), size):
        failed += _predict_group(group, predictor, writer, known or {})
        bar.update(len(group))
    for job in (job for job in jobs if job.is_video):
        failed += not _succeeds(job, partial(_predict_video_with_bar, job, predictor, writer, size))
        bar.update()
    return failed


def depth_range(jobs: Sequence[Job], predictor: DepthPredictor, writer: Writer) -> tuple[float, dict[Job, Maps]]:
    """Choose a common end of the colours for these Jobs, from at most SAMPLED Jobs, and SAMPLED frames of each video.

    Returns:
        (the next whole metre above the 98th percentile of the depth, or 10 if nothing can be predicted;
        the results of `DepthPredictor.maps` for the sampled pictures).
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
    """Return the end of the colours for a depth map: the next whole metre above its 98th percentile."""
    return float(np.floor(np.percentile(depth_m, 98)) + 1)


def _sampled_frames(job: Job) -> Iterator[Pixels]:
    from src.prediction import video

    return video.Video(job.source).sampled(SAMPLED)


def _succeeds(job: Job, work: Callable[[], object]) -> bool:
    """Run `work` and return whether it succeeds. Logs its error with the name of the input."""
    try:
        work()
    except (UserError, NotFinite, OSError) as error:
        logger.warning("skipped: %s", error if str(job.source) in str(error) else f"{job.source}: {error}")
        return False
    return True


def _groups(jobs: Iterable[Job], size: int) -> Iterator[Group]:
    """Yield lists of (Job, its RGB or the error on reading it), of at most `size` Jobs and about PIXELS_AT_ONCE."""
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
    """Predict and save a group of pictures; if that fails, each picture separately. Returns the number that failed."""
    loaded = [(job, rgb) for job, rgb in group if isinstance(rgb, np.ndarray)]
    for _, error in group:
        if not isinstance(error, np.ndarray):
            logger.warning("skipped: %s", error)
    failed = len(group) - len(loaded)
    try:
        new = [(job, rgb) for job, rgb in loaded if job not in known]
        maps = predictor.maps([rgb for _, rgb in new], [job.source for job, _ in new])
        known = {**known, **{job: of_job for (job, _), of_job in zip(new, maps, strict=True)}}
    except (UserError, NotFinite) as error:
        if len(group) > 1:
            return failed + sum(_predict_group([member], predictor, writer, known) for member in loaded)
        logger.warning("skipped: %s", error)
        return failed + 1

    def save(job: Job, rgb: Pixels) -> None:
        depth_m = blended(rgb.shape[:2], known[job])
        job.target.parent.mkdir(parents=True, exist_ok=True)
        own_writer, factor = writer.of_photograph(job.source, depth_m.shape)
        if own_writer is not writer:
            logger.info("%s: another lens than the Kinect's, by its EXIF: depth times %.2f", job.source, factor)
        own_writer.save(job.outputs(writer.kinds), rgb, depth_m * factor)

    return failed + sum(not _succeeds(job, partial(save, job, rgb)) for job, rgb in loaded)


def _predict_video_with_bar(job: Job, predictor: DepthPredictor, writer: Writer, size: int) -> None:
    from src.prediction import video

    clip = video.Video(job.source)
    with cli.progress(clip.count, printable(job.source.name), "frame") as bar:
        predict_video(job, clip, predictor, writer, size, bar)


def predict_video(job: Job, clip: "Video", predictor: DepthPredictor, writer: Writer, size: int, bar: cli.Bar) -> None:
    """Predict a video frame by frame, and write all of its outputs or none.

    Args:
        job: input and outputs.
        clip: the job's source, opened.
        predictor: predicts the depth.
        writer: writes it.
        size: largest number of frames predicted at a time.
        bar: updated for each frame.

    Raises VideoError naming the file if it cannot be read or written. If the video is truncated, writes the outputs and
    then raises VideoError.
    """
    from src.prediction import video

    outputs, frames_folder = job.outputs(writer.kinds), job.frames(writer.kinds)
    job.target.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        videos = {kind: stack.enter_context(video.Writer(path, clip.tick)) for kind, path in outputs.items()}
        frames_out = stack.enter_context(_Frames(frames_folder, writer)) if frames_folder else None
        number, frames = 0, clip.frames()
        while batch := list(itertools.islice(frames, size)):
            names = [f"{job.source}: frame {number + index}" for index in range(len(batch))]
            depths = predictor.predict([rgb for rgb, _ in batch], names)
            for (rgb, seconds), depth_m in zip(batch, depths, strict=True):
                for kind, out in videos.items():
                    out.add(writer.picture(kind, rgb, depth_m), seconds)
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
    """Writes a file per frame into a temporary folder; `finish` moves them and replaces those of an earlier run."""

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
        """Move the frames to their folder, and remove the frames of an earlier run that have no new frame of the same
        name."""
        self.folder.mkdir(exist_ok=True)
        new = {path.name for path in self.partial.iterdir()}
        for name in sorted(new):
            os.replace(self.partial / name, self.folder / name)
        for path in self.folder.iterdir():
            match = FRAME_NAME.fullmatch(path.name)
            if match and path.name not in new and match[1] in {ENDINGS[kind] for kind in self.kinds}:
                path.unlink()
