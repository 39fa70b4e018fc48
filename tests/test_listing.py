"""The pairs of a NYU folder: their order, their partners, what is named as missing or double."""

import hashlib
import os
import shutil

import numpy as np
import pytest

from src.data import listing
from src.data.listing import DataError


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def test_pairs_are_matched_by_name_in_numeric_order(tmp_path):
    for name in ("10.png", "2.png", "1.png", "1.jpg", "10.jpg", "2.jpg"):
        for scene in ("kitchen_2_out", "attic_1_out"):
            touch(tmp_path / "Train" / scene / name)
    pairs = listing.list_train(tmp_path)
    expected = [f"{scene}/{number}" for scene in ("attic_1_out", "kitchen_2_out") for number in (1, 2, 10)]
    assert [pair.name for pair in pairs] == expected
    assert all(pair.rgb.stem == pair.depth.stem and pair.rgb.parent == pair.depth.parent for pair in pairs)
    assert all(pair.rgb.suffix == ".jpg" and pair.depth.suffix == ".png" for pair in pairs)


def test_both_the_folder_and_its_split_are_accepted(nyu):
    assert listing.list_test(nyu) == listing.list_test(nyu / "Test")
    assert [pair.name for pair in listing.list_test(nyu)] == ["00000", "00001", "00002", "00003"]


def test_missing_partners_are_named(nyu, tmp_path):
    folder = shutil.copytree(nyu, tmp_path / "NYU")
    (folder / "Train" / "sample_0001_out" / "2.png").unlink()
    (folder / "Train" / "sample_0002_out" / "3.jpg").unlink()
    (folder / "Test" / "00001_depth.png").unlink()
    with pytest.raises(DataError, match=r"0001_out/2\.jpg has no depth map; .*0002_out/3\.png has no RGB"):
        listing.list_train(folder)
    with pytest.raises(DataError, match=r"00001_colors\.png has no depth map"):
        listing.list_test(folder)


def test_wrong_folders_say_what_was_found_and_expected(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match=r"no Train folder in it \(found: images\); expected NYU/Train/<scene>_out"):
        listing.list_train(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        listing.list_train(tmp_path / "absent")
    (tmp_path / "Train").mkdir()
    with pytest.raises(DataError, match="no image pairs"):
        listing.list_train(tmp_path)
    with pytest.raises(DataError, match=r"NYU: no Test folder in it \(found: nothing\)"):
        (tmp_path / "NYU").mkdir()
        listing.list_test(tmp_path / "NYU")
    for name in "fdbaec":
        (tmp_path / "NYU" / name).touch()
    with pytest.raises(DataError, match=r"no Test folder in it \(found: a, b, c, d, e\); expected"):
        listing.list_test(tmp_path / "NYU")


def test_two_files_of_one_name_are_named(tmp_path):
    for ending in ("jpg", "jpeg", "png"):
        touch(tmp_path / "Train" / "attic_out" / f"1.{ending}")
    with pytest.raises(listing.TwoFiles, match=r"1\.jpg and .*attic_out/1\.jpeg: two files of one name"):
        listing.list_train(tmp_path)


def test_names_are_in_natural_order_numbers_before_words():
    names = ["b", "10", "2", "a/10", "a/2", "a/x", "10/1", "a"]
    assert sorted(names, key=listing._natural_key) == ["2", "10", "10/1", "a", "a/2", "a/10", "a/x", "b"]


@pytest.mark.parametrize(("missing", "more"), [(1, ""), (2, ""), (3, ""), (4, " (and 1 more)"), (5, " (and 2 more)")])
def test_three_missing_partners_are_named_and_the_rest_counted(tmp_path, missing, more):
    for number in range(6):
        touch(tmp_path / "Test" / f"{number}_colors.png")
        if number >= missing:
            touch(tmp_path / "Test" / f"{number}_depth.png")
    with pytest.raises(DataError) as caught:
        listing.list_test(tmp_path)
    assert str(caught.value).count("has no depth map") == min(missing, 3)
    assert str(caught.value).endswith(f"has no depth map{more}")
    rgb, depth, _ = listing.test_files(tmp_path)
    assert [pair.name for pair in listing.matched(rgb, depth)] == [str(number) for number in range(missing, 6)]


def test_a_digest_is_of_the_names_in_their_order():
    assert listing.names_digest(["a", "b"]) == hashlib.sha256(b"a\nb").hexdigest()[:16]
    assert listing.names_digest(["b", "a"]) != listing.names_digest(["a", "b"])
    assert listing.names_digest([os.fsdecode(b"\xff")]) == hashlib.sha256(b"\xff").hexdigest()[:16]


def test_what_is_taken_evenly():
    assert list(listing.evenly(range(10), 3)) == [0, 3, 6]
    assert list(listing.evenly(range(10), 5)) == [0, 2, 4, 6, 8]
    assert len(set(listing.evenly(range(4001), 4000))) == 4000 and len(listing.evenly(range(17), 16)) == 16
    assert set(np.diff(listing.evenly(range(4001), 3000))) == {1, 2}
    assert list(listing.evenly([3, 4], 9)) == [3, 4] and list(listing.evenly([], 2)) == []
