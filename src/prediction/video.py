"""Reads and writes videos with PyAV (FFmpeg's libraries): the frames as a player shows them, and their times.

The metadata of a file may be wrong, so only plausible values are used. The frames are counted. A frame whose duration
is not within SHORTEST to LONGEST seconds gets the duration of the previous frame. Only rotations by multiples of 90
degrees are applied. A stated length of more than LONGEST_VIDEO seconds is ignored.
"""

import contextlib
import logging
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from src.base import cli
from src.base.arrays import Pixels
from src.base.errors import UserError
from src.base.files import StrPath, temporary_folder
from src.data import image
from src.data.listing import evenly

try:
    import av
    from av.stream import Disposition
except ImportError as error:
    raise UserError(f"videos need PyAV ({error}): {cli.how_to_install('av')}") from error

# Duration of a frame in seconds: minimum, maximum, and default if unknown.
SHORTEST, LONGEST, USUAL = Fraction(1, 1000), Fraction(60), Fraction(1, 25)
LONGEST_VIDEO = 24 * 3600
WIDEST_PIXEL = 4  # largest accepted aspect ratio of a pixel, either way
# Largest accepted share of missing frames. The number of frames that a container states is an estimate.
MISSING_FRAMES = 0.02
# Container formats that cannot refer to other files. By default FFmpeg also accepts playlists of addresses.
FORMATS = "mov,matroska,avi,mpegts,mpeg,flv,asf,ogg"
# Encoders and their options; the first encoder that PyAV has is used. PyAV's wheels have all of them; the package of a
# Linux distribution may lack H.264. "bf": 0 stores frames in display order, so that the last frame stored, whose
# duration ends the video, is the last frame shown.
ENCODERS = {
    "libx264": {"crf": "18", "preset": "fast", "bf": "0"},
    "libopenh264": {"b": "8000000"},
    "libvpx-vp9": {"crf": "24", "b": "0", "deadline": "realtime", "cpu-used": "6"},
}
_BT709, _TV_RANGE = 1, 1  # FFmpeg's numbers

logger = logging.getLogger(__name__)


class VideoError(UserError):
    """A video cannot be read or written. The message names the file."""


