"""tools/prepare_nyu.py on miniature downloads in the layouts that NYU is distributed in."""

import filecmp
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from src.data import image, listing
from src.data.listing import DataError
from tests.conftest import ROOT, paint
from tests.fuzz import MEGABYTES, bounded, encoded, files, fresh, judge, mutations
from tests.test_commands import one_line
from tools import prepare_nyu


@pytest.fixture(scope="module")
def hu(nyu, tmp_path_factory):
    """The sample set in the layout of Hu's zip: data/nyu2_train, data/nyu2_test and the two lists."""
    data = tmp_path_factory.mktemp("hu") / "data"
    shutil.copytree(nyu / "Train", data / "nyu2_train")
    shutil.copytree(nyu / "Test", data / "nyu2_test")
    train = sorted(path.relative_to(data.parent).as_posix() for path in data.glob("nyu2_train/*/*.jpg"))
    test = sorted(path.relative_to(data.parent).as_posix() for path in data.glob("nyu2_test/*_colors.png"))
    (data / "nyu2_train.csv").write_text("".join(f"{name},{name[:-3]}png\n" for name in train))
    (data / "nyu2_test.csv").write_text("".join(f"{name},{name.replace('colors', 'depth')}\n" for name in test))
    return data.parent


def write_zip(path, folder, prefix="", **more):
    with zipfile.ZipFile(path, "w") as archive:
        for name in sorted(tree(folder)):
            archive.write(folder / name, prefix + name)
        for name, content in more.items():
            archive.writestr(name, content)
    return path


def tree(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def assert_same_tree(made, expected):
    assert tree(made) == tree(expected)
    for name in tree(expected):
        assert filecmp.cmp(made / name, expected / name, shallow=False), name


@pytest.mark.parametrize("layout", ["zip", "zip in nyu_data", "folder", "nyu_data folder", "bare folder", "no lists"])
def test_hu_s_set_in_each_layout(hu, nyu, tmp_path, layout):
    junk = {"__MACOSX/nyu_data/data/nyu2_test/00000_colors.png": b"junk", "readme.txt": b""}
    source = {
        "zip": lambda: write_zip(tmp_path / "nyu.zip", hu),
        "zip in nyu_data": lambda: write_zip(tmp_path / "nyu.zip", hu, "nyu_data/", **junk),
        "folder": lambda: hu,
        "nyu_data folder": lambda: shutil.copytree(hu, tmp_path / "x" / "nyu_data").parent,
        "bare folder": lambda: hu / "data",
        "no lists": lambda: shutil.copytree(hu, tmp_path / "y", ignore=shutil.ignore_patterns("*.csv")),
    }[layout]()
    prepare_nyu.make(prepare_nyu.hu_items(source, link=False), tmp_path / "NYU")
    assert_same_tree(tmp_path / "NYU", nyu)


def test_only_what_the_lists_name_is_taken_and_must_be_there(hu, tmp_path):
    source = shutil.copytree(hu, tmp_path / "hu")
    listed = source / "data" / "nyu2_train.csv"
    lines = listed.read_text().splitlines()
    listed.write_text("\r\n".join(lines[1:]) + "\r\n")
    items = prepare_nyu.hu_items(source, link=False)
    assert len(items) == 2 * (len(lines) - 1) + 8
    (source / lines[2].split(",")[1]).unlink()
    with pytest.raises(DataError, match=r"nyu2_train/.*\.png is in the CSV list but not there"):
        prepare_nyu.hu_items(source, link=False)


def test_links_take_no_space_and_lead_to_the_pictures(hu, nyu, forked, tmp_path):
    for _ in range(2):  # the second goes on where nothing is left to do
        result = forked(f"tools/prepare_nyu.py NYU --hu {hu} --link", cwd=tmp_path)
        assert result.returncode == 0, result.stdout + result.stderr
        assert "nothing is wrong" in result.stdout
    assert all(path.is_symlink() for path in (tmp_path / "NYU").rglob("*.*g"))
    assert_same_tree(tmp_path / "NYU", nyu)


@pytest.mark.parametrize(
    "name",
    [
        "../evil.png",
        "data/../../nyu2_test/00009_colors.png",
        "/etc/nyu2_test/1_depth.png",
        "..\\nyu2_test\\00009_colors.png",
        "C:/nyu2_test/00009_colors.png",
    ],
)
def test_a_zip_that_leaves_the_target_folder_is_refused(hu, forked, tmp_path, name):
    path = write_zip(tmp_path / "evil.zip", hu, **{name: b"x"})
    result = forked(f"tools/prepare_nyu.py out/NYU --hu {path}", cwd=tmp_path)
    assert "leaves the target folder: refused" in one_line(result)
    assert {entry.name for entry in tmp_path.iterdir()} == {"evil.zip"}


def test_wrong_sources_are_named(hu, tmp_path):
    with pytest.raises(DataError, match="no such folder or zip"):
        prepare_nyu.hu_items(tmp_path / "absent", link=False)
    with pytest.raises(DataError, match="no NYU files in it; expected data/nyu2_train"):
        prepare_nyu.hu_items(tmp_path, link=False)
    with pytest.raises(DataError, match="leave out --link"):
        prepare_nyu.hu_items(write_zip(tmp_path / "a.zip", hu), link=True)
    damaged = tmp_path / "a.zip"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 255
    damaged.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.zip: data/.*: Bad CRC-32"):
        prepare_nyu.make(prepare_nyu.hu_items(damaged, link=False), tmp_path / "NYU")


def test_files_of_another_set_are_left_alone(hu, tmp_path):
    other = tmp_path / "NYU" / "Train" / "mine_out" / "1.jpg"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"mine")
    with pytest.raises(DataError, match=r"mine_out/1\.jpg: not of this set"):
        prepare_nyu.make(prepare_nyu.hu_items(hu, link=False), tmp_path / "NYU")
    assert tree(tmp_path / "NYU") == {"Train/mine_out/1.jpg"} and other.read_bytes() == b"mine"


