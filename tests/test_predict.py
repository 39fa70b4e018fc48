"""Pictures of any size to depth: where it lies, that both runtimes agree, and the command with all its outputs."""

import argparse
import os
import subprocess
import sys

import cv2
import mindspore as ms
import numpy as np
import pytest
from PIL import Image
from plyfile import PlyData

from src import metrics
from src.base import cli
from src.base.errors import UserError
from src.data import image
from src.net import FineNet, PaperCoarseNet
from src.nets import nets
from src.nets.checkpoint import CheckpointError
from src.prediction import predict
from src.prediction.pointcloud import Intrinsics
from src.prediction.predict import DepthPredictor
from tests.conftest import ODD, ROOT, as_it_is, onnx_nets, red_is_depth, write_video


def cli_options(*arguments):
    parser = argparse.ArgumentParser()
    cli.add_nets(parser)
    return parser.parse_args(list(map(str, arguments)))


SIZES = [(480, 640), (1080, 1920), (300, 300), (3000, 4000), (640, 480), (200, 900)]


@pytest.mark.parametrize("size", SIZES)
def test_depth_edges_lie_over_those_of_the_picture(size):
    """A checkerboard of near and far: every edge comes back within one output cell."""
    height, width = size
    rows, columns = np.arange(height)[:, None] * 4 // height, np.arange(width) * 5 // width
    far = (rows + columns) % 2 == 1
    rgb = np.where(far[..., None], (255, 0, 0), (0, 0, 255)).astype(np.uint8)
    depth_m = DepthPredictor(red_is_depth, as_it_is)(rgb)
    assert depth_m.shape == size and depth_m.dtype == np.float32
    window = predict.windows(height, width)[0][2:]
    cell = max(window[0] * 456 / 480 / 55, window[1] * 608 / 640 / 74)
    near_an_edge = (
        cv2.dilate(
            cv2.morphologyEx(far.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3))),
            np.ones((2 * int(np.ceil(cell)) + 1,) * 2),
        )
        > 0
    )
    border = int(np.ceil(0.03 * max(window)))  # what the nets do not see is continued from what they do
    inner = (slice(border, height - border), slice(border, width - border))
    assert (~near_an_edge[inner]).sum() > 0.3 * far[inner].size
    assert ((depth_m > 5) == far)[inner][~near_an_edge[inner]].all()
    edges = np.flatnonzero(np.diff((depth_m[height * 3 // 8] > 5).astype(int)))[1:-1] + 1
    assert np.abs(edges[:, None] - np.arange(1, 5) * width / 5).min(1).max() <= cell


def test_a_picture_of_nyu_s_size_gets_what_the_protocol_eigen_scores():
    rng = np.random.default_rng(0)
    log_depth = rng.uniform(0, 2, (1, 1, 55, 74)).astype(np.float32)
    depth_m = DepthPredictor(lambda rgb: log_depth, as_it_is)(rng.integers(0, 256, (480, 640, 3), np.uint8))
    rows, columns = metrics.VIEW_ROWS, metrics.VIEW_COLUMNS
    expected = cv2.resize(np.exp(log_depth[0, 0].astype(np.float64)), (608, 456))
    np.testing.assert_allclose(depth_m[slice(*rows), slice(*columns)], expected, rtol=1e-5)
    np.testing.assert_allclose(depth_m[0], depth_m[12], rtol=1e-6)  # continued to the border
    np.testing.assert_allclose(depth_m[:, -1], depth_m[:, 623], rtol=1e-6)


def test_the_nets_are_given_what_training_gives_them(nyu):
    seen = []
    path = sorted((nyu / "Test").glob("*_colors.png"))[0]
    DepthPredictor(lambda rgb: seen.append(rgb) or red_is_depth(rgb), as_it_is)(path)
    np.testing.assert_array_equal(seen[0][0], image.network_rgb(image.load_rgb(path)))


@pytest.mark.parametrize("size", SIZES)
def test_windows_cover_the_picture(size):
    covered = np.zeros(size, bool)
    for top, left, height, width in predict.windows(*size):
        assert width / height == pytest.approx(4 / 3) and top >= 0 and left >= 0
        assert top + height <= size[0] + 1e-6 and left + width <= size[1] + 1e-6
        covered[round(top) : round(top + height), round(left) : round(left + width)] = True
    assert covered.all()
    assert len(predict.windows(480, 640)) == len(predict.windows(427, 561)) == 1
    assert len(predict.windows(1080, 1920)) == 2
    assert [len(predict.windows(480, width)) for width in (671, 673)] == [1, 2]  # 5 % of a window of 640
    assert predict.windows(480, 660) == [(0, 10, 480, 640)]  # a single one is in the middle


@pytest.mark.parametrize(("shape", "batches"), [((480, 640), [8, 1]), ((480, 1280), [8, 8, 2])])
def test_eight_windows_go_through_the_nets_at_once(shape, batches):
    seen = []
    predictor = DepthPredictor(lambda rgb: seen.append(len(rgb)) or red_is_depth(rgb), as_it_is)
    predictor.predict([np.zeros((*shape, 3), np.uint8)] * 9)
    assert seen == batches


def test_predictions_do_not_depend_on_the_batch():
    rng = np.random.default_rng(1)
    pictures = [rng.integers(0, 256, (*size, 3), np.uint8) for size in ((300, 300), (480, 640), (200, 600))]
    together = DepthPredictor(red_is_depth, as_it_is, batch_size=4).predict(pictures)
    for picture, depth_m in zip(pictures, together, strict=True):
        np.testing.assert_array_equal(DepthPredictor(red_is_depth, as_it_is, batch_size=1)(picture), depth_m)


@pytest.fixture(scope="module")
def onnx(exported):
    return [exported / "ONNX" / f"Final{name}Net.onnx" for name in ("Coarse", "Fine")]


def test_both_runtimes_predict_the_same(trained, onnx, nyu):
    checkpoints = [trained / "Model" / "Ckpt" / f"Final{net}Net.ckpt" for net in ("Coarse", "Fine")]
    pictures = [image.load_rgb(path) for path in sorted((nyu / "Test").glob("*_colors.png"))]
    for ours, theirs in zip(
        DepthPredictor(*checkpoints).predict(pictures), DepthPredictor(*onnx).predict(pictures), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_swapped_or_missing_nets_are_named(red_onnx, tmp_path):
    coarse, fine = red_onnx
    with pytest.raises(UserError, match="takes rgb, coarse_log_depth, but the coarse net takes rgb: "):
        DepthPredictor(fine, fine)
    with pytest.raises(UserError, match="takes rgb, but the fine net takes rgb, coarse_log_depth: "):
        DepthPredictor(coarse, coarse)
    with pytest.raises(UserError, match=r"absent\.onnx: no such file"):
        DepthPredictor(tmp_path / "absent.onnx", fine)
    with pytest.raises(CheckpointError, match=r"absent\.pth: no such checkpoint"):
        DepthPredictor(tmp_path / "absent.pth", fine)
    (tmp_path / "broken.onnx").write_bytes(b"no")
    with pytest.raises(UserError, match=r"broken\.onnx: not a readable ONNX file"):
        DepthPredictor(tmp_path / "broken.onnx", fine)


def test_onnx_files_checkpoints_and_functions_may_be_mixed(red_onnx, tmp_path):
    rgb = np.full((480, 640, 3), 102, np.uint8)
    options = cli_options("--coarse_onnx", red_onnx[0], "--fine_onnx", red_onnx[1], "--batch_size", 3, "--flip_average")
    of_files = predict.from_options(options)
    assert (of_files.batch_size, of_files.nets.flip_average) == (3, True)
    np.testing.assert_allclose(of_files(rgb), np.exp(2 * 102 / 255), rtol=1e-5)
    ms.set_seed(0)
    coarse, fine = PaperCoarseNet(), FineNet()
    for net, name in ((coarse, "coarse.ckpt"), (fine, "fine.ckpt")):
        ms.save_checkpoint(net, str(tmp_path / name))
    seen = ms.Tensor(image.network_rgb(rgb)[None])
    with_red = fine(seen, ms.Tensor(np.full((1, 1, 55, 74), 2 * 102 / 255, np.float32))).asnumpy()[0, 0]
    maps = DepthPredictor(red_onnx[0], tmp_path / "fine.ckpt").maps([rgb], ["grey"])
    np.testing.assert_allclose(maps[0][0][1]["FineNet"], np.exp(with_red), rtol=1e-4)
    maps = DepthPredictor(tmp_path / "coarse.ckpt", as_it_is).maps([rgb], ["grey"])
    np.testing.assert_allclose(maps[0][0][1]["FineNet"], np.exp(coarse(seen).asnumpy()[0, 0]), rtol=1e-4)


def test_the_default_nets_are_those_of_the_folder_or_else_the_shipped_ones(monkeypatch, tmp_path):
    def is_taken(path, kind):
        return f"{kind}: {path.parent.name}/{path.name}"

    def taken(*files):
        predictor = DepthPredictor(*files)
        return predictor.nets.coarse, predictor.nets.fine

    monkeypatch.setattr(nets, "_load", is_taken)
    monkeypatch.setattr(cli, "MODEL", tmp_path / "Model")
    assert taken() == ("coarse: weights/PaperCoarseNet.ckpt", "fine: weights/FineNet.ckpt")
    (tmp_path / "Model" / "Ckpt").mkdir(parents=True)
    (tmp_path / "Model" / "Ckpt" / "FinalCoarseNet.ckpt").touch()
    assert taken() == ("coarse: Ckpt/FinalCoarseNet.ckpt", "fine: Ckpt/FinalFineNet.ckpt")
    assert taken(None, tmp_path / "x" / "y.ckpt")[1] == "fine: x/y.ckpt"
    assert taken(tmp_path / "x" / "y.ckpt")[0] == "coarse: x/y.ckpt"


def test_a_single_window_reaches_the_borders_of_what_is_almost_its_ratio():
    for size in ((480, 672), (504, 640), (480, 640), (480, 665), (1440, 1995)):
        assert len(predict.windows(*size)) == 1
        depth_m = DepthPredictor(red_is_depth, as_it_is)(np.full((*size, 3), 51, np.uint8))
        np.testing.assert_allclose(depth_m, np.full(size, 1 + 8 * 51 / 255), rtol=1e-4)


def test_only_a_strip_is_no_picture():
    predictor = DepthPredictor(lambda rgb: np.zeros((len(rgb), 1, 55, 74), np.float32), as_it_is)
    assert predictor(np.zeros((10, 500, 3), np.uint8)).shape == (10, 500)
    for size in ((10, 501), (501, 10)):
        with pytest.raises(image.SizeError, match=f"picture 1: {size[0]}x{size[1]} .*at most 50:1"):
            predictor.predict([np.zeros((10, 10, 3), np.uint8), np.zeros((*size, 3), np.uint8)])


def test_the_nearer_to_its_border_the_less_a_window_counts():
    """Two windows that disagree: between them the mean by the distance to the border of each."""
    for width in (800, 960):
        places = predict.windows(480, width)
        maps = [
            (place, {"FineNet": np.full((55, 74), value, np.float32)})
            for place, value in zip(places, (1.0, 3.0), strict=True)
        ]
        starts = 0, width - 640
        assert [place[1] for place in places] == [*starts] and places[1][3] == 640
        centres, rows = np.arange(width) + 0.5, np.arange(480) + 0.5
        down = np.minimum(rows, 480 - rows)[:, None]
        inside = [down * np.minimum(centres - start, start + 640 - centres).clip(0) for start in starts]
        expected = (inside[0] + 3 * inside[1]) / (inside[0] + inside[1])
        np.testing.assert_allclose(predict.blended((480, width), maps), expected, rtol=1e-4)


def test_a_window_has_whole_pixels_and_at_least_one():
    seen = []
    predictor = DepthPredictor(lambda rgb: seen.append(rgb) or red_is_depth(rgb), as_it_is)
    picture = np.random.default_rng(3).integers(0, 256, (1, 40, 3), np.uint8)  # windows of 1 x 4/3 pixels
    assert predictor(picture).shape == (1, 40)
    places = predict.windows(1, 40)
    for (_, left, _, width), rgb in zip(places, np.concatenate(seen), strict=True):
        np.testing.assert_array_equal(rgb, image.network_rgb(picture[:, round(left) : round(left + width)]))
    assert predict._pixels(9.5, 1.0) == slice(10, 11)


def test_whatever_a_picture_is_given_as_its_depth_is_the_same(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    grey = pixels[..., 0]
    alpha = np.full((48, 64, 1), 7, np.uint8)
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "a.png")
    colours = [
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        picture,
        picture.convert("RGBA"),
        pixels / 255,
        (pixels / 255).astype(np.float32),
        (pixels / 255).astype(np.float16),
        pixels.astype(np.uint16) * 257,
        np.dstack([pixels, alpha]),
        np.dstack([pixels, alpha]) / 255,
        pixels.transpose(2, 0, 1),
        pixels.transpose(2, 0, 1) / 255,
        np.asfortranarray(pixels),
        pixels[::-1][::-1],
    ]
    greys = [
        np.dstack([grey] * 3),
        grey,
        grey[..., None],
        grey[None],
        grey / 255,
        Image.fromarray(grey),
        Image.fromarray(grey.astype(np.uint16) * 257),
        Image.fromarray((grey / 255).astype(np.float32)),
        Image.fromarray(grey).convert("LA"),
    ]
    predictor = DepthPredictor(red_is_depth, as_it_is)
    for forms in (colours, greys):
        expected = predictor(np.ascontiguousarray(forms[2] if forms is colours else forms[0]))
        for number, form in enumerate(forms):
            np.testing.assert_array_equal(predictor(form), expected, err_msg=str(number))
    black_and_white = Image.fromarray(grey > 99)
    np.testing.assert_array_equal(predictor(grey > 99), predictor(black_and_white))


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (np.full((48, 64, 3), 200.0), "picture 0: float64 from 200.0 to 200.0: expected"),
        (np.full((48, 64, 3), -0.1), "picture 0: float64 from -0.1 to -0.1"),
        (np.full((48, 64, 3), np.nan), "picture 0: float64 from nan to nan"),
        (np.zeros((48, 64, 3), np.int64), "picture 0: int64 from 0 to 0"),
        (np.zeros((48, 64, 3), complex), "picture 0: complex128"),
        (np.zeros((48, 64, 2), np.uint8), r"picture 0: an array of shape \(48, 64, 2\)"),
        (np.zeros((1, 48, 64, 3), np.uint8), r"picture 0: an array of shape \(1, 48, 64, 3\)"),
        (np.zeros((0, 64, 3), np.uint8), r"picture 0: an array of shape \(0, 64, 3\)"),
        (np.zeros(64, np.uint8), r"picture 0: an array of shape \(64,\)"),
        ([[1, 2]], "picture 0: list: expected"),
        (None, "picture 0: NoneType: expected"),
        (ms.Tensor(np.zeros((48, 64, 3), np.uint8)), "picture 0: Tensor: expected"),
    ],
)
def test_what_is_no_picture_is_said_in_a_sentence(given, text):
    with pytest.raises(image.ImageError, match=text):
        DepthPredictor(red_is_depth, as_it_is)(given)


def test_the_class_says_what_a_fork_does():
    assert "fork" in DepthPredictor.__doc__


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of pictures in folders, one of them broken, and a video."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(5)
    for name, size in (("a.jpg", (300, 420)), ("inner/b.png", (480, 640)), ("inner/b.jpg", (120, 90))):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(cv2.GaussianBlur(rng.integers(0, 256, (*size, 3), np.uint8), (9, 9), 0)).save(path)
    (folder / "inner" / "broken.jpg").write_bytes((folder / "a.jpg").read_bytes()[:700])
    (folder / "notes.txt").write_text("not a picture")
    return folder


@pytest.fixture(scope="module")
def without_mindspore(tmp_path_factory):
    """A PYTHONPATH on which importing MindSpore fails."""
    folder = tmp_path_factory.mktemp("path")
    (folder / "mindspore.py").write_text("raise ImportError('no MindSpore here')\n")
    return str(folder)


def test_the_command_on_a_folder_without_mindspore(pictures, onnx, run, without_mindspore, tmp_path):
    arguments = [
        "--coarse_onnx",
        onnx[0],
        "--fine_onnx",
        onnx[1],
        "--output_dir",
        "out",
        "--save",
        "color",
        "png16",
        "npy",
        "ply",
        "side",
    ]
    result = run("predict.py", "--input", pictures, *arguments, cwd=tmp_path, PYTHONPATH=without_mindspore)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "inner/broken.jpg: broken image" in result.stdout and "1 of 4 failed" in result.stderr
    out = tmp_path / "out"
    made = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert made == {
        f"{name}{ending}"
        for name in ("a", "inner/b_png", "inner/b_jpg")
        for ending in ("_depth.png", "_depth16.png", "_depth.npy", ".ply", "_side.png")
    }
    rgb, depth_m = image.load_rgb(pictures / "a.jpg"), np.load(out / "a_depth.npy")
    assert depth_m.shape == (300, 420) and depth_m.dtype == np.float32
    np.testing.assert_allclose(depth_m, DepthPredictor(*onnx)(rgb), rtol=1e-6)
    millimetres = cv2.imread(str(out / "a_depth16.png"), cv2.IMREAD_UNCHANGED)
    assert millimetres.dtype == np.uint16 and np.abs(millimetres / 1000 - depth_m).max() <= 0.00051
    coloured, side = image.load_rgb(out / "a_depth.png"), image.load_rgb(out / "a_side.png")
    np.testing.assert_array_equal(side[:, :420], rgb)
    np.testing.assert_array_equal(side[:, 420:], coloured)
    assert (np.ptp(coloured[:, 440:], axis=(0, 1)) > 100).all()  # the scale bar
    vertices = PlyData.read(out / "a.ply")["vertex"]
    assert len(vertices) == depth_m.size
    np.testing.assert_allclose(vertices["z"], depth_m.ravel())
    np.testing.assert_array_equal(np.stack([vertices[c] for c in ("red", "green", "blue")], 1), rgb.reshape(-1, 3))
    camera = Intrinsics.kinect(300, 420)
    np.testing.assert_allclose(
        camera.fx * vertices["x"] / vertices["z"] + camera.cx, np.tile(np.arange(420), 300), atol=1e-2
    )
    again = run("predict.py", "--input", pictures / "a.jpg", *arguments, cwd=tmp_path)
    assert again.returncode == 2 and "out/a_depth.png is there already: --overwrite" in again.stderr
    again = run("predict.py", "--input", str(pictures / "*.jpg"), *arguments, "--overwrite", cwd=tmp_path)
    assert again.returncode == 0, again.stderr


def test_the_command_on_a_video_and_with_checkpoints(pictures, trained, forked, tmp_path):
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 12, (160, 120))
    for level in range(5):
        writer.write(np.full((120, 160, 3), 50 * level, np.uint8))
    writer.release()
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    checkpoints = [trained / "Model" / "Ckpt" / f"Final{net}Net.ckpt" for net in ("Coarse", "Fine")]
    result = forked(
        "predict.py",
        "--input",
        path,
        tmp_path / "broken.mp4",
        "--coarse_ckpt_model",
        checkpoints[0],
        "--fine_ckpt_model",
        checkpoints[1],
        "--save",
        "side",
        "npy",
        "--batch_size",
        2,
        cwd=tmp_path,
    )
    assert result.returncode == 1 and "broken.mp4: not a readable video" in result.stdout, result.stdout + result.stderr
    video = cv2.VideoCapture(str(tmp_path / "predictions" / "clip_side.mp4"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 5 and video.get(cv2.CAP_PROP_FPS) == 12
    assert video.get(cv2.CAP_PROP_FRAME_HEIGHT) == 120 and video.get(cv2.CAP_PROP_FRAME_WIDTH) > 320
    frames = sorted((tmp_path / "predictions" / "clip_frames").glob("*.npy"))
    assert [path.name for path in frames] == [f"{number:06d}_depth.npy" for number in range(5)]
    assert not list((tmp_path / "predictions").glob(".*"))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--input", "absent.jpg"], "absent.jpg: no picture or video"),
        (["--input", ".", "--colormap", "rainbows"], "rainbows: unknown to matplotlib"),
        (["--input", ".", "--coarse_onnx", "a.onnx"], "belong together"),
        (["--input", ".", "--fx", "500"], "--fx --fy --cx --cy together"),
        (["--input", ".", "--fov", "190"], "less than 180"),
    ],
)
def test_mistakes_get_one_line(forked, tmp_path, arguments, text):
    result = forked("predict.py", *arguments, cwd=tmp_path)
    assert result.returncode == 2 and text in result.stderr and "Traceback" not in result.stderr


def test_a_flip_average_is_the_mean_with_the_mirror_image():
    """Of a net that sees twice as deep on the left."""
    leans = np.log(np.linspace(2, 1, 74, dtype=np.float32))
    rgb = np.tile(np.linspace(0, 255, 640).astype(np.uint8)[:, None], (480, 1, 3))  # redder on the right

    def coarse(rgb):
        return red_is_depth(rgb) + leans

    average = DepthPredictor(coarse, as_it_is, flip_average=True)
    ours, mirrored = average(rgb), average(np.ascontiguousarray(rgb[:, ::-1]))
    np.testing.assert_allclose(ours, mirrored[:, ::-1], rtol=1e-4)
    alone = [DepthPredictor(coarse, as_it_is)(one) for one in (rgb, np.ascontiguousarray(rgb[:, ::-1]))]
    assert np.abs(alone[0] - alone[1][:, ::-1]).max() > 0.5
    seen = (slice(20, 460), slice(24, 616))
    np.testing.assert_allclose(np.log(ours)[seen], (np.log(alone[0]) + np.log(alone[1][:, ::-1]))[seen] / 2, atol=0.1)


def test_a_longer_lens_means_a_deeper_scene_and_another_camera(onnx, run, tmp_path):
    """One picture, as if taken by three lenses: what fills as much of the picture of a lens twice as long is twice as
    far away, and as wide."""
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8))
    for name, focal_mm in (("short", 25), ("long", 50), ("unknown", None)):
        exif = Image.Exif()
        if focal_mm:
            exif.get_ifd(0x8769)[0xA405] = focal_mm
        pixels.save(tmp_path / f"{name}.jpg", exif=exif)
    result = run(
        "predict.py",
        "--input",
        tmp_path,
        "--coarse_onnx",
        onnx[0],
        "--fine_onnx",
        onnx[1],
        "--save",
        "npy",
        "ply",
        "--output_dir",
        "out",
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    short, long, unknown = (np.load(tmp_path / "out" / f"{name}_depth.npy") for name in ("short", "long", "unknown"))
    np.testing.assert_allclose(long, 2 * short, rtol=1e-5)
    focal = 25 / np.hypot(36, 24) * 500  # in pixels of the picture's diagonal, 500
    np.testing.assert_allclose(short, unknown * focal / (518.86 * 400 / 640), rtol=1e-5)
    assert result.stdout.count("long.jpg: another lens than the Kinect's, by its EXIF: depth times") == 1
    wide = [np.ptp(PlyData.read(tmp_path / "out" / f"{name}.ply")["vertex"]["x"]) for name in ("short", "long")]
    np.testing.assert_allclose(wide[1], wide[0], rtol=1e-4)
    result = run(
        "predict.py",
        "--input",
        tmp_path / "long.jpg",
        "--coarse_onnx",
        onnx[0],
        "--fine_onnx",
        onnx[1],
        "--save",
        "npy",
        "--camera",
        "nyu",
        "--output_dir",
        "nyu",
        cwd=tmp_path,
    )
    np.testing.assert_array_equal(np.load(tmp_path / "nyu" / "long_depth.npy"), unknown)


def test_names_that_are_not_utf_8_go_through_predict(red_onnx, run, tmp_path):
    folder = tmp_path / ODD
    folder.mkdir()
    write_video(tmp_path / "clip.avi", 3).rename(folder / f"{ODD}.avi")
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(tmp_path / "p.png")
    (tmp_path / "p.png").rename(folder / f"{ODD}.png")
    (folder / f"{ODD} broken.jpg").write_bytes(b"no picture")
    result = run(
        "predict.py",
        "--input",
        folder,
        "--output_dir",
        tmp_path / "out",
        "--save",
        "side",
        "npy",
        *onnx_nets(red_onnx),
        cwd=tmp_path,
    )
    assert result.returncode == 1 and "a$_$ \\xff\\xfe café broken.jpg: broken image" in result.stdout, result.stderr
    made = {os.fsencode(path.name) for path in (tmp_path / "out").iterdir()}
    stem = os.fsencode(ODD)
    assert made == {stem + b"_avi_side.mp4", stem + b"_avi_frames", stem + b"_png_side.png", stem + b"_png_depth.npy"}


def test_a_strip_of_pixels_is_refused_and_a_wide_picture_takes_its_own_memory(weights, forked, tmp_path):
    Image.fromarray(np.zeros((1, 65500), np.uint8)).save(tmp_path / "strip.png")
    Image.fromarray(np.zeros((200, 9000, 3), np.uint8)).save(tmp_path / "wide.png")
    code = f"""
import pathlib, re, runpy, sys
sys.path.insert(0, {str(ROOT)!r})
sys.argv = ['predict.py', '--input', 'strip.png', 'wide.png', '--save', 'npy', *{[str(x) for x in nets(weights)]}]
try:
    runpy.run_path({str(ROOT / "predict.py")!r}, run_name='__main__')
finally:
    peak = re.search('VmHWM: *(.*) kB', pathlib.Path('/proc/self/status').read_text().replace('\\t', ' '))
    print('peak', int(peak[1]) // 1024)  # ru_maxrss would be that of who started it, where that is larger
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (
        result.returncode == 1
        and "strip.png: 1x65500 (height x width): expected a ratio of at most 50:1" in result.stdout
    )
    assert np.load(tmp_path / "predictions" / "wide_depth.npy").shape == (200, 9000)
    assert int(result.stdout.split("peak ")[1]) < 2500  # MB; MindSpore and the net are 1,100


def test_a_photograph_of_108_megapixels_takes_the_memory_of_a_quarter(red_onnx, forked, tmp_path):
    """And of 249, as far as it is decoded."""
    small = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    for name, size in (("108", (12000, 9000)), ("249", (18200, 13650))):
        cv2.imwrite(
            str(tmp_path / f"{name}.jpg"),
            cv2.resize(small, size, interpolation=cv2.INTER_NEAREST),
            [cv2.IMWRITE_JPEG_QUALITY, 30],
        )
    result = forked(
        "predict.py", "--input", "108.jpg", "--save", "png16", *onnx_nets(red_onnx), cwd=tmp_path, megabytes=1000
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "108.jpg: 9000x12000 is more than 64,000,000 pixels: read at half its size, 4500x6000" in result.stdout
    with Image.open(tmp_path / "predictions" / "108_depth16.png") as depth:
        assert depth.size == (6000, 4500)
    answer = forked("load_rgb", "249.jpg", cwd=tmp_path, megabytes=800)
    assert answer.returncode == 0 and "(6825, 9100, 3)" in answer.stdout, answer.stderr


# What is not there, or refuses, on one of them; then the command as it is typed.
ELSEWHERE = """
import ctypes, os, runpy, signal, sys
for module in ("fcntl", "resource", "pwd", "mindspore", "scipy", "h5py", "onnx"):
    sys.modules[module] = None
for owner, name in ((os, "sched_getaffinity"), (os, "fork"), (signal, "pthread_sigmask"), (signal, "sigwait"),
                    (signal, "SIGHUP")):
    delattr(owner, name)
sys.path.insert(0, os.path.dirname(sys.argv[1]))
opened = os.open
def of_a_file(path, *rest, **named):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", path)
    return opened(path, *rest, **named)
os.open = of_a_file
load = ctypes.CDLL.__init__
def of_a_name(self, name, *rest, **named):
    if name is None:
        raise TypeError("bad argument type for built-in operation")
    load(self, name, *rest, **named)
ctypes.CDLL.__init__ = of_a_name
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_onnx_files_predict_where_linux_is_not(red_onnx, tmp_path):
    pixels = np.zeros((480, 640, 3), np.uint8)
    pixels[..., 0] = 102
    Image.fromarray(pixels).save(tmp_path / "a picture.png")
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            ELSEWHERE,
            ROOT / "predict.py",
            "--input",
            "a picture.png",
            "--save",
            "npy",
            "color",
            "ply",
            "--coarse_onnx",
            red_onnx[0],
            "--fine_onnx",
            red_onnx[1],
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    np.testing.assert_allclose(np.load(tmp_path / "predictions" / "a picture_depth.npy"), np.exp(0.8), rtol=1e-4)
    assert (tmp_path / "predictions" / "a picture.ply").exists()
