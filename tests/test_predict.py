"""Pictures of any size to depth: where it lies, that both runtimes agree, and the command with all its outputs."""

import argparse
import os

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
from tests.conftest import DEBIAN_12, ODD, as_it_is, ckpt_nets, onnx_nets, paint, red_is_depth, taken_by, write_video
from tests.test_commands import one_line


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


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of pictures in folders, one of them broken."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(5)
    for name, size in (("a.jpg", (300, 420)), ("inner/b.png", (480, 640)), ("inner/b.jpg", (120, 90))):
        paint(folder / name, cv2.GaussianBlur(rng.integers(0, 256, (*size, 3), np.uint8), (9, 9), 0))
    (folder / "inner" / "broken.jpg").write_bytes((folder / "a.jpg").read_bytes()[:700])
    (folder / "notes.txt").write_text("not a picture")
    return folder


def test_the_command_on_a_folder_without_mindspore(pictures, red_onnx, run, tmp_path):
    arguments = ["--output_dir", "out", "--save", "color", "png16", "npy", "ply", "side", *onnx_nets(red_onnx)]
    result = run(f"predict.py --input {pictures}", *arguments, cwd=tmp_path, before=DEBIAN_12)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "inner/broken.jpg: broken image" in result.stdout and "1 of 4 failed" in result.stderr
    out = tmp_path / "out"
    endings = ("_depth.png", "_depth16.png", "_depth.npy", ".ply", "_side.png")
    expected = {f"{name}{ending}" for name in ("a", "inner/b_png", "inner/b_jpg") for ending in endings}
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == expected
    rgb, depth_m = image.load_rgb(pictures / "a.jpg"), np.load(out / "a_depth.npy")
    assert depth_m.shape == (300, 420) and depth_m.dtype == np.float32
    np.testing.assert_allclose(depth_m, DepthPredictor(*red_onnx)(rgb), rtol=1e-6)
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
    columns = camera.fx * vertices["x"] / vertices["z"] + camera.cx
    np.testing.assert_allclose(columns, np.tile(np.arange(420), 300), atol=1e-2)
    again = run(f"predict.py --input {pictures}/a.jpg", *arguments, cwd=tmp_path)
    assert "out/a_depth.png is there already: --overwrite" in one_line(again)
    again = run(f"predict.py --input {pictures}/*.jpg --overwrite", *arguments, cwd=tmp_path)
    assert again.returncode == 0, again.stderr


def test_the_command_on_a_video_and_with_checkpoints(untrained, forked, tmp_path):
    write_video(tmp_path / "clip.avi", range(0, 250, 50))
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    line = "predict.py --input clip.avi broken.mp4 --save side npy --batch_size 2"
    result = forked(line, *ckpt_nets(untrained), cwd=tmp_path)
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
        ("absent.jpg", "absent.jpg: no picture or video"),
        (". --colormap rainbows", "rainbows: unknown to matplotlib"),
        (". --coarse_onnx a.onnx", "belong together"),
        (". --fx 500", "--fx --fy --cx --cy together"),
        (". --fx 0 --fy 1 --cx 1 --cy 1", "0 is not a number above 0"),
        (". --fx 1 --fy 1 --cx nan --cy 1", "nan is not a finite number"),
        (". --fov 190", "less than 180"),
    ],
)
def test_mistakes_get_one_line(forked, tmp_path, arguments, text):
    result = forked(f"predict.py --input {arguments}", cwd=tmp_path)
    assert result.returncode == 2 and text in result.stderr and "Traceback" not in result.stderr


def test_a_flip_average_is_the_mean_with_the_mirror_image():
    """Of a net that sees twice as deep on the left."""
    leans = np.log(np.linspace(2, 1, 74, dtype=np.float32))
    rgb = np.tile(np.linspace(0, 255, 640).astype(np.uint8)[:, None], (480, 1, 3))  # redder on the right

    def coarse(rgb):
        return red_is_depth(rgb) + leans

    mirrored = np.ascontiguousarray(rgb[:, ::-1])
    average, alone = (DepthPredictor(coarse, as_it_is, flip_average=both) for both in (True, False))
    np.testing.assert_allclose(average(rgb), average(mirrored)[:, ::-1], rtol=1e-4)
    one, other = alone(rgb), alone(mirrored)[:, ::-1]
    assert np.abs(one - other).max() > 0.5
    seen = (slice(20, 460), slice(24, 616))
    np.testing.assert_allclose(np.log(average(rgb))[seen], (np.log(one) + np.log(other))[seen] / 2, atol=0.1)


