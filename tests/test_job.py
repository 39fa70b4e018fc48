"""Which pictures and videos a prediction takes, and where their outputs go."""

import shutil

import cv2
import numpy as np
import pytest
from PIL import Image

from src.base.errors import UserError
from src.data import image
from src.prediction import video
from src.prediction.job import check_outputs, find_jobs
from tests.conftest import onnx_nets, write_video
from tests.test_commands import one_line


def test_frames_and_pictures_do_not_share_a_folder(red_onnx, forked, tmp_path):
    write_video(tmp_path / "in.avi", 3)
    (tmp_path / "all").mkdir()
    shutil.move(tmp_path / "in.avi", tmp_path / "all" / "x.avi")
    (tmp_path / "all" / "x_frames").mkdir()
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(tmp_path / "all" / "x_frames" / "000000.jpg")
    line = one_line(forked("predict.py", "--input", "all", "--save", "npy", *onnx_nets(red_onnx), cwd=tmp_path))
    assert "would both go into predictions/x_frames" in line


def test_heic_is_named_and_not_passed_over(red_onnx, forked, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("photo.HEIC", "renamed.jpg"):
        (tmp_path / "in" / name).write_bytes(b"\0\0\0\x18ftypheic")
    result = forked("predict.py", "--input", "in", *onnx_nets(red_onnx), cwd=tmp_path)
    assert result.returncode == 1
    for name in ("photo.HEIC", "renamed.jpg"):
        assert f"{name}: HEIC is not read: save it as JPEG" in result.stdout


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
