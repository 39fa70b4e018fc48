"""Reads pictures and depth maps, and defines the geometry used everywhere: crop, then bilinear resize.

The crop is rows 12..468 and columns 16..624 of 480x640, or the same share of a larger picture of that aspect ratio.
Bilinear is OpenCV's INTER_LINEAR: half-pixel centres, no anti-aliasing. Depth 0 means "not measured".
"""

import contextlib
import io
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from src.base.arrays import Array, Floats, Pixels
from src.base.errors import UserError
from src.base.files import StrPath

FULL_SIZE = (480, 640)
CROP_ROWS = (12, 468)
CROP_COLUMNS = (16, 624)
RGB_SIZE = (228, 304)
HALF_SIZE = (240, 320)
HALF_ROWS, HALF_COLUMNS = slice(6, 234), slice(8, 312)  # the crop at half size: RGB_SIZE exactly
DEPTH_SIZE = (55, 74)
MAX_PIXELS = 64_000_000
MAX_BYTES = 4 * MAX_PIXELS
# Limit for a baseline JPEG. Above MAX_PIXELS it is decoded at half its size, in the memory that this size needs. A
# progressive JPEG is always decoded as a whole.
MAX_JPEG_PIXELS = 250_000_000
# Without this list Pillow tries every format it knows, even Ghostscript, whatever the file name.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
# File name endings of JPEG; browsers on Windows save .jfif.
JPEG_ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif")
# Photo formats that are not supported, and the first bytes of their files.
_UNREAD = (
    ("AVIF", rb"....ftyp(avi[fs]|mif1.{0,20}avif)"),
    ("HEIC", rb"....ftyp(hei[cmsx]|hev[cmx]|mif1|msf1)"),
    ("JPEG XL", rb"\xff\n|\0\0\0\x0cJXL "),
    ("JPEG 2000", rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"),
)
# EXIF orientation -> the transpose that turns the picture upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Accepted range of 35 mm equivalent focal lengths in mm, from fisheyes to superzooms.
FOCAL_35MM = (5, 3000)

TRAIN_DEPTH_SCALE = np.float32(10 / 255)  # 8-bit pixel -> metres
TEST_DEPTH_SCALE = np.float32(1 / 1000)  # 16-bit pixel -> metres

MOST_TEST_DEPTH_M = 65.535  # largest depth that 16-bit millimetres can hold

_DEPTH_BITS = {"L": 8, "I;16": 16, "I;16B": 16, "I": 16}


logger = logging.getLogger(__name__)


class ImageError(UserError):
    """A picture cannot be used. The message names the file."""


class SizeError(ImageError):
    """A picture's size is not supported, or RGB and depth differ in size."""


class BitDepthError(ImageError):
    """A depth map has the bit depth of the other folder (Train: 8, Test: 16)."""


@contextlib.contextmanager
def _naming(path: StrPath) -> Iterator[None]:
    """Convert Pillow's exceptions to an ImageError that names `path`."""
    try:
        yield
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path}: more than {MAX_PIXELS:,} pixels: refused") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{path}: broken image: not one of {', '.join(FORMATS)}") from error
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such file") from error
    except MemoryError as error:
        raise ImageError(f"{path}: not enough memory for its pixels") from error
    except Exception as error:  # Pillow raises a different type for every kind of damage
        raise ImageError(f"{path}: broken image: {error}") from error


def _opened(path: StrPath) -> tuple[bytes, Image.Image]:
    """Return (content, Pillow image with only its header read). Raises ImageError."""
    with _naming(path):
        if Path(path).stat().st_size > MAX_BYTES:
            raise ImageError(f"{path}: more than {MAX_BYTES:,} bytes: refused")
        content = Path(path).read_bytes()
        if not content:
            raise ImageError(f"{path}: broken image: the file is empty")
        for name, beginning in _UNREAD:
            if re.match(beginning, content[:40], re.DOTALL):
                raise ImageError(f"{path}: {name} is not read: save it as JPEG or PNG first")
        if content.startswith(b"\xff\xd8\xff"):  # Image.open refuses 180 million pixels, even at half size
            return content, JpegImageFile(io.BytesIO(content))
        return content, Image.open(io.BytesIO(content), formats=FORMATS)


