"""tools/check_nyu.py on a good folder, and on copies that are damaged in every way that it looks for."""

import json
import shutil

import cv2
import numpy as np
import pytest
from PIL import Image

from src.data import image
from tests.conftest import paint
from tests.test_commands import one_line
from tools import check_nyu


def test_a_good_folder_is_described(nyu, run, tmp_path):
    result = run(f"tools/check_nyu.py {nyu} --output_dir report", cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "nothing is wrong" in result.stdout
    found = json.loads((tmp_path / "report" / "check.json").read_text())
    assert found["Train"] | {"depth_m": 0} == {
        "pairs": 8,
        "good_pairs": 8,
        "scenes": 2,
        "sizes": {"480x640": 8},
        "depth_bits": 8,
        "depth_m": 0,
        "unmeasured_share": 0.0,
        "problems": [],
    }
    depths = [image.load_test_depth(path) for path in (nyu / "Test").glob("*_depth.png")]
    assert found["Test"]["depth_m"] == pytest.approx([np.min(depths), np.max(depths)], abs=1e-3)
    assert cv2.imread(str(tmp_path / "report" / "check.png")).shape[1] > 800


RGB, DEPTH, TEST_RGB, TEST_DEPTH = (
    "Train/sample_0001_out/2.jpg",
    "Train/sample_0001_out/2.png",
    "Test/00001_colors.png",
    "Test/00001_depth.png",
)


def redrawn(name, change):
    """A damage: the picture of this name, with its pixels changed."""
    return lambda folder: paint(folder / name, change(np.asarray(Image.open(folder / name))))


def copied(source, name, **options):
    """A damage: one picture of the set in the place of another."""
    return lambda folder: Image.open(folder / source).save(folder / name, **options)


def cut(share, end=b""):
    """A damage: a JPEG that ends early."""

    def damage(folder):
        content = (folder / RGB).read_bytes()
        (folder / RGB).write_bytes(content[: int(len(content) * share)] + end)

    return damage


@pytest.mark.long
@pytest.mark.parametrize(
    ("damage", "split", "kind", "text"),
    [
        (redrawn(DEPTH, lambda p: p.astype(np.uint16) * 39), "Train", "bit depth", "/2.png: 16-bit grey, expected 8"),
        (redrawn(TEST_DEPTH, lambda p: (p / 39).astype(np.uint8)), "Test", "bit depth", "8-bit grey, expected 16-bit"),
        (redrawn(TEST_DEPTH, lambda p: p // 40), "Test", "unit", "00001_depth.png: 16-bit, but no pixel is over 255"),
        (redrawn(TEST_DEPTH, lambda p: p // 40 * 257), "Test", "unit", "every pixel is a multiple of 257"),
        (cut(0.1), "Train", "broken file", "0001_out/2.jpg: broken image"),
        (cut(0.5, b"\xff\xd9"), "Train", "broken file", "rows are of one colour"),
        (redrawn(RGB, lambda p: p[:, :600]), "Train", "size", "2.jpg is 480x600 but"),
        (redrawn(DEPTH, np.zeros_like), "Train", "no depth", "0001_out/2.png: no measured pixel"),
        (copied(RGB, TEST_RGB), "Test", "duplicate", "00001_colors.png is the picture"),
        (copied(TEST_RGB, RGB, quality=70), "Test", "duplicate", "00001_colors.png is the picture"),
        (copied(RGB, RGB[:-3] + "jpeg"), "Train", "two files", "2.jpg and"),
        (lambda folder: (folder / TEST_DEPTH).unlink(), "Test", "missing partner", "00001_colors.png has"),
        (lambda folder: shutil.rmtree(folder / "Train"), "Train", "missing folder", "no Train folder in it (found: T"),
    ],
)
def test_each_kind_of_damage_is_named(nyu, tmp_path, damage, split, kind, text):
    folder = shutil.copytree(nyu, tmp_path / "NYU")
    damage(folder)
    splits = check_nyu.check(folder, 2)
    ((found_kind, found_text),) = splits[split].problems
    assert found_kind == kind and text in found_text
    assert not splits["Test" if split == "Train" else "Train"].problems
    assert check_nyu.present(splits, tmp_path / "report") == 1
    assert f"! {kind}" in check_nyu.table(splits)


def test_no_such_folder_is_the_user_s_mistake(forked, tmp_path):
    assert "absent: no such folder" in one_line(forked("tools/check_nyu.py absent", cwd=tmp_path))


@pytest.mark.long
def test_holes_are_counted(nyu, tmp_path):
    folder = shutil.copytree(nyu, tmp_path / "NYU")
    for path in (folder / "Train").glob("*/*.png"):
        pixels = np.asarray(Image.open(path)).copy()
        pixels[:120] = 0
        paint(path, pixels)
    assert check_nyu.check(folder, 2)["Train"].summary()["unmeasured_share"] == 0.25