class Video:
    """A video to read.

    Args:
        path: the file.
        max_pixels: largest accepted size of a frame. Default: image.MAX_PIXELS.

    Attributes:
        count: number of visible frames in the file, including frames that cannot be decoded.
        missing: number of frames that the header states and the file does not have.
        undecoded: number of frames that could not be decoded so far.
        seconds: total duration of the visible frames.
        tick: the container's unit of time, in seconds.

    Raises VideoError if the file cannot be read or its frames have more than `max_pixels`.
    """

    def __init__(self, path: StrPath, max_pixels: int | None = None) -> None:
        self.path, self.max_pixels, self.undecoded = path, max_pixels or image.MAX_PIXELS, 0
        with self._opened() as (container, stream):
            self._check_size(stream.codec_context.height, stream.codec_context.width)
            self.tick: Fraction = stream.time_base
            # AVI stores no presentation times: FFmpeg invents them.
            self._time = "dts" if "avi" in container.format.name else "pts"
            times = [
                packet.dts if packet.pts is None else packet.pts
                for packet in _packets(container, stream)
                if not packet.is_discard  # trimmed off by the edit list
            ]
            self.count, self._times = len(times), sorted(time for time in times if time is not None)
            stated_s = container.duration / av.time_base if container.duration else 0.0
            is_plausible = 0 < stated_s <= LONGEST_VIDEO and stream.frames * SHORTEST <= stated_s
            stated = stream.frames if is_plausible else 0
        if not self.count:
            raise VideoError(f"{path}: not a readable video: it has no frames")
        self.missing = 0
        if stated > self.count:
            with self._opened(ignore_editlist="1") as (container, stream):
                self.missing = max(0, stated - sum(1 for _ in _packets(container, stream)))
        clock = _Clock()
        for time in self._times:
            clock.at(time * self.tick)
        self.seconds = float(clock.since_first + clock.duration)

    @contextlib.contextmanager
    def _opened(self, **more: str) -> Iterator[tuple[Any, Any]]:
        """Open the file with `more` FFmpeg options and yield the container and its video stream. Raises VideoError."""
        options = {"format_whitelist": FORMATS, "protocol_whitelist": "file", "max_pixels": str(self.max_pixels)}
        try:
            container = av.open(_address(self.path), options=options | more, metadata_errors="replace")
        except av.FFmpegError as error:
            raise VideoError(f"{self.path}: not a readable video: {error.strerror}") from error
        with container:
            streams = [
                stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic
            ]
            if not streams or streams[0].time_base is None:
                raise VideoError(f"{self.path}: not a readable video: it has no frames")
            if streams[0].codec_context is None:
                raise VideoError(f"{self.path}: not a readable video: PyAV has no decoder for its codec")
            yield container, streams[0]

    def frames(self) -> Iterator[tuple[Pixels, Fraction]]:
        """Decode the video. Yields (RGB uint8 (H, W, 3), seconds since the first frame) of each frame.

        Raises VideoError if no frame can be decoded or a frame is too large.
        """
        clock, decoded = _Clock(), False
        with self._opened() as (container, stream):
            for packet in _packets(container, stream, and_end=True):
                try:
                    frames = packet.decode()
                except av.FFmpegError:
                    self.undecoded += 1
                    continue
                for frame in frames:
                    decoded, time = True, getattr(frame, self._time)
                    yield self._upright(frame, stream), clock.at(None if time is None else time * self.tick)
        if not decoded:
            raise VideoError(f"{self.path}: not a readable video: none of its frames can be decoded")

    def sampled(self, most: int) -> Iterator[Pixels]:
        """Yield the RGB of at most `most` frames, evenly spaced, without frames that cannot be decoded."""
        with self._opened() as (container, stream):
            for time in evenly(self._times, most):
                with contextlib.suppress(av.FFmpegError):
                    container.seek(time, stream=stream)
                    frames = (frame for frame in container.decode(stream) if frame.pts is None or frame.pts >= time)
                    if frame := next(frames, None):
                        yield self._upright(frame, stream)

    def check_whole(self) -> None:
        """Raise VideoError if the file has fewer frames than its header states. Call it after `frames`."""
        whole, missing = self.count + self.missing, self.missing + self.undecoded
        if missing > max(1, MISSING_FRAMES * whole):
            raise VideoError(
                f"{self.path}: cut off: {whole - missing} of its {whole} frames could be read, and were predicted"
            )

    def _check_size(self, height: int, width: int) -> None:
        if not 0 < height * width <= self.max_pixels:  # FFmpeg reports size 0 above its own max_pixels
            raise VideoError(f"{self.path}: frames of no size, or of more than {self.max_pixels:,} pixels: refused")

    def _upright(self, frame: Any, stream: Any) -> Pixels:
        """Return the RGB of a frame as a player shows it: with square pixels, rotated by its display matrix."""
        shape = stream.sample_aspect_ratio or 1
        width = round(frame.width * shape) if 1 / WIDEST_PIXEL <= shape <= WIDEST_PIXEL else frame.width
        self._check_size(frame.height, width)
        rgb = frame.reformat(width=width, format="rgb24").to_ndarray()
        matrix = frame.side_data.get("DISPLAYMATRIX")
        return rgb if matrix is None else _turned(rgb, np.frombuffer(matrix, np.int32))


def _packets(container: Any, stream: Any, and_end: bool = False) -> Iterator[Any]:
    """Yield the encoded frames up to the first read error, and if `and_end` the empty packet that ends the decoding."""
    with contextlib.suppress(av.FFmpegError):
        for packet in container.demux(stream):
            if packet.size or and_end:
                yield packet


def _turned(rgb: Pixels, matrix: npt.NDArray[np.int32]) -> Pixels:
    """Apply a display matrix (ISO 14496-12: x' = a x + c y, y' = b x + d y) to RGB. Rotations by other angles than
    multiples of 90 degrees are ignored."""
    a, b, _, c, d = matrix[:5].tolist()
    if a and d and not b and not c:
        across, down = a, d
    elif b and c and not a and not d:
        rgb, across, down = rgb.transpose(1, 0, 2), c, b
    else:
        return rgb
    return np.ascontiguousarray(rgb[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1])


