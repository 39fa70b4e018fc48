"""tools/get_weights.py against a real HTTP server."""

import hashlib
import http.server
import threading

import pytest

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
def test_what_goes_wrong_is_one_line(server, forked, tmp_path, where, expected):
    line = f"tools/get_weights.py --base_url {where.format(server=server.url)}"
    line = one_line(forked(line, cwd=tmp_path, XDG_CACHE_HOME=str(tmp_path / "cache")))
    assert expected in line and "depthnet_coarsenet_ascend" in line and "--from" in line
    assert not (tmp_path / "Model").exists()
    assert not any(path.is_file() for path in (tmp_path / "cache").rglob("*"))


def test_a_file_that_was_not_published_is_refused(forked, tmp_path):
    (tmp_path / "x.ckpt").write_text("x")
    assert "x.ckpt: not one of the published files" in one_line(
        forked("tools/get_weights.py --from x.ckpt", cwd=tmp_path)
    )
    assert "absent: no such file" in one_line(forked("tools/get_weights.py --from absent", cwd=tmp_path))
    refused = forked("tools/get_weights.py --from x.ckpt --timeout 3", cwd=tmp_path)
    assert "--timeout has no effect here: it needs a download" in one_line(refused)
