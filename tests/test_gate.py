"""The page over HTTP, without a browser: what a client may make up, and what of it reaches the machine."""

import base64
import contextlib
import http.client
import io
import itertools
import json
import os
import secrets
import signal
import socket
import urllib.request
from pathlib import Path
from urllib.parse import quote, urlsplit

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from src.base.errors import UserError
from tests.conftest import ROOT, onnx_nets, serving, taken_by, write_video
from tests.fuzz import bounded, encoded
from tests.test_commands import one_line
from tests.test_interruption import wait_for
from web import gate

pytestmark = pytest.mark.long


EVENTS = "/gradio_api/queue/join"


DIRECT = "/gradio_api/run/predict"


class Client:
    """Speaks HTTP to the page; `events` are those of its config, `kinds` the kinds of their inputs."""

    def __init__(self, address):
        self.host = urlsplit(address).netloc
        config = json.loads(self.ask("GET", "/config")[1])
        kinds = {component["id"]: component["type"] for component in config["components"]}
        self.events = {event["id"]: event for event in config["dependencies"]}
        self.kinds = {number: [kinds[one] for one in event["inputs"]] for number, event in self.events.items()}

    def ask(self, method, path, body=None, headers=None):
        """(status, content)"""
        connection = http.client.HTTPConnection(self.host, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def post(self, path, value):
        return self.ask("POST", path, json.dumps(value), {"Content-Type": "application/json"})

    def upload(self, name, content):
        """The path that the page gives to a file."""
        edge = "-" * 8 + secrets.token_hex(8)
        head = f'--{edge}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
        status, answer = self.ask(
            "POST",
            "/gradio_api/upload",
            head + content + f"\r\n--{edge}--\r\n".encode(),
            {"Content-Type": f"multipart/form-data; boundary={edge}"},
        )
        assert status == 200, answer
        return json.loads(answer)[0]

    def event(self, name):
        """The number of the first event that calls a function."""
        return next(number for number, event in self.events.items() if event["api_name"] == name)

    def data(self, number, file=None, choice=None, amount=0):
        values = {"image": file, "video": file, "dropdown": choice, "slider": amount}
        return [values.get(kind) for kind in self.kinds[number]]

    def result(self, session, number, data):
        """What an event of this session ends with."""
        status, answer = self.post(EVENTS, {"session_hash": session, "fn_index": number, "data": data})
        assert status == 200, answer
        connection = http.client.HTTPConnection(self.host, timeout=60)
        connection.request("GET", f"/gradio_api/queue/data?session_hash={session}")
        with contextlib.closing(connection), connection.getresponse() as answer:
            for line in answer:
                if line.startswith(b"data:"):
                    message = json.loads(line[5:])
                    if message["msg"] == "process_completed":
                        return message


def file_data(path):
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """Folders that are not the page's: `victim` beside the folder that the page works in, `tmp`."""
    room = tmp_path_factory.mktemp("room")
    (room / "tmp").mkdir()
    for folder in (room / "victim", room / "tmp" / "victim"):
        folder.mkdir()
        (folder / "mine.txt").write_text("mine")
    return room


@pytest.fixture(scope="module")
def client(red_onnx, nyu, room):
    with serving(red_onnx, "--examples", nyu, TMPDIR=str(room / "tmp")) as (address, _):
        yield Client(address)


def others(room):
    """All that is not the page's own, with what is in it."""
    return {
        path: path.read_bytes() if path.is_file() else None
        for path in room.rglob("*")
        if "depthnet-temporary-" not in str(path)
    }


def own(room):
    """The folders that the page has made for visitors."""
    (page,) = room.glob("tmp/depthnet-temporary-*")
    return {path for path in page.iterdir() if path.name not in ("cache", "rooms")}


def hostile_sessions(room):
    yield from (
        "../victim",
        "x/../../victim",
        "x/../../../victim",
        "..",
        ".",
        "",
        "a/b",
        "a\0b",
        "~",
        "%2e%2e%2fvictim",
        "a" * 5000,
        "\udcff",
        str(room / "victim"),
        None,
        7,
        ["a"],
        {"path": "x"},
        True,
    )


def test_no_text_of_a_client_reaches_the_file_system(client, room):
    """Every event of the page, by the queue and directly, for sessions, files and values that are made up."""
    before, made = others(room), own(room)
    clip = client.upload("clip.avi", write_video(room / "clip.avi", 2).read_bytes())
    (room / "clip.avi").unlink()
    files = [
        file_data(clip),
        file_data(str(room / "victim" / "mine.txt")),
        file_data("../../../victim/mine.txt"),
        file_data("http://127.0.0.1:9/x.png"),
        file_data(["a"]),
        {"path": f"{clip}/../../../../victim/mine.txt"},
        "/etc/passwd",
        None,
        -1,
    ]
    for number, path in itertools.product(client.events, (EVENTS, DIRECT)):
        for session in hostile_sessions(room):
            data = client.data(number, files[0], "turbo")
            status, answer = client.post(path, {"session_hash": session, "fn_index": number, "data": data})
            assert status == 400, (number, path, session, answer)
        for file in files[1:6]:
            data = client.data(number, file, "../victim", 1e308)
            assert client.post(path, {"session_hash": "s", "fn_index": number, "data": [*data, file]})[0] == 400
    for session in hostile_sessions(room):
        if "/" in str(session):
            assert client.ask("GET", "/gradio_api/heartbeat/" + quote(str(session), safe=""))[0] == 404
    assert others(room) == before and own(room) == made


def test_values_out_of_their_range_end_in_an_error(client, room):
    before, session = others(room), "values"
    predict, show, save = (client.event(name) for name in ("predict", "show", "save"))
    picture = file_data(client.upload("p.png", encoded("RGB", "PNG")))
    assert client.result(session, predict, client.data(predict, picture))["success"]
    wrong_amounts = [("turbo", amount) for amount in (-1, 1e308, "x", [1])]
    for choice, amount in (("../victim", 0), (["turbo"], 0), ({"a": 1}, 0), *wrong_amounts):
        for number in (show, save):
            assert not client.result(session, number, client.data(number, None, choice, amount))["success"]
    not_a_number = client.data(show, None, "turbo", float("nan"))
    assert client.post(EVENTS, {"session_hash": session, "fn_index": show, "data": not_a_number})[0] == 400
    assert client.result(session, show, client.data(show, None, "turbo"))["success"]
    assert others(room) == before


def test_a_visitor_s_folder_goes_with_the_visitor(client, room):
    before, session = own(room), "visitor"
    heartbeat = http.client.HTTPConnection(client.host, timeout=60)
    heartbeat.request("GET", f"/gradio_api/heartbeat/{session}")
    beat = heartbeat.getresponse()
    assert beat.readline().startswith(b"data: ALIVE")
    predict, save, clip = (client.event(name) for name in ("predict", "save", "video"))
    picture = file_data(client.upload("../my $room.png", encoded("RGB", "PNG")))
    assert client.result(session, predict, client.data(predict, picture))["success"]
    saved = client.result(session, save, client.data(save, None, "turbo"))["output"]["data"]
    assert [Path(file["value"]["path"]).name for file in saved] == [
        f"my_room{ending}" for ending in ("_depth.png", "_side.png", "_depth16.png", "_depth.npy", ".ply")
    ]
    sent = client.upload("clip.avi", write_video(room / "tmp" / "clip.avi", 3).read_bytes())
    (room / "tmp" / "clip.avi").unlink()
    shown = client.result(session, clip, client.data(clip, file_data(sent), "turbo"))["output"]["data"][0]
    assert client.ask("GET", f"/gradio_api/file={shown['path']}")[1][4:8] == b"ftyp"
    (folder,) = own(room) - before
    assert session not in folder.name and len(list(folder.iterdir())) == 2  # the picture's, the video's
    beat.close()
    heartbeat.close()
    wait_for(lambda: not folder.exists())


def test_a_telephone_s_heic_is_said_to_be_one(client):
    predict = client.event("predict")
    sent = file_data(client.upload("renamed.jpg", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 99))
    answer = client.result("heic", predict, client.data(predict, sent))["output"]
    assert answer["error"] == "renamed.jpg: HEIC is not read: save it as JPEG or PNG first"


def test_the_depth_under_the_pointer_may_be_more_than_65_metres(client):
    """A photograph by a lens of 600 mm."""
    buffer = io.BytesIO()
    pixels = np.linspace(0, 255, 640).astype(np.uint8)[:, None] * np.ones((480, 1, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG", exif=taken_by(600))
    predict, show, save = (client.event(name) for name in ("predict", "show", "save"))
    picture = file_data(client.upload("tele.jpg", buffer.getvalue()))
    assert client.result("tele", predict, client.data(predict, picture))["success"]
    pointer = json.loads(client.result("tele", show, client.data(show, None, "turbo"))["output"]["data"][0])
    files = client.result("tele", save, client.data(save, None, "turbo"))["output"]["data"]
    (depth_m,) = (np.load(file["value"]["path"]) for file in files if file["value"]["path"].endswith(".npy"))
    units = np.frombuffer(base64.b64decode(pointer["depth"]), "<u2").reshape(pointer["height"], pointer["width"])
    assert depth_m.max() > 100
    np.testing.assert_allclose(
        units * pointer["unit"], cv2.resize(depth_m, units.shape[::-1], interpolation=cv2.INTER_NEAREST), atol=0.01
    )


def test_only_what_the_page_needs_is_answered(client, room):
    """What Gradio has besides: addresses that it fetches, videos that it converts, pages that it keeps."""
    session = "s"
    client.post(EVENTS, {"session_hash": session, "fn_index": client.event("stop"), "data": []})
    before = others(room)
    gets = f"monitoring deep_link?session_hash={session} file/etc/passwd user runs token dev/reload"
    for path in ("file=http://127.0.0.1:9/x", "file=https://example.com/", "proxy=http://127.0.0.1:9/x", *gets.split()):
        assert client.ask("GET", f"/gradio_api/{path}")[0] == 404, path
    for path in [
        "process_recording",
        "component_server",
        "stream/x",
        "call/predict",
        "api/predict",
        "vibe-edit",
        "login",
    ]:
        assert client.post(f"/gradio_api/{path}", {"session_hash": session, "data": [], "fn_index": 0})[0] == 404, path
    for path in (
        room / "victim" / "mine.txt",
        "/etc/passwd",
        ROOT / "app.py",
        room / "tmp" / ".." / "victim" / "mine.txt",
    ):
        assert client.ask("GET", f"/gradio_api/file={path}")[0] == 403
    number = client.event("predict")
    direct = client.post(DIRECT, {"session_hash": session, "fn_index": number, "data": client.data(number)})
    assert direct[0] == 404  # past the queue
    assert others(room) == before


def test_what_is_sent_has_a_size(client):
    json_type, form = ({"Content-Type": kind} for kind in ("application/json", "multipart/form-data; boundary=x"))
    assert client.ask("POST", EVENTS, b" " * 64_001, json_type)[0] == 413
    assert client.ask("POST", EVENTS, b"[" * 60_000, json_type)[0] == 400
    assert client.ask("POST", EVENTS, iter([b"{}"]), json_type)[0] == 411
    with socket.create_connection(client.host.split(":")) as connection:
        connection.sendall(b"POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Length: 200000001\r\n\r\n")
        assert b" 413 " in connection.recv(1000)
    assert client.ask("POST", "/gradio_api/upload", iter([b"--x--"]), form)[0] == 411


def test_a_full_disk_is_said_and_what_was_broken_off_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(gate, "MAX_STORED", 1000)
    cache = tmp_path / "cache"
    (cache / "sha").mkdir(parents=True)
    (cache / "sha" / "kept").write_bytes(b"x" * 900)
    door = gate.Gate(None, cache, tmp_path, {0}, 3600)
    door._check_room()
    (cache / "tmpxyz").write_bytes(b"x" * 200)
    with pytest.raises(gate.Refused, match="503"):
        door._check_room()
    for name in ("tmpxyz", "sha/kept"):
        os.utime(cache / name, (0, 0))
    door._check_room()
    door._check_room()
    assert [path.name for path in cache.rglob("*")] == ["sha", "kept"]


texts = st.text(max_size=9) | st.sampled_from(["turbo", "../victim", "/etc/passwd", "gradio.FileData"])
keys = st.sampled_from(["path", "url", "meta", "_type", "value", "index", "__type__", "x"])
made_up = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=8,
)


def test_events_that_are_made_up(client, room):
    """Whatever is sent: an answer, and nothing outside what the page has for visitors."""
    before = others(room)

    @bounded
    @given(
        body=st.fixed_dictionaries(
            {},
            optional={
                "session_hash": made_up | st.just("fuzz"),
                "data": st.lists(made_up, max_size=3) | made_up,
                "fn_index": st.sampled_from(sorted(client.events)) | made_up,
                **dict.fromkeys(("event_data", "event_id", "trigger_id", "simple_format", "batched"), made_up),
            },
        ),
        path=st.sampled_from([EVENTS, DIRECT]),
    )
    def one(body, path):
        assert client.post(path, body)[0] in (200, 400, 404, 422, 500, 503)

    one()
    assert others(room) == before
    assert client.ask("GET", "/")[0] == 200


def test_what_the_environment_holds_neither_stops_the_page_nor_opens_it(red_onnx, nyu, tmp_path):
    """At an address of IP version 6."""
    (tmp_path / "mine.txt").write_text("mine")
    proxies = dict.fromkeys(["http_proxy", "HTTPS_PROXY"], "http://127.0.0.1:9") | {"ALL_PROXY": "socks5://127.0.0.1:9"}
    opening = {
        "GRADIO_ALLOWED_PATHS": "/",
        "GRADIO_NUM_WORKERS": "1",
        "GRADIO_SERVER_NAME": "0.0.0.0",
        "GRADIO_TEMP_DIR": str(tmp_path),
    }
    with serving(red_onnx, "--examples", nyu, "--host", "::1", **proxies, **opening) as (address, _):
        client = Client(f"http://[::1]:{urlsplit(address).port}")
        assert client.ask("GET", "/")[0] == 200
        assert client.ask("GET", f"/gradio_api/file={tmp_path / 'mine.txt'}")[0] == 403
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.fixture(scope="module")
def page():
    return pytest.importorskip("web.page", reason="no Gradio (pip install -r requirements-app.txt)")


@pytest.mark.parametrize(
    ("host", "port", "text"),
    [
        ("no such host", 1, "--host no such host: "),
        ("192.0.2.1", 7860, "cannot serve at 192.0.2.1, port 7860: Cannot assign requested address: --host takes"),
    ],
)
def test_an_address_that_cannot_be_is_a_mistake(page, host, port, text):
    with pytest.raises(UserError, match=text):
        page._check_address(host, port)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "0.0.0.0"])
