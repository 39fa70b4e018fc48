"""Listing, the schedule of samples, augmentation, and that nothing depends on the number of workers."""

import ctypes
import hashlib
import os
import re
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy import ndimage

from src import data_loader
from src.data import augmentation, image, listing, plain, sampling
from src.data.listing import DataError
from src.data.plain import PlainPairs
from src.data.sampling import Schedule
from src.data_loader import TrainingData
from src.scoring import baselines
from src.training import log, options, run_folder, stage, trainer
from tests.tiny import NOBODY_STOPS, TinyCoarse


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def test_pairs_are_matched_by_name_in_numeric_order(tmp_path):
    for scene in ("kitchen_2_out", "attic_1_out"):
        for number in ("10", "2", "1"):
            touch(tmp_path / "Train" / scene / f"{number}.png")
        for number in ("1", "10", "2"):
            touch(tmp_path / "Train" / scene / f"{number}.jpg")
    pairs = listing.list_train(tmp_path)
    assert [pair.name for pair in pairs] == [
        f"{scene}/{number}" for scene in ("attic_1_out", "kitchen_2_out") for number in (1, 2, 10)
    ]
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


def test_the_digest_of_the_data_changes_with_any_file(nyu, tmp_path):
    folder = shutil.copytree(nyu, tmp_path / "NYU")
    before = PlainPairs(folder).data_digest()
    assert before == PlainPairs(folder).data_digest()
    for name in ("sample_0002_out/3.jpg", "sample_0002_out/3.png"):
        path = folder / "Train" / name
        status = path.stat()
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        assert PlainPairs(folder).data_digest() != before
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert PlainPairs(folder).data_digest() == before


def test_test_pairs_come_in_batches_as_they_are_alone(nyu):
    pairs = data_loader.readable_test_pairs(nyu, 2)
    assert pairs == listing.list_test(nyu)
    batches = list(data_loader.test_batches(pairs, 3, 2))
    assert [[pair.name for pair in chunk] for chunk, _, _ in batches] == [["00000", "00001", "00002"], ["00003"]]
    for chunk, rgb, depths_m in batches:
        for pair, one_rgb, depth_m in zip(chunk, rgb, depths_m, strict=True):
            np.testing.assert_array_equal(one_rgb, image.network_rgb(image.load_rgb(pair.rgb)))
            np.testing.assert_array_equal(depth_m, image.load_test_depth(pair.depth))


def test_what_is_broken_is_known_before_a_run(nyu, tmp_path):
    folder = shutil.copytree(nyu, tmp_path / "NYU")
    (folder / "Test" / "00002_depth.png").write_bytes(b"no picture")
    with pytest.raises(image.ImageError, match=r"00002_depth\.png: broken image"):
        data_loader.readable_test_pairs(folder, 2)


@pytest.mark.parametrize("depth", [None, 1])
def test_so_many_batches_are_made_ahead(depth):
    asked = []

    def batches():
        for number in range(9):
            asked.append(number)
            yield number, [(pow, number, 2), (pow, number, 3)]

    with ThreadPoolExecutor(2) as pool:
        for number, found in data_loader._ahead(pool, batches(), *[] if depth is None else [depth]):
            assert found == [number**2, number**3]
            assert asked[-1] == min(number + (depth or 2), 8)


def test_what_nobody_waits_for_is_not_begun():
    """A consumer that stops leaves neither calls nor batches to be made."""
    made, hold = [], threading.Event()

    def make(number):
        made.append(number)
        return hold.wait(60) if number == 1 else number

    with ThreadPoolExecutor(1) as pool:
        batches = data_loader._ahead(pool, ((number, [(make, number)]) for number in range(9)))
        assert next(batches) == (0, [0])
        batches.close()
        hold.set()
    assert made in ([0], [0, 1])


