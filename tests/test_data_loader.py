"""Batches: whatever the number of workers, the same; bad samples are named, or replaced by others."""

import ctypes
import re
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from src import data_loader
from src.data import image, listing
from src.data.listing import DataError
from src.data.plain import PlainPairs
from src.data.sampling import Schedule
from src.data_loader import TrainingData
from tests.conftest import paint
from tests.test_commands import one_line


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


def break_picture(path):
    path.write_bytes(path.read_bytes()[:200])


def break_pictures(folder, count):
    for path in sorted((folder / "Train").glob("*/*.jpg"))[:count]:
        break_picture(path)


@pytest.fixture(scope="module")
def hundred(tmp_path_factory):
    """120 small pairs in one scene; pair n has depth pixels 1 + 2 n."""
    folder = tmp_path_factory.mktemp("hundred") / "NYU"
    for number in range(120):
        paint(folder / "Train" / "one_out" / f"{number}.jpg", 2 * number, (240, 320))
        paint(folder / "Train" / "one_out" / f"{number}.png", np.full((240, 320), 1 + 2 * number, np.uint8))
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


def test_one_bad_sample_is_borne_by_a_small_set_too(nyu, forked, tmp_path):
    pairs = PlainPairs(shutil.copytree(nyu, tmp_path / "NYU")).pairs
    break_picture(pairs[3].rgb)
    line = "train_tiny --data_url NYU --batch_size 4 --stage coarse --epochs_coarse 1 --bad_samples skip"
    result = forked(line, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert re.search(r"epoch: 1 mean loss: .*, bad samples: 1$", result.stdout, re.MULTILINE)
    break_picture(pairs[5].rgb)
    line = one_line(forked(f"{line} --overwrite", cwd=tmp_path))
    assert "2 of 8 samples are bad, at most 1 may be; the last: " in line


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


def test_the_command_stops_at_a_broken_picture_or_skips_it(hundred, forked, tmp_path):
    source = PlainPairs(shutil.copytree(hundred, tmp_path / "NYU"))
    (index,) = Schedule(120, 1, seed=0).batch(0)[1]  # what the first step is fed
    path = source.pairs[index].rgb
    break_picture(path)
    line = "train_tiny --data_url NYU --batch_size 1 --stage coarse --max_steps 2"
    assert f"one_out/{path.name}: broken image" in one_line(forked(f"{line} --train_url stopped", cwd=tmp_path))
    skipped = forked(f"{line} --train_url skipped --bad_samples skip", cwd=tmp_path)
    assert skipped.returncode == 0, skipped.stderr
    assert skipped.stdout.count("bad sample, replaced by another:") == 1


class MallInfo(ctypes.Structure):
    """struct mallinfo2 of <malloc.h>."""

    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = tuple((name, ctypes.c_size_t) for name in names.split())


HAS_COUNTS = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallinfo2")


@pytest.mark.skipif(not HAS_COUNTS, reason="no glibc from 2.33, which counts what it maps")
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