def _read(path: StrPath) -> tuple[bytes, Image.Image]:
    """Return (content, Pillow image, not decoded yet). A JPEG above MAX_PIXELS will be decoded at half its size.

    Checks the size of the file and of the picture first, so that a file cannot fill the memory. Raises ImageError.
    """
    content, image = _opened(path)
    pixels, size = image.width * image.height, f"{image.height}x{image.width}"
    if pixels > MAX_PIXELS:
        if not isinstance(image, JpegImageFile) or "progressive" in image.info:
            raise ImageError(
                f"{path}: {size} is more than {MAX_PIXELS:,} pixels: refused (a JPEG that is not "
                f"progressive may have {MAX_JPEG_PIXELS:,})"
            )
        if pixels > MAX_JPEG_PIXELS:
            raise ImageError(f"{path}: {size} is more than {MAX_JPEG_PIXELS:,} pixels: refused")
        image.draft(None, (image.width // 2, image.height // 2))
        logger.info(
            "%s: %s is more than %s pixels: read at half its size, %dx%d",
            path,
            size,
            f"{MAX_PIXELS:,}",
            image.height,
            image.width,
        )
    return content, image


def _is_plain_jpeg(content: bytes, image: Image.Image) -> bool:
    """Return whether OpenCV decodes a JPEG to the same pixels as Pillow: complete, full size, RGB or grey, no EXIF."""
    return (
        isinstance(image, JpegImageFile)
        and not image.decoderconfig
        and image.mode in ("RGB", "L")
        and "exif" not in image.info
        and content.endswith(b"\xff\xd9")
    )


def load_rgb(path: StrPath) -> Pixels:
    """Read a picture: EXIF rotation applied, grey repeated, alpha dropped, 16 bits reduced to 8.

    A JPEG of more than MAX_PIXELS is read at half its size, which is logged.

    Returns:
        uint8 RGB (H, W, 3).

    Raises ImageError if the file is missing, broken, truncated or too large.
    """
    content, image = _read(path)
    if _is_plain_jpeg(content, image):  # both use libjpeg-turbo, but OpenCV takes two thirds of the time
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        if pixels is not None:
            return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, pixels)
    with _naming(path):
        return to_rgb(_upright(image))


def _upright(image: Image.Image) -> Image.Image:
    """Decode a picture and rotate it by its EXIF orientation. Other EXIF data, and damage in them, are ignored."""
    turn = None
    with contextlib.suppress(Exception):  # Pillow raises a different type for every kind of damage
        exif = image.getexif()
        turn = _TURNS.get(exif[ExifTags.Base.Orientation])
        if image.format == "TIFF":  # Pillow rotates it on load, and rewrites its EXIF, damage included
            for tag in set(exif) - {ExifTags.Base.Orientation}:
                del exif[tag]
    image.load()
    return image if turn is None or image.format == "TIFF" else image.transpose(turn)


def to_rgb(image: Image.Image) -> Pixels:
    """Convert a Pillow image to uint8 RGB (H, W, 3): grey repeated, alpha dropped, 16 bits and floats in [0, 1] reduced
    to 8 bits."""
    if image.mode.startswith("I"):
        return np.repeat(_high_byte(np.asarray(image))[..., None], 3, axis=2)
    if image.mode == "F" and (pixels := to_8_bits(np.asarray(image))) is not None:
        return np.repeat(pixels[..., None], 3, axis=2)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _high_byte(pixels: Array) -> Pixels:
    return (pixels.clip(0, 65535).astype(np.uint16) >> 8).astype(np.uint8)


def to_8_bits(pixels: Array) -> Pixels | None:
    """Convert uint8, uint16, bool, or floats in [0, 1] to uint8 of the same shape. Returns None for other arrays."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.uint16:
        return _high_byte(pixels)
    if pixels.dtype == np.bool_ or (pixels.dtype.kind == "f" and pixels.min() >= 0 and pixels.max() <= 1):
        return np.rint(pixels.astype(np.float32) * 255).astype(np.uint8)
    return None


def focal_length_35mm(path: StrPath) -> float | None:
    """Return the 35 mm equivalent focal length in mm from a photo's EXIF, or None if absent or outside FOCAL_35MM."""
    try:
        exif = _opened(path)[1].getexif()
        focal = float(exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.FocalLengthIn35mmFilm, 0))
    except Exception:  # load_rgb will read the picture, or report the damage
        return None
    return focal if FOCAL_35MM[0] <= focal <= FOCAL_35MM[1] else None