def test_a_port_that_is_taken_is_named(page, red_onnx, nyu, run, tmp_path, host):
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as taken:
        taken.bind((host, 0))
        taken.listen()
        port = taken.getsockname()[1]
        text = f"cannot serve at {host}, port {port}: Address already in use: --port takes another"
        with pytest.raises(UserError, match=text):
            page._check_address(host, port)
        if host == "0.0.0.0":
            line = f"app.py --examples {nyu} --host {host} --port {port}"
            assert text in one_line(run(line, *onnx_nets(red_onnx), cwd=tmp_path))


def test_mistakes_get_one_line(red_onnx, run, tmp_path):
    without = 'import sys; sys.modules["gradio"] = None'
    line = one_line(run("app.py", *onnx_nets(red_onnx), cwd=tmp_path, before=without))
    assert line == f"app.py: error: Python has no gradio: pip install -r {ROOT}/requirements-app.txt"
    line = one_line(run("app.py --port 70000", *onnx_nets(red_onnx), cwd=tmp_path))
    assert "--port 70000: expected 1 to 65535" in line


def test_it_serves_this_machine_alone_and_none_of_its_files(client):
    port = int(client.host.rsplit(":", 1)[1])
    listening = Path("/proc/net/tcp").read_text()
    assert f"0100007F:{port:04X} 00000000:0000 0A" in listening and f"00000000:{port:04X}" not in listening


def test_it_needs_no_mindspore_and_leaves_nothing_behind(red_onnx, tmp_path):
    (tmp_path / "mindspore.py").write_text("raise ImportError('MindSpore is not to be imported')")
    (tmp_path / "work").mkdir()
    with serving(red_onnx, PYTHONPATH=str(tmp_path), TMPDIR=str(tmp_path / "work")) as (address, process):
        assert urllib.request.urlopen(address).status == 200
        assert list((tmp_path / "work").iterdir())
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    assert not list((tmp_path / "work").glob("depthnet-temporary-*"))