def test_samples_are_those_that_are_asked_for(nyu, tmp_path):
    folder = shutil.copytree(nyu, tmp_path / "NYU")
    (folder / "Train" / "sample_0001_out" / "2.jpg").write_bytes(b"no picture")
    source = PlainPairs(folder)
    with pytest.raises(image.ImageError, match=r"2\.jpg: broken image"):
        list(source.samples([5, 1, 0], 2, False))
    found = list(source.samples([5, 1, 0], 2, skip_bad=True))
    assert [index for index, _, _ in found] == [5, 0]
    for index, rgb, depth_m in found:
        pair = source.pairs[index]
        np.testing.assert_array_equal(rgb, image.network_pixels(image.load_rgb(pair.rgb)))
        metres = image.network_depth(image.load_train_depth(pair.depth))[0]
        np.testing.assert_allclose(depth_m, metres, rtol=1e-6)
        for ours, theirs in zip(source.load(index), (rgb, depth_m), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_shards_are_disjoint_equal_and_complete_over_three_epochs():
    samples, ranks, batch = 50, 4, 3
    shards = [Schedule(samples, batch, seed=7, rank=rank, ranks=ranks) for rank in range(ranks)]
    steps = shards[0].steps_per_epoch
    assert steps == 4
    assert all(len(shard.shard(epoch)) == steps * batch for shard in shards for epoch in range(3))
    orders = []
    for epoch in range(3):
        seen = [index for shard in shards for step in range(steps) for index in shard.batch(epoch * steps + step)[1]]
        assert len(seen) == len(set(seen)) == steps * batch * ranks
        orders.append(tuple(seen))
    assert len(set(orders)) == 3
    assert len(set(sum(orders, ()))) == samples  # what one epoch drops, another sees


def test_two_ranks_together_see_the_batch_of_one_with_twice_the_size():
    single = Schedule(40, 8, seed=3)
    double = [Schedule(40, 4, seed=3, rank=rank, ranks=2) for rank in range(2)]
    for step in range(12):
        together = np.concatenate([shard.batch(step)[1] for shard in double])
        assert sorted(together) == sorted(single.batch(step)[1])


def test_the_order_of_an_epoch_is_drawn_once():
    """Also while the end of one is loaded beside the beginning of the next."""
    sampling._permutation.cache_clear()
    schedule = Schedule(50, 5, seed=1)
    for step in (7, 8, 9, 10, 9, 11):
        schedule.batch(step)
    assert sampling._permutation.cache_info().misses == 2


def test_a_dataset_smaller_than_a_batch_says_so():
    with pytest.raises(DataError, match=r"8 training pairs do not fill a batch of 9: use a smaller --batch_size"):
        Schedule(8, 9, seed=0)
    assert Schedule(8, 8, seed=0).steps_per_epoch == 1
    with pytest.raises(DataError, match=r"do not fill a batch of 3 on each of 2 devices: use"):
        Schedule(5, 3, seed=0, ranks=2)


def batches(nyu, workers, first=0, last=5, units=0):
    data = TrainingData(PlainPairs(nyu), Schedule(8, 3, seed=5), workers, units, 0.25)
    return list(data.batches(first, last))


def test_workers_and_starting_point_change_nothing(nyu):
    reference = batches(nyu, workers=1)
    for other in (batches(nyu, workers=4), batches(nyu, 2, 0, 2) + batches(nyu, 2, 2, 5)):
        assert len(other) == 5
        for ours, theirs in zip(reference, other, strict=True):
            for a, b in zip(ours, theirs, strict=True):
                np.testing.assert_array_equal(a, b)


def test_batches_have_the_shapes_and_ranges_of_the_nets(nyu):
    rgb, depth_m, kept = batches(nyu, 2, 0, 1, units=4096)[0]
    assert rgb.shape == (3, 3, 228, 304) and depth_m.shape == (3, 1, 55, 74) and kept.shape == (3, 4096)
    assert rgb.dtype == np.uint8 and depth_m.dtype == kept.dtype == np.float32
    assert rgb.max() > 50 and depth_m.min() > 0.1 and depth_m.max() < 10
    assert np.array_equal(np.unique(kept), [0, 1]) and abs(kept.mean() - 0.75) < 0.03
    _, _, kept = next(TrainingData(PlainPairs(nyu), Schedule(8, 3, seed=5), dropout_units=7).batches(0, 1))
    assert kept.shape == (3, 7) and (kept == 1).all()


def test_the_files_of_a_step_are_those_it_was_fed(nyu):
    data = TrainingData(PlainPairs(nyu), Schedule(8, 3, seed=5), 1)
    _, depth_m = next(data.batches(1, 2))
    for path, fed in zip(data.files(1), depth_m, strict=True):
        target = image.network_depth(image.load_train_depth(path.with_suffix(".png")))
        assert np.allclose(fed, target, rtol=1e-6) or np.allclose(fed, target[..., ::-1], rtol=1e-6)


class Choices:
    """A generator that gives back chosen numbers."""

    def __init__(self, flip, brightness, sharpness):
        self.flip, self.factors = flip, [brightness, sharpness]

    def random(self):
        return 0.0 if self.flip else 1.0

    def uniform(self, low, high):
        value = self.factors.pop(0)
        assert low <= value <= high
        return value


@pytest.mark.parametrize(("flip", "brightness", "sharpness"), [(False, 1.0, 1.0), (True, 0.85, 0.8), (False, 0.9, 1.2)])
def test_augmentation_is_that_of_pillow(flip, brightness, sharpness):
    rng = np.random.default_rng(0)
    rgb = cv2.GaussianBlur(rng.integers(0, 256, (228, 304, 3), np.uint8), (5, 5), 0)
    depth_m = rng.uniform(1, 9, (55, 74)).astype(np.float32)
    ours, ours_m = np.empty((3, 228, 304), np.uint8), np.empty((1, 55, 74), np.float32)
    augmentation.augment(rgb, depth_m, Choices(flip, brightness, sharpness), ours, ours_m)
    pillow = ImageEnhance.Brightness(Image.fromarray(rgb)).enhance(brightness)
    pillow = np.asarray(ImageEnhance.Sharpness(pillow).enhance(sharpness)).astype(int)
    smooth = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    exact = rgb * brightness
    exact = sharpness * exact + (1 - sharpness) * ndimage.convolve(exact, smooth[..., None], mode="nearest")
    if flip:
        pillow, exact, depth_m = pillow[:, ::-1], exact[:, ::-1], depth_m[:, ::-1]
    inner = (slice(None), slice(1, -1), slice(1, -1))  # Pillow leaves the border unsmoothed
    assert np.abs(ours - pillow.transpose(2, 0, 1))[inner].max() <= 2  # it rounds down, and between the steps
    assert np.abs(ours - exact.clip(0, 255).transpose(2, 0, 1)).max() < 0.65
    np.testing.assert_array_equal(ours_m, depth_m[None])


class PaperChoices(Choices):
    """The same for the paper's augmentation: scale, angle in degrees, place."""

    def __init__(self, flip, scale, degrees, place):
        self.flip, self.factors = flip, [scale, degrees, np.array(place), np.ones(3)]

    def uniform(self, low, high, size=None):
        value = self.factors.pop(0)
        assert np.shape(value) == (() if size is None else (size,)) and np.all((low <= value) & (value <= high))
        return value


@pytest.mark.parametrize(
    ("flip", "scale", "degrees", "place"),
    [
        (False, 1.0, 0.0, (0, 0)),
        (False, 1.0, 0.0, (1, 1)),
        (False, 1.0, 0.0, (-1, 0.5)),
        (True, 1.0, 0.0, (1, -1)),
        (False, 1.5, 0.0, (1, -1)),
        (True, 1.25, 5.0, (0.5, 1)),
        (False, 1.0, -5.0, (1, -1)),
    ],
)
def test_the_paper_s_augmentation_is_an_affine_map(flip, scale, degrees, place):
    """Against SciPy's interpolation at the places that the paper's words give."""
    rng = np.random.default_rng(0)
    rgb = cv2.normalize(cv2.GaussianBlur(rng.random((240, 320, 3)), (15, 15), 0), None, 0, 255, cv2.NORM_MINMAX)
    rgb, pixels = rgb.astype(np.uint8), cv2.GaussianBlur(rng.integers(1, 256, (240, 320), np.uint8), (31, 31), 0)
    ours, ours_m = np.empty((3, 228, 304), np.uint8), np.empty((1, 55, 74), np.float32)
    augmentation.augment_as_paper(rgb, pixels, PaperChoices(flip, scale, degrees, place), ours, ours_m)
    angle = np.deg2rad(degrees)
    extent = [
        (304 * abs(np.cos(angle)) + 228 * abs(np.sin(angle))) / scale,
        (304 * abs(np.sin(angle)) + 228 * abs(np.cos(angle))) / scale,
    ]
    centre = [
        whole / 2 + max(whole - part, 0) / 2 * where
        for whole, part, where in zip((320, 240), extent, place, strict=True)
    ]

    def at(array, rows, columns, mode):
        """The array where the window has its cells, as many as it is given."""
        y, x = np.mgrid[:rows, :columns]
        x, y = ((x + 0.5) / columns - 0.5) * 304 / scale, ((y + 0.5) / rows - 0.5) * 228 / scale
        x = -x if flip else x
        place = (
            centre[1] + np.sin(angle) * x + np.cos(angle) * y - 0.5,
            centre[0] + np.cos(angle) * x - np.sin(angle) * y - 0.5,
        )
        return ndimage.map_coordinates(array.astype(float), place, order=1, mode=mode)

    for channel in range(3):
        assert np.abs(ours[channel] - at(rgb[..., channel], 228, 304, "mirror")).max() < 1.5
    inside = at(np.ones((240, 320)), 55, 74, "grid-constant") > 0.999
    assert inside.mean() > (0.9 if degrees else 0.999)
    depth_m = at(pixels, 55, 74, "nearest") / 25.5 / scale
    assert np.abs(ours_m[0] - depth_m)[inside].max() < 0.02
    pixels[::7], pixels[60:150, 100:180] = 1, 0  # the least depth; and a hole
    augmentation.augment_as_paper(rgb, pixels, PaperChoices(flip, scale, degrees, place), ours, ours_m)
    weight = at(pixels > 0, 55, 74, "grid-constant")
    depth_m = at(pixels, 55, 74, "grid-constant") / weight.clip(0.5) / 25.5 / scale
    known, seen = abs(weight - 0.5) > 0.03, weight > 0.5
    assert 300 < (known & ~seen).sum() < 2000 and (~known).sum() < 100
    assert (ours_m[0][known & ~seen] == 0).all()
    assert np.abs(ours_m[0] - depth_m)[known & seen].max() < 0.2


def test_the_paper_s_random_choices_have_its_ranges_and_shares():
    """Section 3.4's, read back from what becomes of a grey picture and of depth that grows from left to right."""
    rgb, growth = np.full((240, 320, 3), 100, np.uint8), 200 / 320
    pixels = np.tile(np.rint(20.5 + growth * np.arange(320)).astype(np.uint8), (240, 1))
    rows, columns = np.mgrid[:55, :74]
    v, u = ((rows + 0.5) / 55 - 0.5) * 228, ((columns + 0.5) / 74 - 0.5) * 304
    found, colours = [], []
    ours, ours_m = np.empty((3, 228, 304), np.uint8), np.empty((1, 55, 74), np.float32)
    for sample in range(1000):
        augmentation.augment_as_paper(rgb, pixels, sampling.counter_rng(3, 0, sample), ours, ours_m)
        colours.append(ours[:, 0, 0] / 100)
        seen = ours_m[0] > 0
        across, down, middle = np.linalg.lstsq(
            np.column_stack([u[seen], v[seen], np.ones(seen.sum())]), ours_m[0][seen] * 25.5, rcond=None
        )[0]
        scale = np.sqrt(growth / np.hypot(across, down))
        angle = np.arctan(-down / abs(across))
        room = max(320 - (304 * np.cos(angle) + 228 * abs(np.sin(angle))) / scale, 0)
        place = ((middle * scale - 20.5) / growth + 0.5 - 160) / (room / 2) if room > 5 else 0
        found.append((across < 0, scale, np.rad2deg(angle), place))
    flips, scales, degrees, places = np.transpose(found)
    assert abs(flips.mean() - 0.5) < 0.05
    for values, low, high, near in (
        (scales, 1, 1.5, 0.01),
        (degrees, -5, 5, 0.1),
        (places, -1, 1, 0.05),
        (np.ravel(colours), 0.8, 1.2, 0.01),
    ):
        assert abs(values.min() - low) < near and abs(values.max() - high) < near
        assert abs(values.mean() - (low + high) / 2) < 0.05 * (high - low)
    assert np.corrcoef(np.transpose(colours))[0, 1] < 0.1  # each channel by its own factor


def test_random_choices_have_their_ranges_and_shares():
    flips, brightness, sharpness = [], [], []
    for sample in range(2000):
        rng = sampling.counter_rng(0, 1, sample)
        flips.append(rng.random() < 0.5)
        brightness.append(rng.uniform(*augmentation.BRIGHTNESS))
        sharpness.append(rng.uniform(*augmentation.SHARPNESS))
    assert abs(np.mean(flips) - 0.5) < 0.04
    assert 0.8 <= min(brightness) < 0.81 and 0.99 < max(brightness) <= 1.0
    assert 0.8 <= min(sharpness) < 0.81 and 1.19 < max(sharpness) <= 1.2
    for seed, epoch, sample in ((0, 0, None), (7, 3, 5), (2**63, 1, 0)):  # what a run drew is the same in every version
        bits = np.random.Philox(key=seed + (0 if sample is None else sample + 1 << 64), counter=epoch << 192)
        assert sampling.counter_rng(seed, epoch, sample).random() == np.random.Generator(bits).random()
    assert sampling.counter_rng(0, 1, 2).random() != sampling.counter_rng(0, 2, 2).random()
    assert len({sampling.counter_rng(0, 1, sample).random() for sample in (None, 0, 1, 2)}) == 4
    assert sampling.counter_rng(0, 1, 2).random() != sampling.counter_rng(1, 1, 2).random()


def test_a_broken_training_image_is_named_while_feeding(nyu, tmp_path):
    folder = shutil.copytree(nyu, tmp_path / "NYU")
    broken = folder / "Train" / "sample_0001_out" / "3.jpg"
    broken.write_bytes(broken.read_bytes()[:2000])
    with pytest.raises(image.ImageError, match=r"sample_0001_out/3\.jpg: broken image"):
        batches(folder, 2, 0, 12)  # six epochs: each drops two of the eight


def test_mean_log_depth_is_the_mean_over_measured_pixels(nyu):
    source = PlainPairs(nyu)
    targets = np.stack([image.network_depth(image.load_train_depth(pair.depth))[0] for pair in source.pairs])
    mean = baselines.mean_log_depth(source.depth_maps(range(8), 2, False))
    np.testing.assert_allclose(mean[0], np.log(targets.astype(np.float64)).mean(0), rtol=1e-5)
    holes = targets.copy()
    holes[0, :9], holes[1:, 9], holes[:, 10] = 0, 0, 0
    mean = baselines.mean_log_depth(holes)
    np.testing.assert_allclose(mean[0, :9], np.log(targets[1:, :9].astype(np.float64)).mean(0), rtol=1e-5)
    np.testing.assert_allclose(mean[0, 9], np.log(targets[0, 9]), rtol=1e-5)  # of the one that has it
    assert (mean[0, 10] == 0).all()


def break_picture(path):
    path.write_bytes(path.read_bytes()[:200])


def break_pictures(folder, count):
    for path in sorted((folder / "Train").glob("*/*.jpg"))[:count]:
        break_picture(path)


@pytest.fixture(scope="module")
def hundred(tmp_path_factory):
    """120 small pairs in one scene; pair n has depth pixels 1 + 2 n."""
    folder = tmp_path_factory.mktemp("hundred") / "NYU"
    scene = folder / "Train" / "one_out"
    scene.mkdir(parents=True)
    for number in range(120):
        rgb = np.full((240, 320, 3), 2 * number, np.uint8)
        Image.fromarray(rgb).save(scene / f"{number}.jpg")
        Image.fromarray(np.full((240, 320), 1 + 2 * number, np.uint8)).save(scene / f"{number}.png")
    return folder


def fed_samples(folder, rank=0, ranks=1, first=0, last=None, skip_bad=True):
    """The sample numbers of each batch, read back from the depth."""
    source = PlainPairs(folder)
    schedule = Schedule(len(source.names), 4, seed=2, rank=rank, ranks=ranks)
    data = TrainingData(source, schedule, 3, skip_bad=skip_bad)
    batches = list(data.batches(first, schedule.steps_per_epoch * 2 if last is None else last))
    return np.array([np.round((depth_m[:, 0, 0, 0] * 25.5 - 1) / 2) for _, depth_m in batches]).astype(int)


def test_a_bad_sample_is_replaced_by_another_of_the_same_shard(hundred, tmp_path, caplog):
    folder = shutil.copytree(hundred, tmp_path / "NYU")
    broken = 7
    (folder / "Train" / "one_out" / f"{broken}.jpg").write_bytes(b"\xff\xd8 not a picture")
    for rank in range(2):
        caplog.clear()
        good = fed_samples(hundred, rank, 2)
        fed = fed_samples(folder, rank, 2)
        assert fed.shape == good.shape == (30, 4)
        changed = np.argwhere(fed != good)
        assert (good[fed != good] == broken).all() and broken not in fed
        for step, place in changed:  # by the next of this rank's shard in this epoch
            shard = good[step // 15 * 15 :][:15].ravel()
            assert fed[step, place] == shard[(np.flatnonzero(shard == broken)[0] + 1) % 60]
        assert len(changed) == (good == broken).sum()
        assert [record.getMessage().count("7.jpg") for record in caplog.records] == [1] * bool(len(changed))
        again = fed_samples(folder, rank, 2, first=9, last=21)
        np.testing.assert_array_equal(again, fed[9:21])  # the same replacements after a resume


def test_one_percent_of_bad_samples_is_borne(hundred, tmp_path):
    folder = shutil.copytree(hundred, tmp_path / "NYU")
    break_pictures(folder, 1)  # 0.jpg, the first by name too
    data = TrainingData(PlainPairs(folder), Schedule(100, 4, seed=2), 3, skip_bad=True)
    assert len(list(data.batches(0, 25))) == 25 and data.bad == {0}


@pytest.mark.long
def test_one_bad_sample_is_borne_by_a_small_set_too(nyu, fine_stage, forked, tmp_path):
    folder = shutil.copytree(nyu, tmp_path / "NYU")
    pairs = PlainPairs(folder).pairs
    break_picture(pairs[3].rgb)
    arguments = ["--data_url", "NYU", *fine_stage, "--batch_size", 4, "--max_steps", 2, "--bad_samples", "skip"]
    result = forked("train.py", *arguments, cwd=tmp_path)
    assert result.returncode == 0 and "bad samples: 1" in result.stdout, result.stderr
    break_picture(pairs[5].rgb)
    result = forked("train.py", *arguments, "--overwrite", cwd=tmp_path)
    assert result.returncode == 2 and "2 of 8 samples are bad, at most 1 may be; the last: " in result.stderr


def test_a_shard_of_bad_samples_alone_ends(nyu, tmp_path):
    """There is no other to take."""
    folder = shutil.copytree(nyu, tmp_path / "NYU")
    for path in (folder / "Train").glob("*/*.jpg"):
        break_picture(path)
    data = TrainingData(PlainPairs(folder), Schedule(8, 1, seed=0, rank=0, ranks=8), 1, skip_bad=True)
    with pytest.raises(DataError, match="1 of 8 samples are bad, at most 0 may be"):
        list(data.batches(0, 1))


def test_more_than_one_percent_of_bad_samples_stop_the_run(hundred, tmp_path):
    folder = shutil.copytree(hundred, tmp_path / "NYU")
    break_pictures(folder, 2)
    with pytest.raises(DataError, match=r"2 of 120 samples are bad, at most 1 may be; the last: .*\.jpg: broken image"):
        fed_samples(folder)
    with pytest.raises(image.ImageError, match=r"\.jpg: broken image"):
        fed_samples(folder, skip_bad=False)


def test_the_mean_map_is_of_what_can_be_read(hundred, tmp_path):
    folder = shutil.copytree(hundred, tmp_path / "NYU")
    (folder / "Train" / "one_out" / "100.png").write_bytes(b"no picture")
    source = PlainPairs(folder)
    with pytest.raises(image.ImageError, match=r"100\.png: broken image"):
        baselines.mean_map(source, 2)
    depth_m = (1 + 2 * np.delete(np.arange(120), 100)) / 25.5
    mean = baselines.mean_map(source, 2, skip_bad=True)
    np.testing.assert_allclose(mean, np.log(depth_m.clip(0.1, 10)).mean(), rtol=1e-5)


def test_the_command_stops_at_a_broken_picture_or_skips_it(hundred, fine_stage, forked, tmp_path):
    folder = shutil.copytree(hundred, tmp_path / "NYU")
    (index,) = Schedule(120, 1, seed=0).batch(0)[1]  # what the first step is fed
    path = PlainPairs(folder).pairs[index].rgb
    break_picture(path)
    arguments = ["--data_url", folder, *fine_stage, "--batch_size", 1, "--max_steps", 2]
    stopped = forked("train.py", *arguments, "--train_url", "stopped", cwd=tmp_path)
    assert stopped.returncode == 2 and f"one_out/{path.name}: broken image" in stopped.stderr
    skipped = forked("train.py", *arguments, "--train_url", "skipped", "--bad_samples", "skip", cwd=tmp_path)
    assert skipped.returncode == 0, skipped.stderr
    assert skipped.stdout.count("bad sample, replaced by another:") == 1


def test_an_epoch_ends_with_the_number_of_its_bad_samples(hundred, tmp_path, caplog):
    folder = shutil.copytree(hundred, tmp_path / "NYU")
    break_pictures(folder, 1)
    data = TrainingData(PlainPairs(folder), Schedule(120, 60, seed=0), skip_bad=True)
    fine, run = options.Stage("fine", 1, 2, None, 3, {}), run_folder.Folder(tmp_path / "Model")
    for path in (run.checkpoints, run.log):
        path.mkdir(parents=True)
    caplog.set_level("INFO")
    stage.StageLoop(
        fine,
        trainer.Trainer(TinyCoarse(), "composite", 1e-4),
        data,
        run,
        log.StageLog(run.log_file("fine.csv")),
        NOBODY_STOPS,
    ).run()
    assert re.search(r"epoch: 1 mean loss: .*, bad samples: 1$", caplog.text, re.MULTILINE)


def test_a_depth_map_is_decoded_once_as_far_as_targets_are_kept(nyu, tmp_path, monkeypatch):
    folder = shutil.copytree(nyu, tmp_path / "NYU")
    schedule = Schedule(8, 4, seed=1)
    expected = list(TrainingData(PlainPairs(nyu), schedule).batches(2, 4))
    data = TrainingData(PlainPairs(folder), schedule)
    list(data.batches(0, 2))
    forgetful = []
    for most in (7 * 55 * 74 * 4, 7 * 55 * 74 * 4 - 1):
        monkeypatch.setattr(plain, "KEPT_BYTES", most)
        forgetful.append(TrainingData(PlainPairs(folder), schedule, workers=1))
        list(forgetful[-1].batches(0, 2))
    for path in (folder / "Train").glob("*/*.png"):
        path.unlink()
    for ours, theirs in zip(data.batches(2, 4), expected, strict=True):
        for array, wanted in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(array, wanted)
    for one in forgetful:
        with pytest.raises(image.ImageError, match="no such file"):
            list(one.batches(2, 4))


MALL_INFO = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


class MallInfo(ctypes.Structure):
    """struct mallinfo2 of <malloc.h>."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in MALL_INFO)


@pytest.mark.skipif(sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="glibc's accounts")
def test_freed_memory_is_kept_for_the_next_picture():
    """Up to 32 MB a piece come from the heap, and it is not given back until 256 MB of it are free."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.mallinfo2.restype = ctypes.c_void_p, MallInfo
    libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
    for parameter in (-1, -3):  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of <malloc.h>, as they are at a program's start
        assert libc.mallopt(parameter, 128 << 10)
    data_loader.keep_freed_memory()
    libc.malloc_trim(0)  # what other tests have left free at the heap's end

    def mapped():
        """How many pieces are mapped by themselves, so that they go back to the system when they are freed."""
        return libc.mallinfo2().hblks

    before = mapped()
    pieces = [libc.malloc(31 << 20) for _ in range(8)]
    assert mapped() == before
    full = libc.mallinfo2().arena
    for piece in reversed(pieces):
        libc.free(piece)
    assert libc.mallinfo2().arena == full
    larger = []
    while mapped() == before and len(larger) < 100:  # the first may find room that is free already
        larger.append(libc.malloc(32 << 20))
    assert mapped() == before + 1
    for piece in larger:
        libc.free(piece)
