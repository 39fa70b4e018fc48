"""Exported files against the checkpoint's net, in the runtimes that will read them."""

import os
import shutil

import mindspore as ms
import numpy as np
import onnx
import onnxruntime
import pytest
from mindspore import nn
from mindspore.train import mind_ir_pb2

from src.base.errors import CheckFailed, UserError
from src.net import FineNet, PaperCoarseNet
from src.nets import checkpoint, exporting
from tests.conftest import ROOT
from tests.test_commands import one_line


def mindir(path):
    model = mind_ir_pb2.ModelProto()
    model.ParseFromString(path.read_bytes())
    return model


@pytest.mark.parametrize(("name", "megabytes"), [("Coarse", 87.63), ("Fine", 0.4833)])
def test_mindir_is_version_1_and_mindspore_loads_it(exported, name, megabytes):
    """84 MB (2^20) and 482 KB (10^3), as the model zoo says."""
    path = exported / "MindIR" / f"Final{name}Net.mindir"
    model = mindir(path)
    assert model.mind_ir_version == 1
    assert all(primitive.prim_type == 1 for primitive in model.primitives)
    assert path.stat().st_size / 1e6 == pytest.approx(megabytes, rel=0.01)
    net = getattr(checkpoint, f"load_{name.lower()}")(exported / "Ckpt" / f"Final{name}Net.ckpt")
    inputs = [ms.Tensor(array) for array in exporting.example_inputs(net, 1, seed=9)]
    reloaded = nn.GraphCell(ms.load(str(path)))(*inputs).asnumpy()
    np.testing.assert_allclose(reloaded, net(*inputs).asnumpy(), atol=1e-6)


@pytest.mark.parametrize("batch", [1, 3])
def test_onnx_runs_at_any_batch_in_onnxruntime(exported, batch):
    coarse = checkpoint.load_coarse(exported / "Ckpt" / "FinalCoarseNet.ckpt")
    fine = checkpoint.load_fine(exported / "Ckpt" / "FinalFineNet.ckpt")
    rgb = exporting.example_inputs(coarse, batch, seed=5)[0]
    sessions = [
        onnxruntime.InferenceSession(
            str(exported / "ONNX" / f"Final{name}Net.onnx"), providers=["CPUExecutionProvider"]
        )
        for name in ("Coarse", "Fine")
    ]
    coarse_log_depth = sessions[0].run(["log_depth"], {"rgb": rgb})[0]
    log_depth = sessions[1].run(["log_depth"], {"rgb": rgb, "coarse_log_depth": coarse_log_depth})[0]
    expected = coarse(ms.Tensor(rgb))
    np.testing.assert_allclose(coarse_log_depth, expected.asnumpy(), atol=1e-4)
    np.testing.assert_allclose(log_depth, fine(ms.Tensor(rgb), expected).asnumpy(), atol=1e-4)


def test_onnx_has_names_a_dynamic_batch_and_padding_in_onnx_order(exported):
    model = onnx.load(exported / "ONNX" / "FinalCoarseNet.onnx")
    onnx.checker.check_model(model, full_check=True)
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {"rgb": ["batch", 3, 228, 304], "log_depth": ["batch", 1, 55, 74]}
    pads = [list(a.ints) for node in model.graph.node for a in node.attribute if a.name == "pads"]
    assert [1, 2, 1, 2] in pads  # conv2: top, left, bottom, right
    assert not any(a.name == "output_shape" for node in model.graph.node for a in node.attribute)


def test_native_mindir_keeps_what_mindspore_wrote(tmp_path):
    net = FineNet()
    path = exporting.export(net, "MINDIR", tmp_path, mindir_version="native")
    assert mindir(path).mind_ir_version > 1
    assert mindir(exporting.export(net, "MINDIR", tmp_path)).mind_ir_version == 1


