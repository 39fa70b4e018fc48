"""preprocess.py: what it writes, and that it needs neither MindSpore nor new libraries."""

import os
import pty
import shutil
import sys

import numpy as np
import pytest
from hypothesis import given
from PIL import Image

from src.data import image, listing
from tests.conftest import DEBIAN_12, ROOT, paint
from tests.fuzz import MEGABYTES, bounded, encoded, files, fresh, judge, mutations
from tests.test_commands import one_line


def test_a_preprocessed_folder_of_other_pictures_is_not_mixed_in(nyu, forked, tmp_path):
    other = tmp_path / "NYU" / "Test"
    other.mkdir(parents=True)
    for part in ("colors", "depth"):
        shutil.copy(nyu / "Test" / f"00000_{part}.png", other / f"77777_{part}.png")
    assert forked(f"preprocess.py --dataset_path {other}", cwd=tmp_path).returncode == 0
    assert "77777.bin: of another run" in one_line(forked(f"preprocess.py --dataset_path {nyu}", cwd=tmp_path))
    (tmp_path / "preprocess_Result" / "img_data" / ".partial-0123.bin").write_bytes(b"left by a kill")
    assert forked(f"preprocess.py --dataset_path {other}", cwd=tmp_path).returncode == 0


@pytest.mark.long
def test_preprocess_needs_no_tqdm_on_a_terminal(nyu, bare, tmp_path, monkeypatch):
    screen = []

    def read(descriptor):
        screen.append(os.read(descriptor, 4096))
        return screen[-1]

    monkeypatch.setenv("PYTHONPATH", bare)
    monkeypatch.chdir(tmp_path)
    assert pty.spawn([sys.executable, str(ROOT / "preprocess.py"), "--dataset_path", str(nyu)], read) == 0, screen
    assert b"4 images in preprocess_Result" in b"".join(screen)


def test_a_310_host_has_the_libraries_of_its_distribution(nyu, run, tmp_path):
    """PNG and, under the name of one, JPEG."""
    (tmp_path / "Test").mkdir()
    for pair in listing.list_test(nyu):
        shutil.copy(pair.depth, tmp_path / "Test")
        Image.open(pair.rgb).save(tmp_path / "Test" / pair.rgb.name, "JPEG" if pair.name == "00000" else "PNG")
    for name, before in (("plain", None), ("old", DEBIAN_12)):
        result = run(f"preprocess.py --dataset_path Test --output_path {name}", cwd=tmp_path, before=before)
        assert result.returncode == 0, result.stderr
    for path in tmp_path.glob("plain/*/*.bin"):
        assert path.read_bytes() == (tmp_path / "old" / path.relative_to(tmp_path / "plain")).read_bytes()
    with Image.open(tmp_path / "Test" / "00000_colors.png") as jpeg:  # red is red
        expected = np.asarray(jpeg)[12:468, 16:624].reshape(228, 2, 304, 2, 3).mean((1, 3)) / 255
    found = np.fromfile(tmp_path / "old" / "img_data" / "00000.bin", np.float32).reshape(3, 228, 304)
    np.testing.assert_allclose(found.transpose(1, 2, 0), expected, atol=1e-5)
    result = run("postprocess.py --result_path absent", cwd=tmp_path, before=DEBIAN_12)
    assert "no such folder" in one_line(result)


rng = np.random.default_rng(4)
DEPTH_MAPS = [
    encoded("I;16", "PNG", pixels=rng.integers(0, 9999, (240, 320)).astype(np.uint16)),
    encoded("L", "PNG", pixels=rng.integers(0, 256, (240, 320), np.uint8)),
    encoded("I;16", "PNG", pixels=np.zeros((240, 320), np.uint16)),
]


@bounded
@given(content=mutations(*DEPTH_MAPS))
def test_depth_maps(forked, tmp_path_factory, content):
    folder = fresh(tmp_path_factory.getbasetemp() / "depth")
    for split, rgb, depth in (("Test", "0_colors.png", "0_depth.png"), ("Train/a_out", "1.jpg", "1.png")):
        paint(folder / "NYU" / split / rgb, size=(240, 320))
        (folder / "NYU" / split / depth).write_bytes(content)
    before = files(folder)
    answer = forked("preprocess.py --dataset_path NYU --output_path out", cwd=folder, megabytes=MEGABYTES)
    judge(answer, ["0_depth.png", "0_colors.png"])
    assert {name.split("/")[0] for name in files(folder) - before} <= {"out"}
    assert not [name for name in files(folder) if "partial" in name]
    answer = forked("tools/check_nyu.py NYU", cwd=folder, megabytes=MEGABYTES)
    judge(answer)


def test_the_bin_files_are_the_nets_inputs_and_targets(preprocessed, nyu):
    for pair in listing.list_test(nyu):
        rgb = np.fromfile(preprocessed / "img_data" / f"{pair.name}.bin", np.float32)
        depth_m = np.fromfile(preprocessed / "label" / f"{pair.name}.bin", np.float32)
        np.testing.assert_array_equal(rgb, image.network_rgb(image.load_rgb(pair.rgb)).ravel())
        np.testing.assert_array_equal(depth_m, image.network_depth(image.load_test_depth(pair.depth)).ravel())
    assert len(list((preprocessed / "img_data").iterdir())) == 4
