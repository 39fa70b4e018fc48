"""Checkpoints: whole or absent, verified, and readable by MindSpore alone."""

import errno
import os
import subprocess
import sys

import mindspore as ms
import numpy as np
import pytest
from hypothesis import given
from mindspore.train import checkpoint_pb2, serialization

from src.net import CoarseNet, FineNet, PaperCoarseNet
from src.nets import checkpoint
from src.nets.checkpoint import CheckpointError
from tests.conftest import ROOT
from tests.fuzz import MEGABYTES, bounded, judge, mutations


def parameters(net):
    return {parameter.name: parameter for parameter in net.get_parameters()}


@pytest.fixture
def saved(tmp_path):
    net = FineNet()
    path = tmp_path / "a" / "b" / "fine.ckpt"  # in folders that are made
    checkpoint.save(path, parameters(net), {"step": 3, "stage": "fine"})
    return net, path


def test_round_trip(saved):
    net, path = saved
    loaded = checkpoint.load(path)
    assert loaded.info["step"] == 3
    restored = checkpoint.load_fine(path)
    assert not restored.training
    for ours, theirs in zip(net.get_parameters(), restored.get_parameters(), strict=True):
        np.testing.assert_array_equal(ours.asnumpy(), theirs.asnumpy())
    content = path.read_bytes()
    checkpoint.save(path, parameters(net), {"stage": "fine", "step": 3})  # the same in another order: the same bytes
    assert path.read_bytes() == content
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]  # nothing temporary is left
    assert path.stat().st_mode & 0o777 == 0o644


def test_mindspore_alone_reads_it(saved):
    net, path = saved
    fresh = FineNet()
    missing, _ = ms.load_param_into_net(fresh, ms.load_checkpoint(str(path)))
    assert missing == []
    np.testing.assert_array_equal(fresh.conv2.weight.asnumpy(), net.conv2.weight.asnumpy())


def test_what_the_optimizer_leaves_beside_the_weights_is_passed_over(saved, tmp_path):
    net, _ = saved
    of_training = ["global_step", "learning_rate", "epoch_num", "step_num", "beta1_power", "beta2_power", "momentum"]
    of_scaling = ["scale_value", "counter", "scale_sense", "current_iterator_step", "last_overflow_iterator_step"]
    of_weights = [f"{prefix}.conv1.weight" for prefix in ("ema", "moment1", "moment2", "moments", "accum")]
    beside = [*of_training, *of_scaling, *of_weights]
    checkpoint.save(tmp_path / "state.ckpt", {**parameters(net), **dict.fromkeys(beside, np.zeros(1, np.float32))}, {})
    restored = checkpoint.load_fine(tmp_path / "state.ckpt")
    np.testing.assert_array_equal(restored.conv1.weight.asnumpy(), net.conv1.weight.asnumpy())


def test_a_digest_stands_for_the_weights(saved):
    net, path = saved
    assert checkpoint.digest(net) == checkpoint.digest(checkpoint.load_fine(path))
    before = checkpoint.digest(net)
    changed = net.conv3.weight.asnumpy().copy()
    changed[0, 0, 0, 0] += 1e-3
    net.conv3.weight.set_data(ms.Tensor(changed))
    assert len(before) == 64 and checkpoint.digest(net) != before


def test_a_parameter_in_several_parts_is_put_together(tmp_path, monkeypatch):
    """MindSpore writes one of more than 512 MB in slices; here in slices of a kilobyte."""
    net = FineNet()
    monkeypatch.setattr(serialization, "SLICE_SIZE", 1)
    ms.save_checkpoint(net, str(tmp_path / "parts.ckpt"))
    restored = checkpoint.load_fine(tmp_path / "parts.ckpt")
    for ours, theirs in zip(net.get_parameters(), restored.get_parameters(), strict=True):
        np.testing.assert_array_equal(ours.asnumpy(), theirs.asnumpy())


