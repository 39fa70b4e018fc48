"""Reading NYU pictures, and the one geometry of the project: crop, then bilinear resize.

The crop is rows 12..468 and columns 16..624 of 480x640 (the same share of any picture with that ratio);
bilinear is OpenCV's INTER_LINEAR: half-pixel centres, no anti-aliasing. Depth 0 means "not measured".
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
# Of a JPEG that is not progressive: with more than MAX_PIXELS it is decoded at half its size, which needs the memory of
# that alone. A progressive one has to be in memory as a whole.
MAX_JPEG_PIXELS = 250_000_000
# Pillow would try all that it knows, Ghostscript included, whatever a file is called.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
# What a JPEG may be called: .jfif is what Windows saves from a browser.
JPEG_ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif")
# Formats of photographs that are not read: how their files begin.
_UNREAD = (("AVIF", rb"....ftyp(avi[fs]|mif1.{0,20}avif)"), ("HEIC", rb"....ftyp(hei[cmsx]|hev[cmx]|mif1|msf1)"),
           ("JPEG XL", rb"\xff\n|\0\0\0\x0cJXL "), ("JPEG 2000", rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"))
# EXIF's orientation: what turns the picture upright.
_TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
          5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
          8: Image.Transpose.ROTATE_90}
# The 35 mm equivalent focal lengths that are believed, in mm: from fisheyes to superzooms.
FOCAL_35MM = (5, 3000)

TRAIN_DEPTH_SCALE = np.float32(10 / 255)  # 8-bit pixel -> metres
TEST_DEPTH_SCALE = np.float32(1 / 1000)  # 16-bit pixel -> metres

MOST_TEST_DEPTH_M = 65.535  # of 16 bits of millimetres

_DEPTH_BITS = {"L": 8, "I;16": 16, "I;16B": 16, "I": 16}


logger = logging.getLogger(__name__)


class ImageError(UserError):
    """A picture that cannot be used. The message names the file."""


class SizeError(ImageError):
    """A picture of a size, or a pair of two sizes, that the geometry does not take."""


class BitDepthError(ImageError):
    """A depth map in another encoding than its folder's: the 8/16-bit mix-up."""


@contextlib.contextmanager
def _naming(path: StrPath) -> Iterator[None]:
    """Make what Pillow raises an ImageError that names `path`."""
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
    """(content, Pillow image of which nothing but the header was read). Raises ImageError."""
    with _naming(path):
        if Path(path).stat().st_size > MAX_BYTES:
            raise ImageError(f"{path}: more than {MAX_BYTES:,} bytes: refused")
        content = Path(path).read_bytes()
        if not content:
            raise ImageError(f"{path}: broken image: the file is empty")
        for name, beginning in _UNREAD:
            if re.match(beginning, content[:40], re.DOTALL):
                raise ImageError(f"{path}: {name} is not read: save it as JPEG or PNG first")
        if content.startswith(b"\xff\xd8\xff"):  # Image.open refuses 180 million pixels, however few are asked for
            return content, JpegImageFile(io.BytesIO(content))
        return content, Image.open(io.BytesIO(content), formats=FORMATS)


