"""Weights that come from elsewhere: fetched from a real HTTP server, in the published form, as factors, in float16."""

import hashlib
import http.server
import threading

import mindspore as ms
import numpy as np
import pytest
from mindspore.train import checkpoint_pb2

from src.data.plain import PlainPairs
from src.data.sampling import Schedule
from src.data_loader import TrainingData
from src.net import CoarseNet, FineNet, PaperCoarseNet
from src.nets import checkpoint
from tests.test_commands import one_line
from tools import get_weights

FILES = {f"/r/{name}": f"content of {name}\n".encode() * 9999 for name, _ in get_weights.PUBLISHED.values()}


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        content = FILES.get(self.path.replace("/cut/", "/r/"))
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if self.path.startswith("/cut/") else content)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as one:
        one.asked, one.url = [], f"http://127.0.0.1:{one.server_address[1]}"
        threading.Thread(target=one.serve_forever, daemon=True).start()
        yield one
        one.shutdown()


@pytest.fixture
def published(monkeypatch, tmp_path):
    """Has the tool know the files of this server; its cache is the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for target, (name, _) in get_weights.PUBLISHED.items():
        digest = hashlib.sha256(FILES[f"/r/{name}"]).hexdigest()
        monkeypatch.setitem(get_weights.PUBLISHED, target, (name, digest))


def fetch(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["get_weights.py", *map(str, arguments)])
    return get_weights.main()


def test_the_right_files_are_fetched_once_and_never_over_the_user_s(server, published, monkeypatch, tmp_path, caplog):
    caplog.set_level("INFO")
    fetch(monkeypatch, "--base_url", f"{server.url}/r/", "--train_url", tmp_path / "a b$")
    assert caplog.text.count("for research and education") == 2
    for target, (name, _) in get_weights.PUBLISHED.items():
        assert (tmp_path / "a b$" / "Ckpt" / target).read_bytes() == FILES[f"/r/{name}"]
    asked = len(server.asked)
    fetch(monkeypatch, "--base_url", server.url + "/r", "--train_url", tmp_path / "a b$")
    assert caplog.text.count("there already") == 2
    fetch(monkeypatch, "--base_url", server.url + "/r", "--train_url", tmp_path / "other")
    assert len(server.asked) == asked  # from the cache
    mine = tmp_path / "mine" / "Ckpt" / "FinalFineNet.ckpt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(get_weights.UserError, match=r"FinalFineNet\.ckpt: another checkpoint is there"):
        fetch(monkeypatch, "--base_url", server.url + "/r", "--train_url", tmp_path / "mine")
    assert mine.read_text() == "mine" and not (mine.parent / "FinalCoarseNet.ckpt").exists()


def test_files_from_elsewhere_are_taken_by_their_checksum(published, monkeypatch, tmp_path):
    names = [name for name, _ in get_weights.PUBLISHED.values()]
    for number, name in enumerate(reversed(names)):
        (tmp_path / f"{number}.bin").write_bytes(FILES[f"/r/{name}"])
    fetch(monkeypatch, "--from", tmp_path / "0.bin", tmp_path / "1.bin", "--train_url", tmp_path / "Model")
    for target, (name, _) in get_weights.PUBLISHED.items():
        assert (tmp_path / "Model" / "Ckpt" / target).read_bytes() == FILES[f"/r/{name}"]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("{server}/r", "what came has another SHA-256 than published"),
        ("{server}/absent", "404 Client Error"),
        ("{server}/cut", "IncompleteRead"),
        ("http://127.0.0.1:9", "port=9"),
    ],
)
def test_what_goes_wrong_is_one_line(server, run, tmp_path, where, expected):
    result = run(
        "tools/get_weights.py",
        "--base_url",
        where.format(server=server.url),
        cwd=tmp_path,
        XDG_CACHE_HOME=str(tmp_path / "cache"),
    )
    line = one_line(result)
    assert expected in line and "depthnet_coarsenet_ascend" in line and "--from" in line
    assert not (tmp_path / "Model").exists()
    assert not any(path.is_file() for path in (tmp_path / "cache").rglob("*"))


def test_a_file_that_was_not_published_is_refused(run, tmp_path):
    (tmp_path / "x.ckpt").write_text("x")
    assert "x.ckpt: not one of the published files" in one_line(
        run("tools/get_weights.py", "--from", "x.ckpt", cwd=tmp_path)
    )
    assert "absent: no such file" in one_line(run("tools/get_weights.py", "--from", "absent", cwd=tmp_path))
    refused = run("tools/get_weights.py", "--from", "x.ckpt", "--timeout", 3, cwd=tmp_path)
    assert "--timeout has no effect here: it needs a download" in one_line(refused)


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


LAYERS = (
    "conv1",
    "conv2",
    "conv3",
    "conv4",
    "conv5",
    "deconv6",
    "conv7",
    "deconv8",
    "conv9",
    "conv10",
    "conv11",
    "conv12",
    "fc13",
)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_checkpoint_in_the_published_form_loads(tmp_path, dtype):
    coarse = write_published(tmp_path / "coarse.ckpt", CoarseNet(), dtype)
    fine = write_published(tmp_path / "fine.ckpt", FineNet(), dtype)
    assert list(coarse) == [f"{layer}.{part}" for layer in LAYERS for part in ("weight", "bias")]
    assert list(fine) == ["conv1.weight", "conv2.weight", "conv3.weight"]
    for net, arrays in (
        (checkpoint.load_coarse(tmp_path / "coarse.ckpt"), coarse),
        (checkpoint.load_fine(tmp_path / "fine.ckpt"), fine),
    ):
        for parameter in net.get_parameters():
            assert parameter.dtype == ms.float32
            np.testing.assert_array_equal(parameter.asnumpy(), arrays[parameter.name].astype(np.float32))


def test_factors_are_multiplied_out_and_must_belong_together(tmp_path):
    ms.set_seed(0)
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(4070, 3)).astype(np.float16), rng.normal(size=(3, 4096)).astype(np.float16)
    arrays = {p.name: p.asnumpy() for p in PaperCoarseNet().get_parameters() if p.name != "fc7.weight"}
    factors = {"fc7.weight.left": left, "fc7.weight.right": right}
    checkpoint.save(tmp_path / "a.ckpt", {**arrays, **factors}, {})
    net = checkpoint.load_coarse(tmp_path / "a.ckpt")
    assert isinstance(net, PaperCoarseNet)
    np.testing.assert_allclose(net.fc7.weight.asnumpy(), left.astype(np.float64) @ right.astype(np.float64), atol=1e-2)
    for broken in ({"fc7.weight.left": left}, {**factors, "fc7.weight.right": right[:2]}):
        checkpoint.save(tmp_path / "b.ckpt", {**arrays, **broken}, {})
        with pytest.raises(checkpoint.CheckpointError, match=r"b\.ckpt: factors that do not belong together"):
            checkpoint.load(tmp_path / "b.ckpt")


def test_compressed_weights_predict_what_the_whole_ones_do(nyu, run, forked, tmp_path):
    """On the pictures that the directions were taken of: there are no others in so small a set."""
    data = TrainingData(PlainPairs(nyu), Schedule(8, 8, seed=0), augmentation="paper")
    net, whole = PaperCoarseNet(), tmp_path / "FinalCoarseNet.ckpt"
    for layer in (net.fc6, net.fc7):  # as after a training: outputs that differ from picture to picture
        layer.weight.set_data(layer.weight * 3)
    ms.save_checkpoint(net, str(whole))
    refused = forked("tools/compress_weights.py", whole, "small.ckpt", cwd=tmp_path)
    assert "PaperCoarseNet: expected --data_url" in one_line(refused)
    done = run("tools/compress_weights.py", whole, "small.ckpt", "--data_url", nyu, "--rank_fc6", 40, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "small.ckpt").stat().st_size < whole.stat().st_size / 10
    rgb = ms.Tensor(next(data.batches(0, 1))[0].astype(np.float32) / 255)
    ours, theirs = (checkpoint.load_coarse(path)(rgb).asnumpy() for path in (tmp_path / "small.ckpt", whole))
    assert theirs.std() > 0.1 and np.abs(ours - theirs).max() < 0.05 * theirs.std()
    assert "already there" in one_line(forked("tools/compress_weights.py", whole, "small.ckpt", cwd=tmp_path))
