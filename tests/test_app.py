"""The page in a real browser, over nets whose depth is known: what is read off it, what is saved, what goes wrong."""

import contextlib
import os
import re
import shutil
import time

import cv2
import numpy as np
import pytest
from PIL import Image
from plyfile import PlyData

from src.data import image
from src.prediction.pointcloud import Intrinsics, points
from tests.conftest import paint, serving, write_video

playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright (pip install -r tests/requirements.txt)")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium (on Debian: apt install chromium)"),
]
NEAR_M, FAR_M = np.exp(2 * 51 / 255), np.exp(2 * 204 / 255)  # of a picture that is red by 51 left, and by 204 right


@pytest.fixture(scope="module")
def app(red_onnx, nyu):
    with serving(red_onnx, "--examples", nyu) as (address, _):
        yield address


@pytest.fixture(scope="module")
def browser():
    """browser(**options): one of several contexts of a real browser, a telephone's for instance; each has a cache."""
    with playwright.sync_playwright() as running:
        flags = ["--no-sandbox", "--enable-unsafe-swiftshader"]
        chromium = running.chromium.launch(executable_path=CHROMIUM, args=flags)
        contexts = {}

        def context_of(**options):
            key = str(options)
            if key not in contexts:
                contexts[key] = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
                # without a GPU, WebGPU complains and WebGL does not
                contexts[key].add_init_script("delete Navigator.prototype.gpu")
            return contexts[key]

        yield context_of
        chromium.close()


@contextlib.contextmanager
def watched(browser, address, expected=None, **options):
    """A tab at `address`. At its end: nothing was asked of another machine, and the console told of no error but the
    `expected` one."""
    tab, wrong = browser(**options).new_page(), []
    tab.set_default_timeout(90_000)  # a machine may have other work
    tab.on(
        "console",
        lambda message: message.type == "error"
        and not (expected and re.search(expected, message.text))
        and wrong.append(message.text),
    )
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("dialog", lambda dialog: wrong.append(f"dialog: {dialog.message}"))
    tab.on("request", lambda request: re.match(rf"{address}|data:|blob:", request.url) or wrong.append(request.url))
    tab.goto(address)
    tab.wait_for_selector("#picture input[type=file]", state="attached")
    yield tab
    assert wrong == []
    tab.close()


@pytest.fixture
def tab(browser, app):
    with watched(browser, app) as opened:
        yield opened


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """480x640, near on its left and far on its right; its name is one to be careful with."""
    pixels = np.zeros((480, 640, 3), np.uint8)
    pixels[:, :320, 0], pixels[:, 320:, 0] = 51, 204
    return paint(tmp_path_factory.mktemp("pictures") / "my $room & <b>.png", pixels)


def send(tab, path, element="#picture"):
    tab.set_input_files(f"{element} input[type=file]", path)


def shown(tab):
    """The box of the depth map, when it is there."""
    tab.wait_for_selector("#pointer canvas.map:visible")
    return tab.locator("#pointer canvas.map").bounding_box()


def point(tab, box, x, y):
    """Move the pointer to a place, in shares of the map; what is written above it."""
    tab.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
    return tab.locator("#pointer .here").inner_text()


def open_tab(tab, name):
    tab.get_by_role("tab", name=name, exact=True).click()


def toast(tab, text):
    tab.locator(".toast-body", has_text=text).wait_for()
    return tab.locator(".toast-body", has_text=text).inner_text()


def test_metres_under_the_pointer_and_between_two_points(tab, picture):
    send(tab, picture)
    box = shown(tab)
    assert point(tab, box, 0.2, 0.5) == f"{NEAR_M:.2f} m"
    assert point(tab, box, 0.8, 0.5) == f"{FAR_M:.2f} m"
    places = [(0.2, 0.3), (0.8, 0.6)]
    for x, y in places:
        tab.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])
    depth_m = np.where(np.arange(640) < 320, NEAR_M, FAR_M) * np.ones((480, 1))
    cloud = points(depth_m, Intrinsics.kinect(480, 640)).reshape(480, 640, 3)
    one, other = (cloud[round(y * 480), round(x * 640)] for x, y in places)
    written = tab.locator("#pointer .distance").inner_text()
    assert written.endswith(" m between the two points")
    np.testing.assert_allclose(float(written.split()[0]), np.linalg.norm(one - other), atol=0.02)
    assert tab.locator("#pointer .ticks span").last.inner_text() == f"{np.floor(FAR_M) + 1:g} m"