def test_another_net_is_refused_with_the_names_that_differ(saved, tmp_path):
    _, path = saved
    with pytest.raises(CheckpointError, match=r"fine\.ckpt: a checkpoint of FineNet, expected a coarse net"):
        checkpoint.load_coarse(path)
    ms.save_checkpoint(FineNet(), str(tmp_path / "plain.ckpt"))
    with pytest.raises(
        CheckpointError,
        match=r"not a checkpoint of CoarseNet: missing conv1\.bias, .*"
        r"conv1\.weight is \(63, 3, 9, 9\), expected \(64, 3, 7, 7\)",
    ):
        checkpoint.load_coarse(tmp_path / "plain.ckpt")
    arrays = {name: value.asnumpy() for name, value in parameters(FineNet()).items()}
    checkpoint.save(tmp_path / "more.ckpt", {**arrays, "conv4.weight": np.ones(3, np.float32)}, {})
    with pytest.raises(CheckpointError, match=r"unexpected conv4\.weight"):
        checkpoint.load_fine(tmp_path / "more.ckpt")
    checkpoint.save(tmp_path / "larger.ckpt", {**arrays, "conv3.weight": np.repeat(arrays["conv3.weight"], 2, 0)}, {})
    with pytest.raises(CheckpointError, match=r"FineNet: conv3\.weight is \(2, 64, 5, 5\), expected \(1, 64, 5, 5\)$"):
        checkpoint.load_fine(tmp_path / "larger.ckpt")


def test_missing_empty_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        checkpoint.load(tmp_path / "absent.ckpt")
    for name, content in {"empty.ckpt": b"", "text.ckpt": b"hello " * 99, "noise.ckpt": bytes(range(256)) * 9}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=name):
            checkpoint.load(tmp_path / name)


def test_text_among_the_parameters_is_refused(tmp_path):
    checkpoint.save(tmp_path / "a.ckpt", {"conv1.weight": np.zeros(3, np.float32)}, {})
    text = checkpoint._entry("conv1.bias", "str", (0,), "0 0 0".encode("utf-32-le"))
    (tmp_path / "b.ckpt").write_bytes((tmp_path / "a.ckpt").read_bytes() + text)
    with pytest.raises(CheckpointError, match=r"b\.ckpt: not a readable checkpoint"):
        checkpoint.load(tmp_path / "b.ckpt")


@pytest.mark.long
def test_no_damage_is_loaded_in_silence(tmp_path):
    """Every range of the file cut off, flipped or zeroed: an error that names it, or the same parameters."""
    path, damaged = tmp_path / "small.ckpt", tmp_path / "damaged.ckpt"
    array = np.random.default_rng(0).normal(size=(6, 7)).astype(np.float32)
    original, info = {"conv1.weight": array, "conv1.bias": array[0]}, {"step": 12, "stage": "coarse"}
    checkpoint.save(path, original, info)
    content = path.read_bytes()
    loaded = 0
    variants = [content[:end] for end in range(0, len(content), 3)]
    variants += [
        content[:at] + bytes([content[at] ^ flip]) + content[at + 1 :]
        for at in range(len(content))
        for flip in (0x01, 0x80)
    ]
    variants += [content[:at] + bytes(16) + content[at + 16 :] for at in range(0, len(content), 16)]
    for variant in variants:
        damaged.write_bytes(variant)
        try:
            result = checkpoint.load(damaged)
        except CheckpointError as error:
            assert "damaged.ckpt" in str(error)
        else:
            loaded += 1
            assert all(np.array_equal(result.arrays[name], value) for name, value in original.items())
            assert result.info in ({}, info)
    assert loaded < len(variants) / 20


