"""Pictures of any size to depth: where it lies, that both runtimes agree, and the command with all its outputs."""

import argparse

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
from src.prediction import depth_files, predict, video
from src.prediction.job import Job, check_outputs, find_jobs
from src.prediction.pointcloud import Intrinsics, points
from src.prediction.predict import DepthPredictor
from tools import rooms


def red_is_depth(rgb):
    """A coarse net whose depth is what one can check: 1 m to 9 m by how red the picture is there."""
    red = [image.resize(one[0], image.DEPTH_SIZE) for one in rgb]
    return np.log(1 + 8 * np.stack(red)[:, None]).astype(np.float32)


def as_it_is(rgb, coarse_log_depth):
    return coarse_log_depth


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


def room(yaw=0.3, pitch=-0.2):
    """An empty rendered room: true depth (480, 640), and which of its walls each pixel shows."""
    rays = rooms.camera_rays(yaw, pitch)
    origin = np.array([1.5, 1.4, 0.5])
    depth_m, axis = rooms.cast_box(origin, rays, np.zeros(3), np.array([4.0, 2.6, 5.0]), inside=True)
    side = np.take_along_axis(rays, axis[..., None], -1)[..., 0] > 0
    return depth_m.astype(np.float32), axis * 2 + side


def plane_residual(cloud):
    """Largest distance in metres from the best plane."""
    centred = cloud.astype(np.float64) - cloud.mean(0, dtype=np.float64)
    return np.abs(centred @ np.linalg.svd(centred, full_matrices=False)[2][2]).max()


def test_walls_of_a_rendered_room_are_flat_and_square(run, tmp_path):
    depth_m, wall = room()
    cloud = points(depth_m, Intrinsics.kinect(480, 640))
    walls = [cloud[(wall == number).ravel()] for number in np.unique(wall)]
    assert len(walls) >= 4
    for each in walls:
        assert plane_residual(each) < 1e-4
    normals = [np.linalg.svd(each - each.mean(0), full_matrices=False)[2][2] for each in walls]
    angles = np.abs(np.array(normals) @ np.array(normals).T)
    np.testing.assert_allclose(angles, np.round(angles), atol=1e-3)  # parallel or at right angles
    bent = points(depth_m, Intrinsics.from_fov(480, 640, 90))  # with other intrinsics the walls still lie flat,
    assert plane_residual(bent[(wall == wall[240, 320]).ravel()]) < 1e-4  # but no longer at right angles
    bent_normals = [
        np.linalg.svd(bent[(wall == n).ravel()][::50] - bent[(wall == n).ravel()].mean(0))[2][2]
        for n in np.unique(wall)
    ]
    angles = np.abs(np.array(bent_normals) @ np.array(bent_normals).T)
    assert np.abs(angles - np.round(angles)).max() > 0.1


def test_field_of_view_gives_the_focal_length():
    camera = Intrinsics.from_fov(480, 640, 90)
    assert camera.fx == pytest.approx(320) and camera.fy == camera.fx and (camera.cx, camera.cy) == (319.5, 239.5)
    double = Intrinsics.kinect(960, 1280)
    assert double.fx == pytest.approx(2 * 518.86)
    assert double.cx + 0.5 == pytest.approx(2 * (324.58 + 0.5))  # the same ray, half-pixel centres


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


def test_a_picture_that_an_output_would_replace_is_left_alone(forked, tmp_path):
    """The user's own picture has the name of another's output; a picture in the folder of a video's frames."""
    folder = tmp_path / "photos"
    (folder / "clip_frames").mkdir(parents=True)
    for name in ("a.jpg", "a_depth.png", "clip_frames/mine.png"):
        Image.new("RGB", (64, 48), "red").save(folder / name)
    clip = folder / "clip.avi"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter_fourcc(*"MJPG"), 12, (64, 48))
    writer.write(np.zeros((48, 64, 3), np.uint8))
    writer.release()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for inputs, named in (
        ([folder], "a_depth.png"),
        ([folder / "a.jpg", folder / "a_depth.png"], "a_depth.png"),
        ([clip, folder / "clip_frames" / "mine.png", "--save", "npy"], "clip_frames"),
    ):
        result = forked("predict.py", "--input", *inputs, "--output_dir", folder, "--overwrite", cwd=tmp_path)
        assert result.returncode == 2 and f"{named} would replace an input" in result.stderr, result.stderr
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


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