def _load_depth_pixels(path: StrPath, bits: int, hint: str) -> Array:
    content, image = _read(path)
    own_bits = _DEPTH_BITS.get(image.mode)
    if own_bits != bits:
        kind = f"{own_bits}-bit grey" if own_bits else f"mode {image.mode}"
        raise BitDepthError(f"{path}: {kind}, expected {bits}-bit grey depth ({hint})")
    pixels = None
    if image.format == "PNG":
        with _naming(path):
            Image.open(io.BytesIO(content), formats=("PNG",)).verify()  # else libpng prints errors
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:  # another format, or damaged: Pillow reads it or raises
        with _naming(path):
            image.load()
        pixels = np.asarray(image)
    return pixels


def load_train_depth_pixels(path: StrPath) -> Pixels:
    """Read an 8-bit training depth map as uint8 (H, W), 0 = not measured. Raises ImageError.

    Metres are the pixels times TRAIN_DEPTH_SCALE.
    """
    return _load_depth_pixels(path, 8, "Train is 8-bit, metres = pixel / 255 * 10; 16-bit millimetres belong in Test")


def load_train_depth(path: StrPath) -> Floats:
    """Read 8-bit training depth: float32 metres (H, W), pixel / 255 * 10, 0 = not measured. Raises ImageError."""
    return load_train_depth_pixels(path).astype(np.float32) * TRAIN_DEPTH_SCALE


def load_test_depth(path: StrPath) -> Floats:
    """Read a 16-bit test depth map: float32 metres (H, W), pixel / 1000, 0 = not measured. Raises ImageError."""
    pixels = _load_depth_pixels(path, 16, "Test is 16-bit millimetres; 8-bit pixel / 255 * 10 belongs in Train")
    return pixels.astype(np.float32) * TEST_DEPTH_SCALE


def encode_train_depth(depth_m: Floats) -> Pixels:
    """Encode metres (H, W) as Train's uint8 pixels, the inverse of `load_train_depth`. Measured pixels stay above 0."""
    return np.where(_measured(depth_m), np.clip(np.rint(depth_m / 10 * 255), 1, 255), 0).astype(np.uint8)


def encode_test_depth(depth_m: Floats) -> npt.NDArray[np.uint16]:
    """Encode metres (H, W) as Test's uint16 millimetres, the inverse of `load_test_depth`, clipped to
    MOST_TEST_DEPTH_M."""
    return np.where(_measured(depth_m), np.rint(depth_m * 1000).clip(0, 65535), 0).astype(np.uint16)


def _measured(depth_m: Floats) -> npt.NDArray[np.bool_]:
    """Return where the depth is measured: positive and finite."""
    return (depth_m > 0) & (depth_m < np.inf)