def test_the_colours_can_be_chosen(tab, picture):
    send(tab, picture)
    shown(tab)
    before = tab.locator("#pointer canvas.map").screenshot()
    tab.get_by_text("Options").click()
    tab.get_by_label("metres at the end").first.click()
    tab.keyboard.press("Control+a")
    tab.keyboard.type("10", delay=60)  # as a person does: what is set while the options open, Gradio takes back
    tab.locator("#pointer .ticks span", has_text="10 m").wait_for()
    assert tab.locator("#pointer canvas.map").screenshot() != before
    assert point(tab, shown(tab), 0.2, 0.5) == f"{NEAR_M:.2f} m"


def test_an_example_has_its_true_depth(tab, nyu):
    tab.locator("button.gallery-item").first.click()
    written = point(tab, shown(tab), 0.5, 0.5)
    first = sorted((nyu / "Test").glob("*_depth.png"))[0]
    true_m = image.load_test_depth(first)[240, 320]
    assert abs(float(re.search(r"true: ([\d.]+) m", written)[1]) - true_m) < 0.02
    open_tab(tab, "Nets")
    tab.locator("#nets img").nth(3).wait_for()
    captions = " ".join(tab.locator("#nets .caption-label").all_inner_texts())
    assert all(name in captions for name in ("CoarseNet", "FineNet", "true depth", "relative error"))


def test_the_slider_lays_depth_over_the_picture(tab, picture):
    send(tab, picture)
    shown(tab)
    open_tab(tab, "Compare")
    tab.locator("#compare img").nth(1).wait_for()
    before = tab.locator("#compare").screenshot()
    handle = tab.locator("#compare .inner").first.bounding_box()
    x, y = handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2
    tab.mouse.move(x, y)
    tab.mouse.down()
    tab.mouse.move(x - 150, y, steps=5)
    tab.mouse.up()
    assert tab.locator("#compare").screenshot() != before


def mesh_pixels(tab):
    return cv2.imdecode(np.frombuffer(tab.locator("#mesh canvas").screenshot(), np.uint8), cv2.IMREAD_COLOR_RGB)


def test_the_mesh_is_the_right_way_up_and_turns(tab, tmp_path):
    pixels = np.full((480, 640, 3), 128, np.uint8)
    pixels[:240] = (128, 255, 0)  # green above, blue below
    pixels[240:] = (128, 0, 255)
    send(tab, paint(tmp_path / "halves.png", pixels))
    shown(tab)
    open_tab(tab, "3D")
    tab.locator("#mesh canvas").wait_for()
    for _ in range(60):
        seen = mesh_pixels(tab).astype(int)
        green, blue = seen[..., 1] > seen[..., 2] + 60, seen[..., 2] > seen[..., 1] + 60
        if green.any() and blue.any():
            break
        time.sleep(0.5)
    assert np.nonzero(green)[0].mean() < np.nonzero(blue)[0].mean()
    box = tab.locator("#mesh canvas").bounding_box()
    tab.mouse.move(box["x"] + 300, box["y"] + 200)
    tab.mouse.down()
    tab.mouse.move(box["x"] + 200, box["y"] + 200, steps=5)
    tab.mouse.up()
    time.sleep(1)
    assert (mesh_pixels(tab) != seen).mean() > 0.01


def test_every_form_can_be_saved(tab, picture, tmp_path):
    send(tab, picture)
    shown(tab)
    open_tab(tab, "Files")
    saved = {}
    for kind in ("color", "side", "png16", "npy", "ply"):
        tab.locator(f"#file-{kind}:not([disabled])").wait_for()
        with tab.expect_download() as download:
            tab.locator(f"#file-{kind}").click()
        saved[kind] = tmp_path / download.value.suggested_filename
        download.value.save_as(saved[kind])
    depth_m = np.load(saved["npy"])
    assert depth_m.shape == (480, 640) and depth_m.dtype == np.float32
    np.testing.assert_allclose(depth_m[:, :280], NEAR_M, rtol=1e-4)
    np.testing.assert_allclose(depth_m[:, 360:], FAR_M, rtol=1e-4)
    np.testing.assert_array_equal(cv2.imread(str(saved["png16"]), cv2.IMREAD_UNCHANGED), np.rint(depth_m * 1000))
    assert "millimetres; looks black" in tab.locator("#file-png16").inner_text()
    vertices = PlyData.read(saved["ply"])["vertex"]
    np.testing.assert_allclose(vertices["z"], depth_m.ravel())
    assert len({path.name for path in saved.values()}) == 5 and all("room" in path.name for path in saved.values())
    assert Image.open(saved["side"]).width == 640 + Image.open(saved["color"]).width