def _read(path: StrPath) -> tuple[bytes, Image.Image]:
    """(content, Pillow image that is not decoded yet, and will be at half its size where it has more than MAX_PIXELS
    and may have them). Raises ImageError.

    What a file could fill the memory with is looked at first: its own size, and the size that it declares.
    """
    content, image = _opened(path)
    pixels, size = image.width * image.height, f"{image.height}x{image.width}"
    if pixels > MAX_PIXELS:
        if not isinstance(image, JpegImageFile) or "progressive" in image.info:
            raise ImageError(f"{path}: {size} is more than {MAX_PIXELS:,} pixels: refused (a JPEG that is not "
                             f"progressive may have {MAX_JPEG_PIXELS:,})")
        if pixels > MAX_JPEG_PIXELS:
            raise ImageError(f"{path}: {size} is more than {MAX_JPEG_PIXELS:,} pixels: refused")
        image.draft(None, (image.width // 2, image.height // 2))
        logger.info("%s: %s is more than %s pixels: read at half its size, %dx%d", path, size, f"{MAX_PIXELS:,}",
                    image.height, image.width)
    return content, image


def _is_plain_jpeg(content: bytes, image: Image.Image) -> bool:
    """Whether OpenCV decodes it to the pixels that Pillow would: complete, whole, RGB or grey, and not rotated by
    EXIF."""
    return (isinstance(image, JpegImageFile) and not image.decoderconfig and image.mode in ("RGB", "L")
            and "exif" not in image.info and content.endswith(b"\xff\xd9"))


def load_rgb(path: StrPath) -> Pixels:
    """Read any picture as uint8 (H, W, 3): EXIF rotation applied, grey repeated, alpha dropped, 16 bits to 8.

    A JPEG of more than MAX_PIXELS is read at half its size, which is logged. Raises ImageError when it is missing,
    broken, truncated or too large.
    """
    content, image = _read(path)
    if _is_plain_jpeg(content, image):  # the same library behind both, but OpenCV takes two thirds of the time
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        if pixels is not None:
            return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, pixels)
    with _naming(path):
        return to_rgb(_upright(image))


def _upright(image: Image.Image) -> Image.Image:
    """The decoded picture, turned as its EXIF says. Whatever else is in there, and damage in it, is of no interest."""
    turn = None
    with contextlib.suppress(Exception):  # as many types as kinds of damage
        exif = image.getexif()
        turn = _TURNS.get(exif[ExifTags.Base.Orientation])
        if image.format == "TIFF":  # Pillow turns it while loading it; and writes its EXIF anew, all that is left
            for tag in set(exif) - {ExifTags.Base.Orientation}:
                del exif[tag]
    image.load()
    return image if turn is None or image.format == "TIFF" else image.transpose(turn)


def to_rgb(image: Image.Image) -> Pixels:
    """The pixels of a Pillow image as uint8 (H, W, 3): grey repeated, alpha dropped, 16 bits and floats
    from 0 to 1 to 8."""
    if image.mode.startswith("I"):
        return np.repeat(_high_byte(np.asarray(image))[..., None], 3, axis=2)
    if image.mode == "F" and (pixels := to_8_bits(np.asarray(image))) is not None:
        return np.repeat(pixels[..., None], 3, axis=2)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _high_byte(pixels: Array) -> Pixels:
    return (pixels.clip(0, 65535).astype(np.uint16) >> 8).astype(np.uint8)


def to_8_bits(pixels: Array) -> Pixels | None:
    """Pixels of uint8, uint16, bool or floating-point numbers from 0 to 1 as uint8 of the same shape; None for
    others."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.uint16:
        return _high_byte(pixels)
    if pixels.dtype == np.bool_ or (pixels.dtype.kind == "f" and pixels.min() >= 0 and pixels.max() <= 1):
        return np.rint(pixels.astype(np.float32) * 255).astype(np.uint8)
    return None


def focal_length_35mm(path: StrPath) -> float | None:
    """The focal length in mm that a 36x24 mm picture of the same angle would have, as the EXIF of a photograph tells
    it; None where it does not, or tells what is outside FOCAL_35MM."""
    try:
        exif = _opened(path)[1].getexif()
        focal = float(exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.FocalLengthIn35mmFilm, 0))
    except Exception:  # a picture of that kind is read, or named as broken, by load_rgb
        return None
    return focal if FOCAL_35MM[0] <= focal <= FOCAL_35MM[1] else None


def _load_depth_pixels(path: StrPath, bits: int, trap: str) -> Array:
    content, image = _read(path)
    found = _DEPTH_BITS.get(image.mode)
    if found != bits:
        kind = f"{found}-bit grey" if found else f"mode {image.mode}"
        raise BitDepthError(f"{path}: {kind}, expected {bits}-bit grey depth ({trap})")
    pixels = None
    if image.format == "PNG":
        with _naming(path):
            Image.open(io.BytesIO(content), formats=("PNG",)).verify()  # checksums: libpng would print what is wrong
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:  # of another format, or damaged: Pillow says how
        with _naming(path):
            image.load()
        pixels = np.asarray(image)
    return pixels


def load_train_depth_pixels(path: StrPath) -> Pixels:
    """Read an 8-bit training depth map as uint8 (H, W); times TRAIN_DEPTH_SCALE it is metres, 0 = not measured."""
    return _load_depth_pixels(path, 8, "Train is 8-bit, metres = pixel / 255 * 10; 16-bit millimetres belong in Test")


def load_train_depth(path: StrPath) -> Floats:
    """Read an 8-bit training depth map as float32 metres (H, W): pixel / 255 * 10, 0 = not measured."""
    return load_train_depth_pixels(path).astype(np.float32) * TRAIN_DEPTH_SCALE


def load_test_depth(path: StrPath) -> Floats:
    """Read a 16-bit test depth map as float32 metres (H, W): pixel / 1000, 0 = not measured."""
    pixels = _load_depth_pixels(path, 16, "Test is 16-bit millimetres; 8-bit pixel / 255 * 10 belongs in Train")
    return pixels.astype(np.float32) * TEST_DEPTH_SCALE


def encode_train_depth(depth_m: Floats) -> Pixels:
    """Metres -> Train's uint8 pixels, the inverse of `load_train_depth`; what is measured stays above 0."""
    return np.where(_measured(depth_m), np.clip(np.rint(depth_m / 10 * 255), 1, 255), 0).astype(np.uint8)


def encode_test_depth(depth_m: Floats) -> npt.NDArray[np.uint16]:
    """Metres -> Test's uint16 millimetres, the inverse of `load_test_depth`; what is deeper than MOST_TEST_DEPTH_M is
    that deep."""
    return np.where(_measured(depth_m), np.rint(depth_m * 1000).clip(0, 65535), 0).astype(np.uint16)


def _measured(depth_m: Floats) -> npt.NDArray[np.bool_]:
    """Where there is a depth: NaN and infinite ones are none."""
    return (depth_m > 0) & (depth_m < np.inf)


def crop(array: Array) -> Array:
    """The part that the nets see: rows 12..468, columns 16..624 at 480x640, the same share at k times that size.

    Raises ImageError for any other ratio or below 228x304 after the crop.
    """
    height, width = array.shape[:2]
    scale = height / FULL_SIZE[0]
    if height * FULL_SIZE[1] != width * FULL_SIZE[0] or scale < 0.5:
        raise SizeError(f"size {height}x{width} (height x width), expected 480x640 or the same ratio "
                        "from 240x320 up")
    top, bottom = (round(row * scale) for row in CROP_ROWS)
    left, right = (round(column * scale) for column in CROP_COLUMNS)
    return array[top:bottom, left:right]


def resize(array: Array, size: tuple[int, ...]) -> Array:
    """OpenCV bilinear to `size` (height, width)."""
    return cv2.resize(array, size[::-1], interpolation=cv2.INTER_LINEAR)


def resize_depth(depth_m: Array, size: tuple[int, ...]) -> Floats:
    """Bilinear over the measured pixels only, float32; 0 where less than half of the weight is measured.

    Without unmeasured pixels it is `resize`.
    """
    if depth_m.min() > 0:
        return resize(depth_m.astype(np.float32, copy=False), size)
    depth_m, measured = depth_m.astype(np.float32, copy=False), depth_m > 0
    weight = resize(measured.astype(np.float32), size)
    weighted_sum = resize(np.where(measured, depth_m, np.float32(0)), size)
    return np.where(weight >= 0.5, weighted_sum / np.maximum(weight, np.float32(0.5)), np.float32(0))


def _full(rgb: Pixels) -> Pixels:
    """uint8 (H, W, 3) of about 4:3 -> (480, 640, 3). Pixels are averaged where they are too many."""
    if rgb.shape[:2] == FULL_SIZE:
        return rgb
    fewer = rgb.shape[0] > FULL_SIZE[0]
    return cv2.resize(rgb, FULL_SIZE[::-1], interpolation=cv2.INTER_AREA if fewer else cv2.INTER_LINEAR)


def view(rgb: Pixels) -> Pixels:
    """uint8 (H, W, 3) of about 4:3 -> what the nets see of it at 480x640: uint8 (456, 608, 3).

    The one way of every picture to the nets.
    """
    return crop(_full(rgb))


def network_rgb(rgb: Pixels) -> Floats:
    """uint8 (H, W, 3) of about 4:3 -> float32 (3, 228, 304) in [0, 1]: what the nets take."""
    resized = resize(view(rgb).astype(np.float32), RGB_SIZE)
    return np.ascontiguousarray(resized.transpose(2, 0, 1)) / np.float32(255)


def network_pixels(rgb: Pixels) -> Pixels:
    """The same, rounded: uint8 (228, 304, 3), what is kept and augmented while training."""
    return resize(view(rgb), RGB_SIZE)


def half_pixels(rgb: Pixels) -> Pixels:
    """The whole picture at half of 480x640: uint8 (240, 320, 3), with `network_pixels` in its middle, bit for bit."""
    return resize(_full(rgb), HALF_SIZE)


def half_depth(pixels: Pixels) -> Pixels:
    """The whole of a training depth map at half of 480x640, in its own encoding: uint8 (240, 320), 0 = not measured."""
    return np.rint(resize_depth(pixels, HALF_SIZE)).astype(np.uint8)


def network_depth(depth_m: Array) -> Floats:
    """Depth (480, 640) in any unit -> float32 (1, 55, 74) in the same: the target's grid."""
    return resize_depth(crop(depth_m), DEPTH_SIZE)[None]


def check_pair(rgb: Pixels, depth_m: Array, rgb_path: StrPath, depth_path: StrPath) -> None:
    """Raise ImageError, naming the files, unless RGB and depth have one size and `crop` takes it."""
    if rgb.shape[:2] != depth_m.shape[:2]:
        raise SizeError(f"{rgb_path} is {rgb.shape[0]}x{rgb.shape[1]} but {depth_path} is "
                        f"{depth_m.shape[0]}x{depth_m.shape[1]} (height x width)")
    try:
        crop(rgb)
    except SizeError as error:
        raise SizeError(f"{rgb_path}: {error}") from error
