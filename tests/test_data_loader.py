"""Listing, the schedule of samples, augmentation, and that nothing depends on the number of workers."""

import shutil

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy import ndimage

from src import data_loader, image
from src.data_loader import DataError, PlainPairs, Schedule, TrainingData


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def test_pairs_are_matched_by_name_in_numeric_order(tmp_path):
    for scene in ("kitchen_2_out", "attic_1_out"):
        for number in ("10", "2", "1"):
            touch(tmp_path / "Train" / scene / f"{number}.png")
        for number in ("1", "10", "2"):
            touch(tmp_path / "Train" / scene / f"{number}.jpg")
    pairs = data_loader.list_train(tmp_path)
    assert [pair.name for pair in pairs] == [f"{scene}/{number}" for scene in ("attic_1_out", "kitchen_2_out")
                                             for number in (1, 2, 10)]
    assert all(pair.rgb.stem == pair.depth.stem and pair.rgb.parent == pair.depth.parent for pair in pairs)
    assert all(pair.rgb.suffix == ".jpg" and pair.depth.suffix == ".png" for pair in pairs)


def test_both_the_folder_and_its_split_are_accepted(nyu):
    assert data_loader.list_test(nyu) == data_loader.list_test(nyu / "Test")
    assert [pair.name for pair in data_loader.list_test(nyu)] == ["00000", "00001", "00002", "00003"]


def test_missing_partners_are_named(nyu, tmp_path):
    folder = shutil.copytree(nyu, tmp_path / "NYU")
    (folder / "Train" / "sample_0001_out" / "2.png").unlink()
    (folder / "Train" / "sample_0002_out" / "3.jpg").unlink()
    (folder / "Test" / "00001_depth.png").unlink()
    with pytest.raises(DataError, match=r"0001_out/2\.jpg has no depth map; .*0002_out/3\.png has no RGB"):
        data_loader.list_train(folder)
    with pytest.raises(DataError, match=r"00001_colors\.png has no depth map"):
        data_loader.list_test(folder)