def test_too_small_a_disk_is_said_before_anything_is_written(hu, tmp_path):
    items = [prepare_nyu.Item(item.target, 1 << 50, True, item.make) for item in prepare_nyu.hu_items(hu, link=False)]
    with pytest.raises(DataError, match=r"GB are needed and \d+\.\d GB are free"):
        prepare_nyu.make(items, tmp_path / "NYU")
    assert not tree(tmp_path / "NYU")


@pytest.mark.long
def test_killed_in_the_middle_and_continued_gives_the_same_tree(tmp_path):
    rng = np.random.default_rng(0)
    scene = tmp_path / "hu" / "data" / "nyu2_train" / "noise_0001_out"
    (tmp_path / "hu" / "data" / "nyu2_test").mkdir(parents=True)
    scene.mkdir(parents=True)
    for number in range(200):  # large files, so that there is a middle to be killed in
        scene.joinpath(f"{number}.jpg").write_bytes(rng.bytes(300_000))
        scene.joinpath(f"{number}.png").write_bytes(rng.bytes(200_000))
    source = write_zip(tmp_path / "a.zip", tmp_path / "hu")
    command = [sys.executable, ROOT / "tools" / "prepare_nyu.py", "NYU", "--hu", source]
    made, done = tmp_path / "NYU" / "Train" / scene.name, 0
    for target in (40, 150):
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
        while process.poll() is None and len(list(made.glob("[0-9]*"))) < target:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        count = len(list(made.glob("[0-9]*")))
        assert done < count < 400, "killed too late to be in the middle"
        done = count
    cut_short = next(made.glob("[0-9]*"))
    os.truncate(cut_short, 1000)  # as after a power cut
    (made / ".partial-abc").write_bytes(b"left behind")
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 1 and "broken image" in result.stdout  # noise is no picture, the check says
    assert_same_tree(made, scene)


