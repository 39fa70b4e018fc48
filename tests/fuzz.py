"""What the tests on damaged files share. DEPTHNET_FUZZ=5000 looks longer than CI does.

Whatever the file: exit code 0, 1 or 2, at most one line of error, no traceback, no signal, no more memory than stated,
and no file but in the output folder.
"""

import io
import os
import shutil

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from PIL import Image

EXAMPLES = int(os.environ.get("DEPTHNET_FUZZ", "24"))


MEGABYTES = 1500  # beyond what the interpreter maps: a picture of 64 million pixels, several times


# Each example is a folder's worth of work, and the same ones come in every run.
bounded = settings(
    max_examples=EXAMPLES, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


slow = settings(bounded, max_examples=max(4, EXAMPLES // 8))


def mutations(*seeds):
    """One of the contents, with a few bytes changed, cut out, doubled or put in; or cut off; or quite other bytes."""
    place = st.floats(0, 1, exclude_max=True)
    edit = st.tuples(
        place, st.sampled_from(["flip", "set", "cut", "double", "insert"]), st.integers(0, 255), st.integers(1, 64)
    )

    def apply(content, edits, end):
        content = bytearray(content)
        for where, kind, value, length in edits:
            at = int(where * max(len(content), 1))
            if kind == "flip" and content:
                content[at] ^= value or 1
            elif kind == "set":
                content[at : at + length] = bytes([value]) * min(length, len(content) - at)
            elif kind == "cut":
                del content[at : at + length]
            elif kind == "double":
                content[at:at] = content[at : at + length]
            else:
                content[at:at] = bytes([value]) * length
        return bytes(content[: max(1, int(end * len(content)))] if end < 0.5 else content)

    mutated = st.builds(apply, st.sampled_from(seeds), st.lists(edit, max_size=3), st.floats(0, 4))
    return st.one_of(mutated, mutated, mutated, st.binary(max_size=300))


def judge(answer, names=()):
    """What holds whatever the file was."""
    text = answer.stdout + answer.stderr
    assert answer.returncode in (0, 1, 2), (answer.returncode, text)
    assert "Traceback" not in text and "MemoryError" not in text, text
    lines = [line for line in answer.stderr.splitlines() if line.strip()]
    assert len(lines) <= 1, answer.stderr
    if answer.returncode == 2:
        assert lines and any(name in lines[0] for name in names), lines


def fresh(folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def encoded(mode, file_format, pixels=None, **options):
    """A small picture of noise, or of these pixels, as the content of a file."""
    if pixels is None:
        rng, deep = np.random.default_rng(3), mode == "I;16"
        pixels = rng.integers(0, 65536, (48, 64), np.uint16) if deep else rng.integers(0, 256, (48, 64, 3), np.uint8)
    picture, buffer = Image.fromarray(pixels), io.BytesIO()
    (picture if mode == "I;16" else picture.convert(mode)).save(buffer, file_format, **options)
    return buffer.getvalue()


EXIF = Image.Exif()
EXIF[0x0112] = 6


PICTURES = [
    encoded("RGB", "JPEG", exif=EXIF),
    encoded("L", "JPEG"),
    encoded("CMYK", "JPEG"),
    encoded("RGB", "JPEG", progressive=True),
    *(encoded(mode, "PNG") for mode in ("1", "L", "P", "LA", "RGB", "RGBA", "I;16")),
    encoded("RGB", "PNG", exif=EXIF),
    encoded("RGB", "WEBP"),
    encoded("RGBA", "WEBP", lossless=True),
    *(encoded(mode, "TIFF", compression="raw") for mode in ("L", "I;16")),
    *(encoded("RGB", "TIFF", compression=how) for how in ("tiff_lzw", "jpeg")),
    encoded("1", "TIFF", compression="group4"),
    encoded("CMYK", "TIFF", compression="tiff_adobe_deflate"),
    *(encoded(mode, "BMP") for mode in ("1", "L", "P", "RGB")),
    encoded("P", "GIF"),
]