def crop(array: Array) -> Array:
    """Crop an array (H, W) or (H, W, C) to what the nets see: rows 12..468 and columns 16..624 of 480x640, or the same
    share of another size.

    Raises SizeError unless the size is 480x640 times a factor >= 0.5.
    """
    height, width = array.shape[:2]
    scale = height / FULL_SIZE[0]
    if height * FULL_SIZE[1] != width * FULL_SIZE[0] or scale < 0.5:
        raise SizeError(f"size {height}x{width} (height x width), expected 480x640 or the same ratio from 240x320 up")
    top, bottom = (round(row * scale) for row in CROP_ROWS)
    left, right = (round(column * scale) for column in CROP_COLUMNS)
    return array[top:bottom, left:right]


def resize(array: Array, size: tuple[int, ...]) -> Array:
    """Resize to `size` (height, width) with OpenCV's bilinear interpolation."""
    return cv2.resize(array, size[::-1], interpolation=cv2.INTER_LINEAR)


def resize_depth(depth_m: Array, size: tuple[int, ...]) -> Floats:
    """Resize depth (H, W) to `size` (height, width), bilinear over the measured pixels only.

    Returns:
        float32; 0 where less than half of the interpolation weight is measured. Equals `resize` if all is measured.
    """
    if depth_m.min() > 0:
        return resize(depth_m.astype(np.float32, copy=False), size)
    depth_m, measured = depth_m.astype(np.float32, copy=False), depth_m > 0
    weight = resize(measured.astype(np.float32), size)
    weighted_sum = resize(np.where(measured, depth_m, np.float32(0)), size)
    return np.where(weight >= 0.5, weighted_sum / np.maximum(weight, np.float32(0.5)), np.float32(0))


def _full(rgb: Pixels) -> Pixels:
    """Resize uint8 RGB (H, W, 3) of about 4:3 to (480, 640, 3); larger pictures are averaged (INTER_AREA)."""
    if rgb.shape[:2] == FULL_SIZE:
        return rgb
    shrinks = rgb.shape[0] > FULL_SIZE[0]
    return cv2.resize(rgb, FULL_SIZE[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def view(rgb: Pixels) -> Pixels:
    """Resize uint8 RGB (H, W, 3) of about 4:3 to 480x640 and crop what the nets see: uint8 (456, 608, 3)."""
    return crop(_full(rgb))


def network_rgb(rgb: Pixels) -> Floats:
    """Convert uint8 RGB (H, W, 3) of about 4:3 to the input of the nets: float32 (3, 228, 304) in [0, 1]."""
    resized = resize(view(rgb).astype(np.float32), RGB_SIZE)
    return np.ascontiguousarray(resized.transpose(2, 0, 1)) / np.float32(255)


def network_pixels(rgb: Pixels) -> Pixels:
    """As `network_rgb`, but rounded: uint8 (228, 304, 3), for training."""
    return resize(view(rgb), RGB_SIZE)


def half_pixels(rgb: Pixels) -> Pixels:
    """Resize the whole picture to uint8 (240, 320, 3). Its centre equals `network_pixels` bit for bit."""
    return resize(_full(rgb), HALF_SIZE)


def half_depth(pixels: Pixels) -> Pixels:
    """Resize a whole training depth map to uint8 (240, 320), in its own encoding, 0 = not measured."""
    return np.rint(resize_depth(pixels, HALF_SIZE)).astype(np.uint8)


def network_depth(depth_m: Array) -> Floats:
    """Crop and resize depth (480, 640) to the grid of the nets: float32 (1, 55, 74), in the same unit."""
    return resize_depth(crop(depth_m), DEPTH_SIZE)[None]


def check_pair(rgb: Pixels, depth_m: Array, rgb_path: StrPath, depth_path: StrPath) -> None:
    """Raise SizeError naming the files unless RGB and depth have the same size and `crop` accepts it."""
    if rgb.shape[:2] != depth_m.shape[:2]:
        raise SizeError(
            f"{rgb_path} is {rgb.shape[0]}x{rgb.shape[1]} but {depth_path} is "
            f"{depth_m.shape[0]}x{depth_m.shape[1]} (height x width)"
        )
    try:
        crop(rgb)
    except SizeError as error:
        raise SizeError(f"{rgb_path}: {error}") from error