@pytest.fixture(scope="module")
def labeled(tmp_path_factory):
    """nyu_depth_v2_labeled.mat and splits.mat in miniature, with the true layout; and what is in them."""
    folder = tmp_path_factory.mktemp("labeled")
    rng = np.random.default_rng(3)
    rgb = np.repeat(np.repeat(rng.integers(0, 256, (5, 48, 64, 3), np.uint8), 10, 1), 10, 2)
    depth_m = rng.uniform(0.7, 9.9, (5, 480, 640)).astype(np.float32)
    depth_m[:, 100:120, 200:230] = 0
    depth_m[0, 0, 0] = 0.01  # measured, and nearer than 8 bits can tell from "not measured"
    with h5py.File(folder / "nyu_depth_v2_labeled.mat", "w", userblock_size=512) as file:
        file["images"] = rgb.transpose(0, 3, 2, 1)  # MATLAB's 480x640x3xN, column by column
        file["depths"] = depth_m.transpose(0, 2, 1)
        names = ["kitchen_0004", "office_0003", "bedroom_0001a", "office_0003", "kitchen_0004"]
        scenes = file.create_dataset("scenes", (1, 5), h5py.ref_dtype)
        for index, name in enumerate(names):
            cell = file.create_dataset(f"#refs#/{index}", data=np.array([[ord(c)] for c in name], np.uint16))
            scenes[0, index] = cell.ref
    header = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM"
    with open(folder / "nyu_depth_v2_labeled.mat", "r+b") as file:
        file.write(header)
    savemat(folder / "splits.mat", {"trainNdxs": [[3], [4], [5]], "testNdxs": [[1], [2]]})
    return folder, rgb, depth_m


