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

EXAMPLES = int(os.environ.get("DEPTHNET_FUZZ", "60"))


MEGABYTES = 1500  # beyond what the interpreter maps: a picture of 64 million pixels, several times


# Each example is a folder's worth of work, and the same ones come in every run.
bounded = settings(
    max_examples=EXAMPLES, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


slow = settings(bounded, max_examples=max(6, EXAMPLES // 10))


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


def encoded(mode, file_format, **options):
    rng = np.random.default_rng(3)
    shape = (48, 64, 4) if mode in ("RGBA", "CMYK") else (48, 64, 3) if mode in ("RGB", "YCbCr") else (48, 64)
    if mode == "I;16":
        picture = Image.fromarray(rng.integers(0, 65536, shape).astype(np.uint16))
    elif mode in ("1", "P", "LA"):
        picture = Image.fromarray(rng.integers(0, 256, (48, 64), np.uint8)).convert(mode)
    else:
        picture = Image.fromarray(rng.integers(0, 256, shape, np.uint8), mode if mode in ("CMYK", "YCbCr") else None)
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
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
    *(
        encoded(mode, "TIFF", compression=how)
        for mode, how in (
            ("RGB", "tiff_lzw"),
            ("L", "raw"),
            ("1", "group4"),
            ("CMYK", "tiff_adobe_deflate"),
            ("RGB", "jpeg"),
            ("I;16", "raw"),
        )
    ),
    *(encoded(mode, "BMP") for mode in ("1", "L", "P", "RGB")),
    encoded("P", "GIF"),
]