def test_outputs_that_would_meet_are_refused(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (64, 48)).save(tmp_path / name / "p.png")
    one, other = (tmp_path / name / "p.png" for name in ("a", "b"))
    assert [job.source for job in find_jobs([one, one], tmp_path / "out")[0]] == [one]
    with pytest.raises(UserError, match=r"b/p\.png and .*a/p\.png would both become .*out/p_png: predict"):
        find_jobs([one, other], tmp_path / "out")
    clip = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter_fourcc(*"MJPG"), 12, (64, 48))
    writer.write(np.zeros((48, 64, 3), np.uint8))
    writer.release()
    jobs, _ = find_jobs([clip], tmp_path / "out")
    (tmp_path / "out" / "clip_frames").mkdir(parents=True)
    with pytest.raises(UserError, match="clip_frames is there already: --overwrite replaces it"):
        check_outputs(jobs, ["npy"], overwrite=False)
    check_outputs(jobs, ["npy"], overwrite=True)
    assert video.Video(clip).count == 1
    monkeypatch.setattr(image, "MAX_PIXELS", 64 * 48 - 1)
    with pytest.raises(video.VideoError, match=r"clip\.avi: frames of .* more than 3,071 pixels: refused"):
        video.Video(clip)


def test_depth_maps_of_a_nyu_folder_are_no_pictures(nyu, tmp_path):
    jobs, _ = find_jobs([nyu], tmp_path)
    assert len(jobs) == 12 and {job.source.suffix for job in jobs} == {".jpg", ".png"}
    assert not [job for job in jobs if "_depth" in job.source.name]
    assert {job.target.relative_to(tmp_path).as_posix() for job in jobs} >= {
        "Train/sample_0001_out/1",
        "Test/00000_colors",
    }


def test_the_pictures_of_the_readme_are_made(nyu, trained, run, tmp_path):
    checkpoints = [trained / "Model" / "Ckpt" / f"Final{net}Net.ckpt" for net in ("Coarse", "Fine")]
    result = run(
        "tools/make_pictures.py",
        nyu,
        "--coarse_ckpt_model",
        checkpoints[0],
        "--fine_ckpt_model",
        checkpoints[1],
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    for name in ("predictions.png", "pointcloud.png"):
        picture = cv2.imread(str(tmp_path / "docs" / name))
        assert picture.shape[1] > 600 and picture.std() > 10


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


def by_brightness(seen, factor=1.0):
    """A DepthPredictor without a net: a picture of grey level g is 1 + g / 10 metres deep, but for a speck."""

    def coarse(rgb):
        seen.extend(np.rint(rgb[:, 0, 100, 100] * 255).astype(int).tolist())
        return np.log((1 + np.rint(rgb[:, :1, :55, :74] * 255) / 10) * factor)

    def fine(rgb, log_depth):
        log_depth[:, :, 0, 0] = np.log(9.5)
        return log_depth

    return DepthPredictor(coarse, fine)


def test_one_range_of_colours_covers_all_that_is_there(tmp_path):
    writer = depth_files.Writer(("npy",), "viridis", "auto", Intrinsics.kinect)
    jobs = []
    for number in range(40):
        path = tmp_path / f"{number}.png"
        Image.fromarray(np.full((48, 64, 3), number, np.uint8)).save(path)
        jobs.append(Job(path, tmp_path / str(number)))
    seen = []
    deepest, known = depth_files.depth_range(jobs, by_brightness(seen), writer)
    assert deepest == 5.0  # the deepest that was looked at: 4.9 m
    assert 10 < len(seen) <= depth_files.SAMPLED and max(seen) >= 36
    with cli.progress(40, "predicting", "file") as bar:
        assert depth_files.predict_all(jobs, by_brightness(seen), writer, 8, bar, known) == 0
    assert sorted(seen) == list(range(40))  # none twice
    for number in (0, 17, 39):
        np.testing.assert_allclose(np.load(tmp_path / f"{number}_depth.npy")[24:], 1 + number / 10, rtol=1e-5)
    (tmp_path / "39.png").write_bytes(b"no picture")
    assert depth_files.depth_range(jobs[39:], by_brightness(seen), writer) == (10.0, {})
    video = cv2.VideoWriter(str(tmp_path / "v.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 10, (64, 48))
    for number in range(0, 240, 6):
        video.write(np.full((48, 64, 3), number, np.uint8))
    video.release()
    seen.clear()
    deepest, _ = depth_files.depth_range([Job(tmp_path / "v.mp4", tmp_path / "v")], by_brightness(seen, 1 / 4), writer)
    assert 6.0 <= deepest <= 7.0 and 10 < len(seen) <= depth_files.SAMPLED  # 1/4 of 1 m + 23 m