def test_wrong_folders_say_what_was_found_and_expected(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match=r"no Train folder in it \(found: images\); expected NYU/Train/<scene>_out"):
        data_loader.list_train(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        data_loader.list_train(tmp_path / "absent")
    (tmp_path / "Train").mkdir()
    with pytest.raises(DataError, match="no image pairs"):
        data_loader.list_train(tmp_path)


def test_shards_are_disjoint_equal_and_complete_over_three_epochs():
    samples, ranks, batch = 50, 4, 3
    shards = [Schedule(samples, batch, seed=7, rank=rank, ranks=ranks) for rank in range(ranks)]
    steps = shards[0].steps_per_epoch
    assert steps == 4
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


def test_a_dataset_smaller_than_a_batch_says_so():
    with pytest.raises(DataError, match=r"8 training pairs do not fill a batch of 9: use a smaller --batch_size"):
        Schedule(8, 9, seed=0)
    assert Schedule(8, 8, seed=0).steps_per_epoch == 1


def batches(nyu, workers, first=0, last=5, units=0):
    data = TrainingData(PlainPairs(nyu), Schedule(8, 3, seed=5), workers, units, 0.5)
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
    assert np.array_equal(np.unique(kept), [0, 1]) and abs(kept.mean() - 0.5) < 0.03


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
    data_loader.augment(rgb, depth_m, Choices(flip, brightness, sharpness), ours, ours_m)
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


def test_random_choices_have_their_ranges_and_shares():
    flips, brightness, sharpness = [], [], []
    for sample in range(2000):
        rng = data_loader.counter_rng(0, 1, sample)
        flips.append(rng.random() < 0.5)
        brightness.append(rng.uniform(*data_loader.BRIGHTNESS))
        sharpness.append(rng.uniform(*data_loader.SHARPNESS))
    assert abs(np.mean(flips) - 0.5) < 0.04
    assert 0.8 <= min(brightness) < 0.81 and 0.99 < max(brightness) <= 1.0
    assert 0.8 <= min(sharpness) < 0.81 and 1.19 < max(sharpness) <= 1.2
    assert data_loader.counter_rng(0, 1, 2).random() != data_loader.counter_rng(0, 2, 2).random()
    assert data_loader.counter_rng(0, 1, 2).random() != data_loader.counter_rng(1, 1, 2).random()


def test_a_broken_training_image_is_named_while_feeding(nyu, tmp_path):
    folder = shutil.copytree(nyu, tmp_path / "NYU")
    broken = folder / "Train" / "sample_0001_out" / "3.jpg"
    broken.write_bytes(broken.read_bytes()[:2000])
    with pytest.raises(image.ImageError, match=r"sample_0001_out/3\.jpg: broken image"):
        batches(folder, 2, 0, 12)  # six epochs: each drops two of the eight


def test_mean_log_depth_is_the_mean_over_measured_pixels(nyu):
    source = PlainPairs(nyu)
    targets = np.stack([image.network_depth(image.load_train_depth(pair.depth))[0] for pair in source.pairs])
    mean = data_loader.mean_log_depth(source.depth_maps(range(8), 2))
    np.testing.assert_allclose(mean[0], np.log(targets.astype(np.float64)).mean(0), rtol=1e-5)
    holes = targets.copy()
    holes[0, :9] = 0
    mean = data_loader.mean_log_depth(holes)
    np.testing.assert_allclose(mean[0, :9], np.log(targets[1:, :9].astype(np.float64)).mean(0), rtol=1e-5)


def break_pictures(folder, count):
    for path in sorted((folder / "Train").glob("*/*.jpg"))[:count]:
        path.write_bytes(path.read_bytes()[:200])


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
        for step, place in changed:
            assert fed[step, place] in good[step // 15 * 15:][:15]  # of this rank's shard in this epoch
        assert len(changed) == (good == broken).sum()
        assert [record.getMessage().count("7.jpg") for record in caplog.records] == [1] * bool(len(changed))
        again = fed_samples(folder, rank, 2, first=9, last=21)
        np.testing.assert_array_equal(again, fed[9:21])  # the same replacements after a resume


def test_more_than_one_percent_of_bad_samples_stop_the_run(hundred, tmp_path):
    folder = shutil.copytree(hundred, tmp_path / "NYU")
    break_pictures(folder, 2)
    with pytest.raises(DataError, match=r"2 of 120 samples are bad, more than 1%; the last: .*\.jpg: broken image"):
        fed_samples(folder)
    with pytest.raises(image.ImageError, match=r"\.jpg: broken image"):
        fed_samples(folder, skip_bad=False)


def test_the_command_stops_at_a_broken_picture_or_skips_it(hundred, run, tmp_path):
    folder = shutil.copytree(hundred, tmp_path / "NYU")
    break_pictures(folder, 1)
    arguments = ["--data_url", folder, "--stage", "coarse", "--coarse_net", "paper", "--batch_size", 8,
                 "--epochs_coarse", 1, "--mean_depth_start"]
    stopped = run("train.py", *arguments, "--train_url", "stopped", cwd=tmp_path)
    assert stopped.returncode == 2 and "one_out/0.jpg: broken image" in stopped.stderr
    skipped = run("train.py", *arguments, "--train_url", "skipped", "--bad_samples", "skip", cwd=tmp_path)
    assert skipped.returncode == 0, skipped.stderr
    assert skipped.stdout.count("bad sample, replaced by another:") == 1
    assert "bad samples: 1" in skipped.stdout


def test_a_depth_map_is_decoded_once_as_far_as_targets_are_kept(nyu, tmp_path, monkeypatch):
    folder = shutil.copytree(nyu, tmp_path / "NYU")
    schedule = Schedule(8, 4, seed=1)
    expected = list(TrainingData(PlainPairs(nyu), schedule).batches(2, 4))
    data = TrainingData(PlainPairs(folder), schedule)
    list(data.batches(0, 2))
    monkeypatch.setattr(data_loader, "KEPT_BYTES", 7 * 55 * 74 * 4)
    forgetful = TrainingData(PlainPairs(folder), schedule, workers=1)
    list(forgetful.batches(0, 2))
    for path in (folder / "Train").glob("*/*.png"):
        path.unlink()
    for ours, theirs in zip(data.batches(2, 4), expected, strict=True):
        for array, wanted in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(array, wanted)
    with pytest.raises(image.ImageError, match="no such file"):
        list(forgetful.batches(2, 4))
