"""Damaged files of every kind that the commands read. DEPTHNET_FUZZ=5000 looks longer than CI does.

Whatever the file: exit code 0, 1 or 2, at most one line of error, no traceback, no signal, no more memory than stated,
and no file but in the output folder.
"""

import io
import json
import os
import shutil
import zipfile

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from src.base import folders
from src.data import packed
from src.net import FineNet
from src.nets import checkpoint
from tests.conftest import NEEDS_CPP
from tests.test_distributed import table

pytestmark = pytest.mark.long

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


@bounded
@given(content=mutations(*PICTURES), ending=st.sampled_from([".jpg", ".png", ".webp", ".tif", ".bmp"]))
def test_pictures(forked, tmp_path_factory, content, ending):
    folder = fresh(tmp_path_factory.getbasetemp() / "pictures")
    (folder / "in").mkdir()
    (folder / "in" / f"a{ending}").write_bytes(content)
    answer = forked("predict", "in", "out", cwd=folder, megabytes=MEGABYTES)
    judge(answer)
    made = files(folder) - {f"in/a{ending}"}
    assert made == ({"out/a_depth.png", "out/a_depth.npy"} if answer.returncode == 0 else set())
    assert answer.returncode == 0 or f"in/a{ending}" in answer.stdout


def video_seeds():
    rng, contents = np.random.default_rng(6), []
    for file_format, codec in (
        ("mp4", "libx264"),
        ("mp4", "mpeg4"),
        ("avi", "mjpeg"),
        ("matroska", "libvpx-vp9"),
        ("webm", "libvpx"),
        ("mpegts", "libx264"),
    ):
        buffer = io.BytesIO()
        with av.open(buffer, "w", format=file_format) as container:
            stream = container.add_stream(codec, 10, width=64, height=48)
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            for _ in range(4):
                pixels = rng.integers(0, 256, (48, 64, 3), np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
            container.mux(stream.encode(None))
        contents.append(buffer.getvalue())
    return contents


@slow
@given(content=mutations(*video_seeds()), ending=st.sampled_from([".mp4", ".avi", ".webm", ".mkv"]))
def test_videos(forked, tmp_path_factory, content, ending):
    folder = fresh(tmp_path_factory.getbasetemp() / "videos")
    (folder / "in").mkdir()
    (folder / "in" / f"a{ending}").write_bytes(content)
    answer = forked("predict", "in", "out", cwd=folder, megabytes=MEGABYTES)
    judge(answer)
    made = {name for name in files(folder) if name != f"in/a{ending}"}
    assert made == {name for name in made if name == "out/a_depth.mp4" or name.startswith("out/a_frames/")}
    assert bool(made) == (answer.returncode == 0 or "cut off" in answer.stdout), answer.stdout
    assert answer.returncode == 0 or f"in/a{ending}" in answer.stdout


def depth_seeds():
    rng = np.random.default_rng(4)
    deep, flat = rng.integers(0, 9999, (240, 320)).astype(np.uint16), rng.integers(0, 256, (240, 320), np.uint8)
    buffers = []
    for pixels in (deep, flat, np.zeros_like(deep)):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        buffers.append(buffer.getvalue())
    return buffers


@bounded
@given(content=mutations(*depth_seeds()))
def test_depth_maps(forked, tmp_path_factory, content):
    folder = fresh(tmp_path_factory.getbasetemp() / "depth")
    for split, rgb, depth in (("Test", "0_colors.png", "0_depth.png"), ("Train/a_out", "1.jpg", "1.png")):
        (folder / "NYU" / split).mkdir(parents=True)
        Image.fromarray(np.zeros((240, 320, 3), np.uint8)).save(folder / "NYU" / split / rgb)
        (folder / "NYU" / split / depth).write_bytes(content)
    before = files(folder)
    answer = forked("preprocess.py", "--dataset_path", "NYU", "--output_path", "out", cwd=folder, megabytes=MEGABYTES)
    judge(answer, ["0_depth.png", "0_colors.png"])
    assert {name.split("/")[0] for name in files(folder) - before} <= {"out"}
    assert not [name for name in files(folder) if "partial" in name]
    answer = forked("tools/check_nyu.py", "NYU", cwd=folder, megabytes=MEGABYTES)
    judge(answer)


TREE_NAMES = [
    "a.jpg",
    "b.JPG",
    "c.gif",
    "d",
    "e_out",
    ".f.jpg",
    "@eaDir",
    "Thumbs.db",
    "a_side.png",
    "g\n[1].png",
    "h\udcff.bmp",
]
tree_entries = st.lists(
    st.tuples(
        st.sampled_from(["file", "file", "folder", "folder", "link", "link", "nowhere", "pipe", "closed"]),
        st.integers(0, 9),
        st.sampled_from(TREE_NAMES),
        st.integers(0, 9),
    ),
    max_size=14,
)


def plant(root, entries):
    """A folder tree of (kind, where, name, where a link leads). The folders that may not be read."""
    places, everything, closed = [root], [root], []
    for kind, parent, name, target in entries:
        path = places[parent % len(places)] / name
        if os.path.lexists(path):
            continue
        if kind == "file":
            path.write_bytes(PICTURES[0])
        elif kind in ("folder", "closed"):
            path.mkdir()
            places.append(path)
            closed += [path] * (kind == "closed")
        elif kind == "pipe":
            os.mkfifo(path)
        else:
            leads = everything[target % len(everything)]
            path.symlink_to("nowhere" if kind == "nowhere" else os.path.relpath(leads, path.parent))
        everything.append(path)
    return closed


@bounded
@given(entries=tree_entries)
def test_folder_trees(forked, tmp_path_factory, entries):
    """Whatever links to what, and whoever may look: it ends, and each thing is taken, named, or litter."""
    folder = fresh(tmp_path_factory.getbasetemp() / "trees")
    (folder / "tree").mkdir()
    closed = plant(folder / "tree", entries)
    answer = forked("predict", "tree", "out", cwd=folder)
    judge(answer, ["tree"])
    assert {name.split("/")[0] for name in files(folder)} <= {"tree", "out"}
    before = os.getcwd()
    for path in closed:
        path.chmod(0)
    os.chdir(folder)
    folder.chmod(0o755)
    if os.geteuid() == 0:
        os.seteuid(65534)
    try:
        found = folders.search("tree", endings=(".jpg", ".png", ".bmp"))
        named = {str(path) for paths in found.left_out.values() for path in paths}
        for place, inner, names in os.walk("tree"):
            inner[:] = [name for name in inner if not folders.is_litter(name)]
            for path in (os.path.join(place, name) for name in names if not folders.is_litter(name)):
                assert path in named | set(map(str, found.files)) or any(text.startswith(path) for text in found.unread)
            for path in (os.path.join(place, name) for name in inner):
                if not os.access(path, os.R_OK | os.X_OK):
                    assert path in named or any(text.startswith(f"{path}: ") for text in found.unread)
        assert len({os.path.realpath(path.parent) + "/" + path.name for path in found.files}) == len(found.files)
    finally:
        os.seteuid(os.getuid())
        os.chdir(before)
        for path in reversed(closed):
            path.chmod(0o755)


def checkpoint_seed(tmp_path):
    arrays = {parameter.name: parameter.asnumpy()[:2] for parameter in FineNet().get_parameters()}
    checkpoint.save(tmp_path / "seed.ckpt", arrays, {"stage": "fine", "step": 3})
    return (tmp_path / "seed.ckpt").read_bytes()


def test_checkpoints(forked, tmp_path):
    @bounded
    @given(content=mutations(checkpoint_seed(tmp_path), checkpoint_seed(tmp_path)[:2000]))
    def one(content):
        (tmp_path / "a.ckpt").write_bytes(content)
        judge(forked("load_checkpoint", "a.ckpt", cwd=tmp_path, megabytes=MEGABYTES), ["a.ckpt"])

    one()


RANK_TABLE = json.dumps(table(2, 2), indent=1).encode()
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["server_list", "device", "rank_id", "device_id", "device_ip", "server_id", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@bounded
@given(content=st.one_of(mutations(RANK_TABLE), json_values.map(lambda value: json.dumps(value).encode())))
def test_rank_tables(forked, tmp_path_factory, content):
    folder = fresh(tmp_path_factory.getbasetemp() / "ranks")
    (folder / "table.json").write_bytes(content)
    answer = forked("tools/rank_table.py", "table.json", cwd=folder, megabytes=MEGABYTES)
    judge(answer, ["table.json"])


def hu_zip(listed):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data/nyu2_train/a_out/1.jpg", encoded("RGB", "JPEG"))
        archive.writestr("data/nyu2_train/a_out/1.png", encoded("L", "PNG"))
        archive.writestr("data/nyu2_test/00000_colors.png", encoded("RGB", "PNG"))
        archive.writestr("data/nyu2_test/00000_depth.png", encoded("I;16", "PNG"))
        if listed:
            archive.writestr("data/nyu2_train.csv", "data/nyu2_train/a_out/1.jpg,data/nyu2_train/a_out/1.png\n")
    return buffer.getvalue()


@bounded
@given(content=mutations(hu_zip(True), hu_zip(False)))
def test_zips(forked, tmp_path_factory, content):
    folder = fresh(tmp_path_factory.getbasetemp() / "zips")
    (folder / "a.zip").write_bytes(content)
    judge(forked("tools/prepare_nyu.py", "out", "--hu", "a.zip", cwd=folder, megabytes=MEGABYTES), ["a.zip"])
    assert {name.split("/")[0] for name in files(folder)} <= {"a.zip", "out"}
    assert not [name for name in files(folder) if "partial" in name]


@bounded
@given(
    text=st.one_of(
        mutations(b"data/nyu2_train/a_out/1.jpg,data/nyu2_train/a_out/1.png\n" * 3),
        st.text(max_size=80).map(lambda text: text.encode("utf-16")),
    )
)
def test_lists(forked, tmp_path_factory, text):
    folder = fresh(tmp_path_factory.getbasetemp() / "lists")
    with zipfile.ZipFile(io.BytesIO(hu_zip(False))) as archive:
        archive.extractall(folder / "hu")
    (folder / "hu" / "data" / "nyu2_train.csv").write_bytes(text)
    before = files(folder)
    judge(forked("tools/prepare_nyu.py", "out", "--hu", "hu", cwd=folder, megabytes=MEGABYTES), ["hu"])
    assert all(name.startswith("out/") for name in files(folder) - before)


def test_packed_sets(forked, nyu, tmp_path):
    packed.pack(nyu, tmp_path / "whole", 2)
    names = ["train_000.mindrecord", "train_000.mindrecord.db", "manifest.json"]
    seeds = {name: (tmp_path / "whole" / name).read_bytes() for name in names}

    @slow
    @given(name=st.sampled_from(names), data=st.data())
    def one(name, data):
        content = data.draw(mutations(seeds[name]))
        if name != "manifest.json" and data.draw(st.booleans()):  # of the size that the manifest says
            content = content[: len(seeds[name])].ljust(len(seeds[name]), b"\0")
        folder = tmp_path / "set"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "whole", folder)
        (folder / name).write_bytes(content)
        answer = forked("read_packed", folder, cwd=tmp_path)
        lines = answer.stderr.splitlines(keepends=True)
        answer.stderr = "".join(line for line in lines if not line.startswith(("[WARNING]", "[ERROR]")))
        judge(answer, [str(folder)])

    one()


@NEEDS_CPP
def test_the_c_program(infer, tiny, tmp_path):
    """Damaged .bin files, under AddressSanitizer and UndefinedBehaviorSanitizer."""
    _, (coarse, fine) = tiny
    good = np.random.default_rng(0).random((1, 3, 228, 304), np.float32)
    not_finite = good.copy()
    not_finite[0, 0, 0] = np.nan

    @slow
    @given(
        content=mutations(good.tobytes(), not_finite.tobytes()), name=st.sampled_from(["a.bin", "b c$.bin", ".x.bin"])
    )
    def one(content, name):
        folder = fresh(tmp_path / "run")
        (folder / "in").mkdir()
        (folder / "in" / name).write_bytes(content)
        good.tofile(folder / "in" / "good.bin")
        result = infer(coarse, fine, folder / "in", folder)
        assert result.returncode in (0, 1), result.stderr
        assert "Sanitizer" not in result.stderr and "runtime error" not in result.stderr
        assert (folder / "result_Files" / "good_0.bin").stat().st_size == 4 * 4070
        assert {path.split("/")[0] for path in files(folder)} == {"in", "result_Files", "time_Result"}

    one()


@NEEDS_CPP
def test_mindir_files(infer, tiny, tmp_path):
    """Damaged models: refused by name, or run."""
    _, (coarse, fine) = tiny
    (tmp_path / "in").mkdir()
    np.random.default_rng(0).random((1, 3, 228, 304), np.float32).tofile(tmp_path / "in" / "a.bin")

    @slow
    @given(content=mutations(coarse.read_bytes()))
    def one(content):
        (tmp_path / "damaged.mindir").write_bytes(content)
        result = infer(tmp_path / "damaged.mindir", fine, tmp_path / "in", tmp_path)
        assert result.returncode in (0, 1, 2), result.stderr[-3000:]
        assert result.returncode != 2 or "damaged.mindir" in result.stderr

    one()