def test_a_longer_lens_means_a_deeper_scene_and_another_camera(predict, tmp_path):
    """One picture, as if taken by three lenses: what fills as much of the picture of a lens twice as long is twice as
    far away, and as wide."""
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    for name, exif in (("short", taken_by(25)), ("long", taken_by(50)), ("unknown", Image.Exif())):
        paint(tmp_path / f"{name}.jpg", pixels, exif=exif)
    result = predict("--input . --save npy ply --output_dir out")
    assert result.returncode == 0, result.stderr
    short, long, unknown = (np.load(tmp_path / "out" / f"{name}_depth.npy") for name in ("short", "long", "unknown"))
    np.testing.assert_allclose(long, 2 * short, rtol=1e-5)
    focal = 25 / np.hypot(36, 24) * 500  # in pixels of the picture's diagonal, 500
    np.testing.assert_allclose(short, unknown * focal / (518.86 * 400 / 640), rtol=1e-5)
    assert result.stdout.count("long.jpg: another lens than the Kinect's, by its EXIF: depth times") == 1
    wide = [np.ptp(PlyData.read(tmp_path / "out" / f"{name}.ply")["vertex"]["x"]) for name in ("short", "long")]
    np.testing.assert_allclose(wide[1], wide[0], rtol=1e-4)
    predict("--input long.jpg --save npy --camera nyu --output_dir nyu")
    np.testing.assert_array_equal(np.load(tmp_path / "nyu" / "long_depth.npy"), unknown)


def test_names_that_are_not_utf_8_go_through_predict(red_onnx, run, tmp_path):
    folder = tmp_path / ODD
    folder.mkdir()
    paint(tmp_path / "p.png").rename(folder / f"{ODD}.png")
    write_video(tmp_path / "clip.avi", 3).rename(folder / f"{ODD}.avi")
    (folder / f"{ODD} broken.jpg").write_bytes(b"no picture")
    line = "predict.py --output_dir out --save side npy"
    result = run(line, *onnx_nets(red_onnx), "--input", folder, cwd=tmp_path)
    assert result.returncode == 1 and "a$_$ \\xff\\xfe café broken.jpg: broken image" in result.stdout, result.stderr
    made = {os.fsencode(path.name) for path in (tmp_path / "out").iterdir()}
    endings = (b"_avi_side.mp4", b"_avi_frames", b"_png_side.png", b"_png_depth.npy")
    assert made == {os.fsencode(ODD) + ending for ending in endings}


def test_a_strip_of_pixels_is_refused_and_a_wide_picture_takes_its_own_memory(predict, tmp_path):
    paint(tmp_path / "strip.png", size=(1, 65500))
    paint(tmp_path / "wide.png", size=(200, 9000))
    result = predict("--input strip.png wide.png --save npy", megabytes=1000)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "strip.png: 1x65500 (height x width): expected a ratio of at most 50:1" in result.stdout
    assert np.load(tmp_path / "predictions" / "wide_depth.npy").shape == (200, 9000)


def test_a_photograph_of_108_megapixels_takes_the_memory_of_a_quarter(predict, forked, tmp_path):
    """And of 249, as far as it is decoded."""
    small = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    for name, size in (("108", (12000, 9000)), ("249", (18200, 13650))):
        pixels = cv2.resize(small, size, interpolation=cv2.INTER_NEAREST)
        cv2.imwrite(str(tmp_path / f"{name}.jpg"), pixels, [cv2.IMWRITE_JPEG_QUALITY, 30])
    result = predict("--input 108.jpg --save png16", megabytes=1000)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "108.jpg: 9000x12000 is more than 64,000,000 pixels: read at half its size, 4500x6000" in result.stdout
    with Image.open(tmp_path / "predictions" / "108_depth16.png") as depth:
        assert depth.size == (6000, 4500)
    answer = forked("load_rgb 249.jpg", cwd=tmp_path, megabytes=800)
    assert answer.returncode == 0 and "(6825, 9100, 3)" in answer.stdout, answer.stderr


# What is not there, or refuses, on Windows or macOS.
ELSEWHERE = """
import ctypes, os, signal, sys
for module in ("fcntl", "resource", "pwd", "mindspore", "scipy", "h5py", "onnx"):
    sys.modules[module] = None
for owner, name in ((os, "sched_getaffinity"), (os, "fork"), (signal, "pthread_sigmask"), (signal, "sigwait"),
                    (signal, "SIGHUP")):
    delattr(owner, name)
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
"""


def test_onnx_files_predict_where_linux_is_not(red_onnx, run, tmp_path):
    paint(tmp_path / "a picture.png", (102, 0, 0), (480, 640))
    options = ["--input", "a picture.png", *onnx_nets(red_onnx)]
    result = run("predict.py --save npy color ply", *options, cwd=tmp_path, before=ELSEWHERE)
    assert result.returncode == 0, result.stderr
    np.testing.assert_allclose(np.load(tmp_path / "predictions" / "a picture_depth.npy"), np.exp(0.8), rtol=1e-4)
    assert (tmp_path / "predictions" / "a picture.ply").exists()