class _Clock:
    """Converts the times of frames in a container, in order, to seconds since the first frame."""

    def __init__(self) -> None:
        # Of the last frame, in seconds: its time since the first frame, and its duration.
        self.since_first, self.duration = Fraction(0), USUAL
        self.previous: Fraction | None = None
        self.started = False

    def at(self, time: Fraction | None) -> Fraction:
        """Return the seconds from the first frame to the next frame.

        Args:
            time: the next frame's time in the container, in seconds, or None if it has none.
        """
        if self.started:
            if time is not None and self.previous is not None and SHORTEST <= time - self.previous <= LONGEST:
                self.duration = time - self.previous
            self.since_first += self.duration
        self.started, self.previous = True, time
        return self.since_first


class Writer(contextlib.ExitStack):
    """Writes an MP4 in H.264, or in VP9 (logged) if PyAV has no encoder for H.264. Use it as a context manager.

    `finish` gives the file its name, after reading it back.

    Args:
        path: the file.
        tick: unit of the frames' times in seconds (`Video.tick`).

    Raises VideoError naming `path` if it cannot be written.
    """

    def __init__(self, path: Path, tick: Fraction) -> None:
        super().__init__()
        self.path, self.count, self.clock = path, 0, _Clock()
        # A multiple of the tick's denominator keeps the times exact; 1/90,000 s replaces too fine a tick.
        is_exact = tick.denominator <= 1_000_000
        self.time_base = Fraction(1, tick.denominator * -(-10_000 // tick.denominator) if is_exact else 90_000)
        self.partial = self.enter_context(temporary_folder(path.parent)) / f"video{path.suffix}"
        self.stream: Any = None
        with self._naming():
            # faststart: the index precedes the frames, so that a browser can play before it has the whole file.
            self.container = av.open(_address(self.partial), "w", format="mp4", options={"movflags": "+faststart"})
        self.callback(self._abandon)

    def add(self, rgb: Pixels, at: Fraction) -> None:
        """Append a frame.

        Args:
            rgb: uint8 (H, W, 3). The first frame determines the size. H.264 needs an even size: an odd last row or
                column is repeated.
            at: seconds since the first frame.
        """
        height, width = rgb.shape[:2]
        rgb = cv2.copyMakeBorder(rgb, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        with self._naming():
            self.stream = self.stream or self._new_stream(*rgb.shape[:2])
            frame = av.VideoFrame.from_ndarray(rgb).reformat(
                self.stream.width, self.stream.height, "yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG"
            )
            self.clock.at(at)
            frame.pts, frame.time_base = round(at / self.time_base), self.time_base
            self._mux(self.stream.encode(frame))
        self.count += 1

    def finish(self) -> None:
        """Complete the file, count its frames, and rename it to its final name. Raises VideoError."""
        with self._naming():
            self._mux(self.stream.encode(None))
            self.container.close()
        written = Video(self.partial).count
        if written != self.count:
            raise VideoError(f"{self.path}: {written} of {self.count} frames could be written: is the disk full?")
        os.replace(self.partial, self.path)

    def _new_stream(self, height: int, width: int) -> Any:
        encoder = next((name for name in ENCODERS if name in av.codecs_available), None)
        if encoder is None:
            raise VideoError(f"{self.path}: PyAV has none of the encoders {' '.join(ENCODERS)}")
        if "264" not in encoder:
            logger.info("%s: VP9, for PyAV has no encoder for H.264 here", self.path)
        # The rate of 30 is only a hint for the encoder, because every frame has its own time.
        stream = self.container.add_stream(
            encoder,
            30,
            options=ENCODERS[encoder],
            width=width,
            height=height,
            pix_fmt="yuv420p",
            time_base=self.time_base,
        )
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _TV_RANGE
        return stream

    def _mux(self, packets: list[Any]) -> None:
        for packet in packets:
            packet.duration = round(self.clock.duration / self.time_base)  # only used for the last frame
            self.container.mux(packet)

    def _abandon(self) -> None:
        with contextlib.suppress(av.FFmpegError):
            self.container.close()

    @contextlib.contextmanager
    def _naming(self) -> Iterator[None]:
        """Convert PyAV's exceptions to a VideoError that names the file."""
        try:
            yield
        except av.FFmpegError as error:
            raise VideoError(f"{self.path}: cannot be written: {error.strerror}") from error


def _address(path: StrPath) -> str:
    """Return `path` as a URL for FFmpeg, which would take the part of a path before a colon for a protocol."""
    return f"file:{os.fspath(path)}"