def test_the_labelled_set(labeled, forked, tmp_path):
    folder, rgb, depth_m = labeled
    arguments = ["--labeled", folder / "nyu_depth_v2_labeled.mat", "--splits", folder / "splits.mat"]
    result = forked("tools/prepare_nyu.py NYU", *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    made = tmp_path / "NYU"
    train, test = listing.list_train(made), listing.list_test(made)
    assert [pair.name for pair in train] == ["bedroom_0001a_out/3", "kitchen_0004_out/5", "office_0003_out/4"]
    assert [pair.name for pair in test] == ["00000", "00001"]
    for index, pair in zip((2, 4, 3), train, strict=True):
        assert np.abs(image.load_rgb(pair.rgb).astype(int) - rgb[index]).mean() < 3  # JPEG
        written = image.load_train_depth(pair.depth)
        assert np.abs(written - depth_m[index]).max() <= 10 / 255 / 2 + 1e-5
        assert ((written > 0) == (depth_m[index] > 0)).all()
    for index, pair in enumerate(test):
        np.testing.assert_array_equal(image.load_rgb(pair.rgb), rgb[index])
        np.testing.assert_allclose(image.load_test_depth(pair.depth), depth_m[index], atol=0.00051)
    kept = {name: (made / name).stat().st_mtime_ns for name in tree(made)}
    (made / "Test" / "00001_colors.png").unlink()
    assert forked("tools/prepare_nyu.py NYU", *arguments, cwd=tmp_path).returncode == 0
    again = {name: (made / name).stat().st_mtime_ns for name in tree(made)}
    assert {name for name in kept if kept[name] != again[name]} == {"Test/00001_colors.png"}


def test_wrong_mat_files_are_named(labeled, forked, tmp_path):
    folder = labeled[0]
    (tmp_path / "cut.mat").write_bytes((folder / "nyu_depth_v2_labeled.mat").read_bytes()[:100_000])
    with h5py.File(tmp_path / "groups.mat", "w") as groups, h5py.File(tmp_path / "numbers.mat", "w") as numbers:
        for name, array in (
            ("images", np.zeros((1, 3, 640, 480), np.uint8)),
            ("depths", np.zeros((1, 640, 480), np.float32)),
            ("scenes", np.zeros((1, 1))),
        ):
            groups.create_group(name)
            numbers[name] = array
    savemat(tmp_path / "both.mat", {"trainNdxs": [1, 2], "testNdxs": [2, 3]})
    for mat, splits, text in (
        ("absent.mat", folder / "splits.mat", "absent.mat: no such file"),
        ("cut.mat", folder / "splits.mat", "cut.mat: not a MATLAB 7.3 file, or not all of it"),
        ("groups.mat", folder / "splits.mat", "groups.mat: no depths, images, scenes in it"),
        ("numbers.mat", folder / "splits.mat", "images of uint8, depths of float32, scenes of float64; expected"),
        (folder / "nyu_depth_v2_labeled.mat", "both.mat", "both.mat: overlapping splits"),
        (folder / "nyu_depth_v2_labeled.mat", "cut.mat", "no trainNdxs and testNdxs"),
    ):
        result = forked("tools/prepare_nyu.py NYU", "--labeled", mat, "--splits", splits, cwd=tmp_path)
        assert result.returncode == 2 and text in result.stderr, result.stderr
    result = forked("tools/prepare_nyu.py NYU --labeled absent.mat", cwd=tmp_path)
    assert result.returncode == 2 and "--splits" in result.stderr


@pytest.fixture(scope="module")
def rooms(nyu):
    """What the other layouts are made of: (scene, number, RGB, metres) of the sample set, of Train and of Test."""
    train = [
        (*pair.name.split("_out/"), image.load_rgb(pair.rgb), image.load_train_depth(pair.depth))
        for pair in listing.list_train(nyu)
    ]
    test = [
        ("official", pair.name, image.load_rgb(pair.rgb), image.load_test_depth(pair.depth))
        for pair in listing.list_test(nyu)
    ]
    return train, test


def assert_same_rooms(made, rooms, name_of_test="{number}"):
    train, test = listing.list_train(made), listing.list_test(made)
    assert [pair.name for pair in train] == [f"{scene}_out/{number}" for scene, number, *_ in rooms[0]]
    assert [pair.name for pair in test] == [name_of_test.format(number=number) for _, number, *_ in rooms[1]]
    for pair, (*_, rgb, depth_m) in zip(train, rooms[0], strict=True):
        assert np.abs(image.load_rgb(pair.rgb).astype(int) - rgb).mean() < 3  # JPEG
        np.testing.assert_allclose(image.load_train_depth(pair.depth), depth_m, atol=10 / 255 / 2 + 1e-5)
    for pair, (*_, depth_m) in zip(test, rooms[1], strict=True):
        np.testing.assert_allclose(image.load_test_depth(pair.depth), depth_m, atol=0.00051)
    return test


def write_fastdepth(folder, rooms):
    for split, part in zip(("train", "val"), rooms, strict=True):
        for scene, number, rgb, depth_m in part:
            path = folder / split / scene / f"{int(number):05d}.h5"
            path.parent.mkdir(parents=True, exist_ok=True)
            with h5py.File(path, "w") as file:
                file["rgb"], file["depth"] = rgb.transpose(2, 0, 1), depth_m.astype(np.float32)


@pytest.mark.parametrize("layout", ["folder", "a tar for each split", "one tar"])
def test_fastdepth_s_set_in_each_layout(rooms, forked, tmp_path, layout):
    write_fastdepth(tmp_path / "nyudepthv2", rooms)
    source = tmp_path / "nyudepthv2"
    if layout == "a tar for each split":  # as sayakpaul/nyu_depth_v2 has them
        (tmp_path / "data").mkdir()
        for split in ("train", "val"):
            with tarfile.open(tmp_path / "data" / f"{split}-000000.tar", "w") as archive:
                archive.add(source / split, split)
        source = tmp_path / "data"
    elif layout == "one tar":
        with tarfile.open(tmp_path / "all.tar", "w") as archive:
            archive.add(source, "nyudepthv2")
        source = tmp_path / "all.tar"
    result = forked("tools/prepare_nyu.py NYU", "--fastdepth", source, cwd=tmp_path)
    assert result.returncode == 0 and "nothing is wrong" in result.stdout, result.stdout + result.stderr
    for pair, (*_, rgb, _) in zip(assert_same_rooms(tmp_path / "NYU", rooms), rooms[1], strict=True):
        if pair.name == rooms[1][0][1]:
            np.testing.assert_array_equal(image.load_rgb(pair.rgb), rgb)


@pytest.mark.parametrize("layout", ["both", "sync itself", "official splits alone"])
def test_bts_s_set_in_each_layout(rooms, forked, tmp_path, layout):
    root = tmp_path / "bts"
    train = root / ("official_splits/train" if layout == "official splits alone" else "sync")
    for folder, part in ((train, rooms[0]), (root / "official_splits" / "test", rooms[1])):
        for scene, number, rgb, depth_m in part:
            paint(folder / scene / f"rgb_{int(number):05d}.jpg", rgb, quality=95, subsampling=0)
            paint(folder / scene / f"sync_depth_{int(number):05d}.png", np.rint(depth_m * 1000).astype(np.uint16))
    (train / "notes.txt").touch()
    (train / rooms[0][0][0] / "sync_depth_dense_00000.png").touch()
    given = root / "sync" if layout == "sync itself" else root
    result = forked("tools/prepare_nyu.py NYU", "--bts", given, cwd=tmp_path)
    assert "sync_depth_dense_00000.png" in result.stdout
    if layout == "sync itself":
        assert result.returncode == 1 and "no Test folder" in result.stdout  # the check says what is not there
        (tmp_path / "NYU" / "Test").mkdir()
        assert [pair.name for pair in listing.list_train(tmp_path / "NYU")] == [
            f"{scene}_out/{number}" for scene, number, *_ in rooms[0]
        ]
    else:
        assert result.returncode == 0 and "nothing is wrong" in result.stdout, result.stdout + result.stderr
        assert_same_rooms(tmp_path / "NYU", rooms, "official_{number}")


def leave_ambiguous_sources(folder, rooms):
    """Archives that end between two members, and sets in which two files would become one."""
    *_, rgb, depth_m = rooms[0][0]
    whole = {"rgb": rgb.transpose(2, 0, 1), "depth": depth_m.astype(np.float32)}

    def write(path, content, **how):
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            for name, array in content.items():
                file.create_dataset(name, data=array, **how) if array is not None else file.create_group(name)

    write(folder / "groups" / "train" / "a" / "00001.h5", {"rgb": None, "depth": None})
    damaged = folder / "damaged" / "train" / "a" / "00001.h5"
    write(damaged, whole, compression="gzip")
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2 - 4000 : len(content) // 2 + 4000] = bytes(8000)
    damaged.write_bytes(content)
    for name in ("00001.h5", "1.h5"):
        write(folder / "twice" / "train" / "a" / name, whole)
    (folder / "two_tars").mkdir()
    for path in (folder / "two_tars" / "a.tar", folder / "two_tars" / "b.tar", folder / "whole.tar"):
        with tarfile.open(path, "w") as archive:
            archive.add(folder / "twice", "")
    content = (folder / "whole.tar").read_bytes()
    with tarfile.open(folder / "whole.tar") as archive:
        end = archive.getmembers()[-1].offset
    (folder / "border.tar").write_bytes(content[:end])
    (folder / "header.tar").write_bytes(content[: end + 100])
    (folder / "two.tar").write_bytes(2 * content)
    for ending in ("jpg", "png"):
        paint(folder / "mixed" / "a" / f"rgb_00001.{ending}", rgb)


def test_a_picture_of_bts_set_that_is_no_jpeg_becomes_one(rooms, forked, tmp_path):
    *_, rgb, depth_m = rooms[0][0]
    paint(tmp_path / "bts" / "a" / "rgb_00001.png", rgb)
    paint(tmp_path / "bts" / "a" / "sync_depth_00001.png", np.rint(depth_m * 1000).astype(np.uint16))
    forked("tools/prepare_nyu.py NYU --bts bts", cwd=tmp_path)
    with Image.open(tmp_path / "NYU" / "Train" / "a_out" / "1.jpg") as made:
        assert made.format == "JPEG"
        assert np.abs(np.asarray(made).astype(int) - rgb).mean() < 3


def test_wrong_sources_of_other_layouts_are_named(rooms, forked, tmp_path):
    (tmp_path / "empty").mkdir()
    write_fastdepth(tmp_path / "cut", rooms)
    cut = next((tmp_path / "cut" / "train").rglob("*.h5"))
    cut.write_bytes(cut.read_bytes()[:5000])
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["rgb"] = np.zeros((480, 640, 3), np.uint8)
    (tmp_path / "other" / "train" / "a").mkdir(parents=True)
    (tmp_path / "other.h5").rename(tmp_path / "other" / "train" / "a" / "00001.h5")
    (tmp_path / "no.tar").write_bytes(b"no archive")
    (tmp_path / "nyudepthv2.tar.gz").write_bytes(b"\x1f\x8b")
    leave_ambiguous_sources(tmp_path, rooms)
    for arguments, text in (
        ("--fastdepth absent", "absent: no such file or folder; expected train/<scene>"),
        ("--fastdepth empty", "empty: no NYU files in it; expected train/<scene>"),
        ("--fastdepth cut", f"{cut.name}: not a whole HDF5 file"),
        ("--fastdepth other", "00001.h5: expected rgb (3, H, W) uint8"),
        ("--fastdepth no.tar", "no.tar: not a whole .tar"),
        ("--fastdepth nyudepthv2.tar.gz", "unpack it first"),
        ("--fastdepth groups", "00001.h5: expected rgb (3, H, W) uint8"),
        ("--fastdepth damaged", "00001.h5: Can't"),
        ("--fastdepth twice", "Train/a_out/1.jpg: two files of the set would become it"),
        ("--fastdepth two_tars", "two files of the set would become it"),
        ("--fastdepth border.tar", "border.tar: cut off, or followed by something else"),
        ("--fastdepth header.tar", "header.tar: cut off, or followed by something else"),
        ("--fastdepth two.tar", "two.tar: cut off, or followed by something else"),
        ("--bts mixed", "Train/a_out/1.jpg: two files of the set would become it"),
        ("--bts absent", "absent: no such file or folder; expected sync/<scene>"),
        ("--bts empty", "empty: no NYU files in it; expected sync/<scene>"),
        ("--bts empty --link", "expected --hu PATH [--link]"),
    ):
        result = forked(f"tools/prepare_nyu.py out_{arguments.replace(' ', '_')} {arguments}", cwd=tmp_path)
        assert result.returncode == 2 and text in result.stderr, (arguments, result.stderr)


def test_the_labelled_set_where_files_cannot_be_locked(labeled, run, tmp_path):
    """As on a network file system without locks: flock answers ENOLCK."""
    if not shutil.which("cc"):
        pytest.skip("no C compiler (on Debian: apt install gcc)")
    code = "#include <errno.h>\nint flock(int fd, int how) { errno = ENOLCK; return -1; }\n"
    (tmp_path / "nolock.c").write_text(code)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", "nolock.so", "nolock.c"], cwd=tmp_path, check=True)
    arguments = ["--labeled", labeled[0] / "nyu_depth_v2_labeled.mat", "--splits", labeled[0] / "splits.mat"]
    result = run("tools/prepare_nyu.py NYU", *arguments, cwd=tmp_path, LD_PRELOAD=str(tmp_path / "nolock.so"))
    assert result.returncode == 0 and "nothing is wrong" in result.stdout, result.stdout + result.stderr


def test_litter_in_hu_s_zip_and_folder_is_no_picture(hu, nyu, tmp_path):
    junk = {"data/nyu2_test/._00000_colors.png": b"x", "data/nyu2_train/@eaDir/1.jpg": b"x"}
    items = prepare_nyu.hu_items(write_zip(tmp_path / "a.zip", hu, **junk), link=False)
    source = shutil.copytree(hu, tmp_path / "hu")
    for name in junk:
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(b"x")
    (source / "data" / "nyu2_test.csv").unlink()
    assert {item.target for item in items} == {item.target for item in prepare_nyu.hu_items(source, link=False)}
    assert len(items) == len(tree(nyu))


PAIR = {
    "data/nyu2_train/a_out/1.jpg": encoded("RGB", "JPEG"),
    "data/nyu2_train/a_out/1.png": encoded("L", "PNG"),
    "data/nyu2_test/00000_colors.png": encoded("RGB", "PNG"),
    "data/nyu2_test/00000_depth.png": encoded("I;16", "PNG"),
}
TRAIN_LIST = "data/nyu2_train/a_out/1.jpg,data/nyu2_train/a_out/1.png\r\n"


def hu_zip(listed=None):
    """The content of Hu's zip with one pair of each split, and with this list of training pairs."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (PAIR | ({"data/nyu2_train.csv": listed} if listed else {})).items():
            archive.writestr(name, content)
    return buffer.getvalue()


def unpack(content, folder):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        archive.extractall(folder)
    return folder


@pytest.mark.parametrize("listed", [TRAIN_LIST.encode("utf-16"), TRAIN_LIST.replace("/", "\\"), TRAIN_LIST])
def test_lists_of_windows_and_a_list_for_one_split_only(tmp_path, listed):
    (tmp_path / "a.zip").write_bytes(hu_zip(listed))
    for source in (tmp_path / "a.zip", unpack(hu_zip(listed), tmp_path / "a")):
        assert len(prepare_nyu.hu_items(source, link=False)) == 4  # Test has no list: all of it


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        (b"\x80\x81\xff", "not a text in UTF-8 or UTF-16"),
        (b"nothing,here\n", "names no NYU file"),
        (b"0" * (33 << 20), "a list of 34,603,008 bytes: refused"),
    ],
)
def test_lists_that_cannot_be_right_are_named(forked, tmp_path, listed, message):
    (tmp_path / "a.zip").write_bytes(hu_zip(listed))
    line = one_line(forked("tools/prepare_nyu.py out --hu a.zip", cwd=tmp_path))
    assert "nyu2_train.csv" in line and message in line and not (tmp_path / "out").exists()


def test_damaged_zips_are_named(forked, tmp_path):
    whole = hu_zip()
    (tmp_path / "half.zip").write_bytes(whole[: len(whole) // 2])
    line = one_line(forked("tools/prepare_nyu.py out --hu half.zip", cwd=tmp_path))
    assert "half.zip: not a whole zip: download it again" in line
    method = bytearray(whole)
    method[method.index(b"PK\x01\x02") + 10] = 99  # a method of compression that nobody has
    (tmp_path / "method.zip").write_bytes(method)
    line = one_line(forked("tools/prepare_nyu.py out --hu method.zip", cwd=tmp_path))
    assert "method.zip: data/nyu2_" in line


def test_a_cut_file_of_the_labelled_set_is_made_again(tmp_path):
    target, content = prepare_nyu.PurePosixPath("Test/00000_colors.png"), encoded("RGB", "PNG")
    item = prepare_nyu.Item(target, 999, False, lambda path: path.write_bytes(content))
    prepare_nyu.make([item], tmp_path)
    assert item.is_done(tmp_path)
    os.truncate(tmp_path / target, 20)
    prepare_nyu.make([item], tmp_path)
    assert (tmp_path / target).read_bytes() == content


@bounded
@given(content=mutations(hu_zip(TRAIN_LIST), hu_zip()))
def test_zips(forked, tmp_path_factory, content):
    folder = fresh(tmp_path_factory.getbasetemp() / "zips")
    (folder / "a.zip").write_bytes(content)
    judge(forked("tools/prepare_nyu.py out --hu a.zip", cwd=folder, megabytes=MEGABYTES), ["a.zip"])
    assert {name.split("/")[0] for name in files(folder)} <= {"a.zip", "out"}
    assert not [name for name in files(folder) if "partial" in name]


@bounded
@given(text=mutations(TRAIN_LIST.encode() * 3) | st.text(max_size=80).map(lambda text: text.encode("utf-16")))
def test_lists(forked, tmp_path_factory, text):
    folder = fresh(tmp_path_factory.getbasetemp() / "lists")
    (unpack(hu_zip(), folder / "hu") / "data" / "nyu2_train.csv").write_bytes(text)
    before = files(folder)
    judge(forked("tools/prepare_nyu.py out --hu hu", cwd=folder, megabytes=MEGABYTES), ["hu"])
    assert all(name.startswith("out/") for name in files(folder) - before)
