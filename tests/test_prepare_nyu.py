"""tools/prepare_nyu.py on miniature downloads in the layouts that NYU is distributed in."""

import filecmp
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from src import data_loader, image
from src.data_loader import DataError
from tests.conftest import ROOT
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
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, prefix + file.relative_to(folder).as_posix())
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
    source = {
        "zip": lambda: write_zip(tmp_path / "nyu.zip", hu),
        "zip in nyu_data": lambda: write_zip(tmp_path / "nyu.zip", hu, "nyu_data/", **{
            "__MACOSX/nyu_data/data/nyu2_test/00000_colors.png": b"junk", "readme.txt": b""}),
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


def test_links_take_no_space_and_lead_to_the_pictures(hu, nyu, run, tmp_path):
    for _ in range(2):  # the second goes on where nothing is left to do
        result = run("tools/prepare_nyu.py", "NYU", "--hu", hu, "--link", cwd=tmp_path)
        assert result.returncode == 0, result.stdout + result.stderr
        assert "nothing is wrong" in result.stdout
    assert all(path.is_symlink() for path in (tmp_path / "NYU").rglob("*.*g"))
    assert_same_tree(tmp_path / "NYU", nyu)


@pytest.mark.parametrize("name", ["../evil.png", "data/../../nyu2_test/00009_colors.png", "/etc/nyu2_test/1_depth.png",
                                  "..\\nyu2_test\\00009_colors.png", "C:/nyu2_test/00009_colors.png"])
def test_a_zip_that_leaves_the_target_folder_is_refused(hu, run, tmp_path, name):
    path = write_zip(tmp_path / "evil.zip", hu, **{name: b"x"})
    result = run("tools/prepare_nyu.py", "out/NYU", "--hu", path, cwd=tmp_path)
    assert result.returncode == 2 and "leaves the target folder: refused" in result.stderr
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


def test_killed_in_the_middle_and_continued_gives_the_same_tree(tmp_path):
    rng = np.random.default_rng(0)
    scene = tmp_path / "hu" / "data" / "nyu2_train" / "noise_0001_out"
    (tmp_path / "hu" / "data" / "nyu2_test").mkdir(parents=True)
    scene.mkdir(parents=True)
    for number in range(300):  # large files, so that there is a middle to be killed in
        scene.joinpath(f"{number}.jpg").write_bytes(rng.bytes(400_000))
        scene.joinpath(f"{number}.png").write_bytes(rng.bytes(300_000))
    source = write_zip(tmp_path / "a.zip", tmp_path / "hu")
    command = [sys.executable, ROOT / "tools" / "prepare_nyu.py", "NYU", "--hu", source]
    made, done = tmp_path / "NYU" / "Train" / scene.name, 0
    for target in (40, 250):
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
        while process.poll() is None and len(list(made.glob("[0-9]*"))) < target:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        count = len(list(made.glob("[0-9]*")))
        assert done < count < 600, "killed too late to be in the middle"
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


def test_the_labelled_set(labeled, run, tmp_path):
    folder, rgb, depth_m = labeled
    arguments = ["--labeled", folder / "nyu_depth_v2_labeled.mat", "--splits", folder / "splits.mat"]
    result = run("tools/prepare_nyu.py", "NYU", *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    made = tmp_path / "NYU"
    train, test = data_loader.list_train(made), data_loader.list_test(made)
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
    assert run("tools/prepare_nyu.py", "NYU", *arguments, cwd=tmp_path).returncode == 0
    again = {name: (made / name).stat().st_mtime_ns for name in tree(made)}
    assert {name for name in kept if kept[name] != again[name]} == {"Test/00001_colors.png"}


def test_what_is_nearest_stays_measured_in_eight_bits():
    pixels = image.encode_train_depth(np.array([[0, 0.001, 5, 10, 11]], np.float32))
    np.testing.assert_array_equal(pixels, [[0, 1, 128, 255, 255]])
    millimetres = image.encode_test_depth(np.array([[0, 1.2344, 9.9996]]))
    np.testing.assert_array_equal(millimetres, [[0, 1234, 10000]])


def test_wrong_mat_files_are_named(labeled, run, tmp_path):
    folder = labeled[0]
    (tmp_path / "cut.mat").write_bytes((folder / "nyu_depth_v2_labeled.mat").read_bytes()[:100_000])
    savemat(tmp_path / "both.mat", {"trainNdxs": [1, 2], "testNdxs": [2, 3]})
    for mat, splits, text in (
            ("absent.mat", folder / "splits.mat", "absent.mat: no such file"),
            ("cut.mat", folder / "splits.mat", "cut.mat: not a MATLAB 7.3 file, or not all of it"),
            (folder / "nyu_depth_v2_labeled.mat", "both.mat", "both.mat: overlapping splits"),
            (folder / "nyu_depth_v2_labeled.mat", "cut.mat", "no trainNdxs and testNdxs")):
        result = run("tools/prepare_nyu.py", "NYU", "--labeled", mat, "--splits", splits, cwd=tmp_path)
        assert result.returncode == 2 and text in result.stderr, result.stderr
    result = run("tools/prepare_nyu.py", "NYU", "--labeled", "absent.mat", cwd=tmp_path)
    assert result.returncode == 2 and "--splits" in result.stderr