def test_files_that_are_no_pictures_are_named(tab, picture, tmp_path):
    broken = tmp_path / "<img src=x onerror=alert(1)>.png"
    broken.write_text("no picture")
    send(tab, picture)
    shown(tab)
    send(tab, broken)
    written = toast(tab, "broken image")
    assert written.count("broken image") == 1 and "onerror" in written
    assert str(tmp_path) not in written and "depthnet-temporary" not in written
    tab.wait_for_selector("#pointer canvas.map", state="hidden")  # the earlier picture's depth is not shown for it
    Image.new("1", (20000, 20000)).save(tmp_path / "vast.png")
    send(tab, tmp_path / "vast.png")
    assert "vast.png: more than 64,000,000 pixels" in toast(tab, "refused")
    send(tab, picture)
    assert point(tab, shown(tab), 0.2, 0.5) == f"{NEAR_M:.2f} m"


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_video(
        tmp_path_factory.mktemp("clips") / "clip.mp4", [n % 256 for n in range(300)], (480, 360), "mp4v", 10
    )


def test_a_video_shows_its_progress_stops_and_plays(tab, clip, tmp_path):
    open_tab(tab, "Video")
    tab.click("#predict-video")
    toast(tab, "choose a video first")
    (tmp_path / "words.mp4").write_text("no video")
    send(tab, tmp_path / "words.mp4", "#video")
    tab.wait_for_selector("#video video", state="attached")
    tab.click("#predict-video")
    toast(tab, "words.mp4: not a readable video")
    tab.locator("#video button[aria-label=Clear]").click()
    send(tab, clip, "#video")
    tab.wait_for_selector("#video video", state="attached")
    tab.click("#predict-video")
    tab.get_by_text(re.compile(r"\d+/300 frames")).wait_for()
    tab.click("#stop-video")
    toast(tab, "stopped")
    tab.click("#predict-video")
    tab.wait_for_selector("#video-depth video", timeout=120_000)
    tab.wait_for_function("document.querySelector('#video-depth video').readyState >= 1")
    facts = tab.evaluate(
        "(({videoWidth, videoHeight, duration, error}) => [videoWidth, videoHeight, duration, error])"
        "(document.querySelector('#video-depth video'))"
    )
    assert facts[0] > 640 and facts[1] == 360 and abs(facts[2] - 30) < 0.2 and facts[3] is None


def test_a_video_of_over_a_minute_is_refused(tab, tmp_path):
    write_video(tmp_path / "long.mp4", [0] * 70, (64, 48), "mp4v", 1)
    open_tab(tab, "Video")
    send(tab, tmp_path / "long.mp4", "#video")
    tab.wait_for_selector("#video video", state="attached")
    tab.click("#predict-video")
    toast(tab, "70 s long; expected at most 60 s")


def test_two_visitors_do_not_meet(browser, app, picture, tmp_path):
    paint(tmp_path / "other.png", 102, (480, 640))
    with watched(browser, app) as one, watched(browser, app, locale="en-GB") as other:  # a context each
        send(one, picture)
        send(other, tmp_path / "other.png")
        assert point(one, shown(one), 0.2, 0.5) == f"{NEAR_M:.2f} m"
        assert point(other, shown(other), 0.2, 0.5) == f"{np.exp(2 * 102 / 255):.2f} m"


def test_who_comes_to_a_full_queue_is_told(browser, red_onnx, clip, picture):
    with serving(red_onnx, "--queue", 1) as (address, _), contextlib.ExitStack() as tabs:
        first, second, third = (tabs.enter_context(watched(browser, address, "503")) for _ in range(3))
        open_tab(first, "Video")
        send(first, clip, "#video")
        first.wait_for_selector("#video video", state="attached")
        first.click("#predict-video")
        first.get_by_text(re.compile(r"\d+/300 frames")).wait_for()
        send(second, picture)
        time.sleep(1)
        send(third, picture)
        toast(third, "currently busy. Please try again")
        first.click("#stop-video")
        shown(second)


def test_on_a_telephone_nothing_is_cut_off(browser, app, picture):
    with watched(browser, app, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True) as tab:
        send(tab, picture)
        box = shown(tab)
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
        tab.locator("#pointer canvas.map").tap(position={"x": 0.2 * box["width"], "y": 0.5 * box["height"]})
        assert f"{NEAR_M:.2f} m" in tab.locator("#pointer .read").inner_text()
