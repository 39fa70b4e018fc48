"""The packed training set against the files that it was made of."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.data import packed
from src.data.image import ImageError
from src.data.listing import DataError
from src.data.plain import PlainPairs
from src.data.sampling import Schedule
from src.data_loader import TrainingData
from src.nets import checkpoint
from tests.fuzz import judge, mutations, slow
from tests.test_commands import one_line


@pytest.fixture(scope="module")
def made(nyu, tmp_path_factory):
    """The sample set packed in three shards."""
    out = tmp_path_factory.mktemp("packed") / "set"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "PAIRS_A_SHARD", 3)
        packed.pack(nyu, out, workers=2)
    return out


@pytest.mark.parametrize("augmentation", ["reference", "paper"])
@pytest.mark.parametrize("rank", [0, 1])
def test_both_forms_give_the_same_batches(nyu, made, rank, augmentation):
    plain, fast = packed.open_training(nyu), packed.open_training(made)
    assert (plain.form, fast.form) == ("plain", "packed") and plain.names == fast.names
    schedule = Schedule(8, 2, seed=4, rank=rank, ranks=2)
    ours, theirs = (
        list(TrainingData(source, schedule, 2, 5, augmentation=augmentation).batches(1, 7)) for source in (fast, plain)
    )
    assert len(ours) == len(theirs) == 6
    batches = theirs
    for batch, expected in zip(ours, theirs, strict=True):
        for array, wanted in zip(batch, expected, strict=True):
            np.testing.assert_array_equal(array, wanted)
    np.testing.assert_array_equal(list(fast.depth_maps(range(8), 1, False)), list(plain.depth_maps(range(8), 1, False)))
    for ours, theirs in zip(fast.samples([5, 2], 1, False), plain.samples([5, 2], 1, False), strict=True):
        for array, wanted in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(array, wanted)
    later = list(TrainingData(fast, schedule, 1, 5, augmentation=augmentation).batches(4, 7))  # a resume in an epoch
    np.testing.assert_array_equal(later[0][0], batches[3][0])


def test_a_packed_set_may_be_moved_and_verified(made, tmp_path):
    moved = shutil.copytree(made, tmp_path / "elsewhere")
    packed.open_training(moved).verify()
    shard = moved / "train_001.mindrecord"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"train_001\.mindrecord: damaged"):
        packed.open_training(moved).verify()
    shard.write_bytes(content[:-1])
    with pytest.raises(DataError, match=r"train_001\.mindrecord: missing or not of \d+ bytes"):
        packed.open_training(moved)


def test_another_geometry_is_refused(made, tmp_path):
    moved = shutil.copytree(made, tmp_path / "old")
    manifest = json.loads((moved / "manifest.json").read_text())
    manifest["geometry"]["crop_rows"] = [0, 480]
    (moved / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"packed with another geometry \(crop_rows\)"):
        packed.open_training(moved)
    shards = '"geometry": {}, "shards"'
    for other in ("{}", "[]", f'{{"names": 3, {shards}: []}}', f'{{"names": [1], {shards}: [{{"files": 1}}]}}'):
        (moved / "manifest.json").write_text(other)
        with pytest.raises(DataError, match="not a manifest"):
            packed.open_training(moved)


def test_a_shard_of_other_content_is_refused(made, tmp_path):
    """Shards in another order have the right sizes and the wrong rows."""
    moved = shutil.copytree(made, tmp_path / "mixed")
    for ending in ("", ".db"):
        (moved / f"train_000.mindrecord{ending}").rename(moved / "aside")
        (moved / f"train_001.mindrecord{ending}").rename(moved / f"train_000.mindrecord{ending}")
        (moved / "aside").rename(moved / f"train_001.mindrecord{ending}")
    with pytest.raises(DataError, match=r"mixed: "):
        list(TrainingData(packed.open_training(moved), Schedule(8, 2, seed=4), 1).batches(0, 4))


def test_packing_that_was_stopped_is_named_and_done_anew(nyu, tmp_path):
    broken = shutil.copytree(nyu, tmp_path / "NYU")
    picture = broken / "Train" / "sample_0002_out" / "3.jpg"
    whole = picture.read_bytes()
    picture.write_bytes(whole[:999])
    with pytest.raises(ImageError, match=r"sample_0002_out/3\.jpg: broken image"):
        packed.pack(broken, tmp_path / "set", 2)
    (tmp_path / "set" / "train_000.mindrecord").touch()
    with pytest.raises(DataError, match="packing was not finished"):
        packed.open_training(tmp_path / "set")
    picture.write_bytes(whole)
    packed.pack(broken, tmp_path / "set", 2)
    assert packed.open_training(tmp_path / "set").names == PlainPairs(nyu).names
    with pytest.raises(DataError, match=r"holds manifest\.json; expected an empty or a new folder"):
        packed.pack(broken, tmp_path / "set", 2)


def test_the_commands_pack_and_train_to_the_same_bits(nyu, forked, tmp_path):
    result = forked(f"tools/pack_nyu.py {nyu} set", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert forked("tools/pack_nyu.py set --verify", cwd=tmp_path).returncode == 0
    refused = one_line(forked("tools/pack_nyu.py set --verify --workers 2", cwd=tmp_path))
    assert "--workers has no effect here: it needs DATA OUT" in refused
    weights = []
    for data, form in ((nyu, "plain"), ("set", "packed")):
        line = f"train_tiny --data_url {data} --stage coarse --train_url {form} --batch_size 2 --max_steps 3"
        result = forked(line, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert f"{data}, {form} form, 8 pairs" in result.stdout
        weights.append(checkpoint.load(tmp_path / form / "Ckpt" / "FinalCoarseNet.ckpt").arrays)
    np.testing.assert_equal(*weights)


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
        answer = forked(f"read_packed {folder}", cwd=tmp_path)
        lines = answer.stderr.splitlines(keepends=True)
        answer.stderr = "".join(line for line in lines if not line.startswith(("[WARNING]", "[ERROR]")))
        judge(answer, [str(folder)])

    one()