@pytest.mark.parametrize("file_format", ["MINDIR", "ONNX"])
def test_any_folder_will_do(tmp_path, file_format):
    """MindSpore itself takes only names of letters, digits and a few signs."""
    path = exporting.export(FineNet(), file_format, tmp_path / "räume & $HOME, 2nd")
    assert path.is_file() and {one.name for one in path.parent.iterdir()} == {path.name}


def test_a_fixed_batch_of_three(tmp_path):
    path = exporting.export(PaperCoarseNet(), "MINDIR", tmp_path, batch_size=3)
    assert list(mindir(path).graph.input[0].tensor[0].dims) == [3, 3, 228, 304]


@pytest.mark.parametrize("file_format", ["MINDIR", "ONNX"])
def test_a_file_that_computes_something_else_is_not_left_behind(tmp_path, monkeypatch, file_format):
    """MindSpore's export is made to write another net's weights."""
    genuine, export = FineNet(), ms.export
    monkeypatch.setattr(ms, "export", lambda net, *arguments, **options: export(_moved(net), *arguments, **options))
    with pytest.raises(CheckFailed, match="differs from the checkpoint's net by"):
        exporting.export(genuine, file_format, tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def _moved(net):
    other = FineNet()
    for ours, theirs in zip(other.get_parameters(), net.get_parameters(), strict=True):
        ours.set_data(ms.Tensor(theirs.asnumpy() * np.float32(1.5)))
    return other


def test_only_mindir_is_written_unless_asked(exported, forked, tmp_path):
    """AIR is deprecated, and written on Ascend only."""
    result = forked(f"export.py --coarse_or_fine fine --output_dir {tmp_path}", cwd=exported.parent)
    assert result.returncode == 0, result.stderr
    assert [path.name for path in tmp_path.rglob("Final*")] == ["FinalFineNet.mindir"]


def test_an_air_that_mindspore_did_not_write_is_named(tmp_path, monkeypatch):
    """Where MindSpore writes no file, ms.export fails when it sets the file's rights; the level was asked for."""

    def export(_, *__, file_name, **___):
        os.chmod(f"{file_name}.air", 0o400)

    asked = []
    monkeypatch.setattr(exporting.ms, "get_context", lambda name: "Ascend")
    monkeypatch.setattr(exporting.ms, "set_context", lambda **options: asked.append(options))
    monkeypatch.setattr(exporting.ms, "export", export)
    with pytest.raises(UserError, match=r"FinalFineNet\.air: MindSpore has written nothing"):
        exporting.export(FineNet(), "AIR", tmp_path)
    assert asked == [{"jit_config": {"jit_level": "O2"}}] and not list((tmp_path / "AIR").iterdir())


def test_mistakes_get_one_line(exported, forked, tmp_path):
    where = exported.parent
    (tmp_path / "file").touch()
    for arguments, message in [
        (["--coarse_or_fine", "fine", "--file_format", "AIR", "--output_dir", tmp_path / "air"], "on Ascend only"),
        (["--coarse_or_fine", "fine", "--ckpt_file", "absent.ckpt"], "absent.ckpt: no such checkpoint"),
        (["--coarse_or_fine", "fine", "--ckpt_file", "Model/Ckpt/FinalCoarseNet.ckpt"], "not a checkpoint of FineNet"),
        (["--coarse_or_fine", "fine", "--output_dir", tmp_path / "file"], "cannot write there"),
    ]:
        assert message in one_line(forked("export.py", *arguments, cwd=where)), arguments
    assert not (tmp_path / "air").exists()


def test_a_damaged_coarse_net_beside_a_fine_one_does_not_keep_it_from_export(run, tmp_path):
    shutil.copy(ROOT / "weights" / "FineNet.ckpt", tmp_path)
    (tmp_path / "CoarseNet.ckpt").write_bytes(b"damaged")
    result = run("export.py --coarse_or_fine fine --ckpt_file FineNet.ckpt", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "CoarseNet beside it: CoarseNet.ckpt: not a readable checkpoint" in result.stdout
    assert (tmp_path / "Model" / "MindIR" / "FinalFineNet.mindir").is_file()