@pytest.mark.long
def test_a_name_that_is_no_text_is_damage_whoever_reads_it(tmp_path):
    """MindSpore has protobuf read in Python, which refuses it; in C, as after `import onnx`, the name is bytes."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PROTOCOL_BUFFERS")}
    path = tmp_path / "names.ckpt"
    checkpoint.save(path, {"conv1.weight": np.zeros(1, np.float32), "conv1.bias": np.zeros(1, np.float32)}, {})
    path.write_bytes(path.read_bytes().replace(b"conv1", b"\xe3onv1", 1))
    load = f"import onnx, src; from src.nets import checkpoint; checkpoint.load({str(path)!r})"
    options = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True, "check": False}
    result = subprocess.run([sys.executable, "-c", load], **options)
    if "Descriptors cannot be created directly" in result.stderr:
        pytest.skip("this MindSpore does not load after onnx")  # 2.7
    with pytest.raises(CheckpointError) as here:
        checkpoint.load(path)
    assert result.stderr.splitlines()[-1] == f"src.nets.checkpoint.CheckpointError: {here.value}"


def test_a_failed_write_leaves_the_earlier_file(saved, monkeypatch):
    net, path = saved
    before = path.read_bytes()

    def full_disk(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(path, parameters(net), {})
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_checkpoints_of_a_name_too_long_for_a_partial_one_are_saved(tmp_path):
    path = tmp_path / ("c" * 250 + ".ckpt")
    checkpoint.save(path, {"a": np.ones(3, np.float32)}, {})
    assert checkpoint.load(path).arrays["a"].sum() == 3


def checkpoint_seed(tmp_path):
    arrays = {parameter.name: parameter.asnumpy()[:2] for parameter in FineNet().get_parameters()}
    checkpoint.save(tmp_path / "seed.ckpt", arrays, {"stage": "fine", "step": 3})
    return (tmp_path / "seed.ckpt").read_bytes()


def test_checkpoints(forked, tmp_path):
    @bounded
    @given(content=mutations(checkpoint_seed(tmp_path), checkpoint_seed(tmp_path)[:2000]))
    def one(content):
        (tmp_path / "a.ckpt").write_bytes(content)
        judge(forked("load_checkpoint a.ckpt", cwd=tmp_path, megabytes=MEGABYTES), ["a.ckpt"])

    one()


def write_published(path, net, dtype):
    """A checkpoint as the published files are: the net's own parameters in their order, one protobuf message, no entry
    beside them; made without src.checkpoint."""
    rng, message, arrays = np.random.default_rng(0), checkpoint_pb2.Checkpoint(), {}
    for parameter in net.get_parameters():
        arrays[parameter.name] = array = (rng.normal(size=parameter.shape) / 50).astype(dtype)
        entry = message.value.add(tag=parameter.name)
        entry.tensor.dims.extend(array.shape)
        entry.tensor.tensor_type = {"float32": "Float32", "float16": "Float16"}[dtype]
        entry.tensor.tensor_content = array.tobytes()
    path.write_bytes(message.SerializeToString())
    return arrays


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_checkpoint_in_the_published_form_loads(tmp_path, dtype):
    coarse = write_published(tmp_path / "coarse.ckpt", CoarseNet(), dtype)
    fine = write_published(tmp_path / "fine.ckpt", FineNet(), dtype)
    for net, arrays in (
        (checkpoint.load_coarse(tmp_path / "coarse.ckpt"), coarse),
        (checkpoint.load_fine(tmp_path / "fine.ckpt"), fine),
    ):
        for parameter in net.get_parameters():
            assert parameter.dtype == ms.float32
            np.testing.assert_array_equal(parameter.asnumpy(), arrays[parameter.name].astype(np.float32))


def test_factors_are_multiplied_out_and_must_belong_together(untrained, tmp_path):
    assert isinstance(checkpoint.load_coarse(untrained / "coarse.ckpt"), PaperCoarseNet)
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(4070, 3)).astype(np.float16), rng.normal(size=(3, 4096)).astype(np.float16)
    factors = {"fc7.weight.left": left, "fc7.weight.right": right}
    checkpoint.save(tmp_path / "a.ckpt", factors, {})
    arrays = checkpoint.load(tmp_path / "a.ckpt").arrays
    np.testing.assert_allclose(arrays["fc7.weight"], left.astype(np.float64) @ right.astype(np.float64), atol=1e-2)
    for broken in ({"fc7.weight.left": left}, {**factors, "fc7.weight.right": right[:2]}):
        checkpoint.save(tmp_path / "b.ckpt", broken, {})
        with pytest.raises(checkpoint.CheckpointError, match=r"b\.ckpt: factors that do not belong together"):
            checkpoint.load(tmp_path / "b.ckpt")
