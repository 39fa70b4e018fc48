"""Which pictures and videos a prediction takes, and where their outputs go."""

import pytest

from src.base.errors import UserError
from src.data import image
from src.prediction import video
from src.prediction.job import check_outputs, find_jobs
from tests.conftest import paint, write_video
from tests.test_commands import one_line


def test_frames_and_pictures_do_not_share_a_folder(predict, tmp_path):
    paint(tmp_path / "all" / "x_frames" / "000000.jpg")
    write_video(tmp_path / "all" / "x.avi", 3)
    assert "would both go into predictions/x_frames" in one_line(predict("--input all --save npy"))


def test_heic_is_named_and_not_passed_over(predict, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("photo.HEIC", "renamed.jpg"):
        (tmp_path / "in" / name).write_bytes(b"\0\0\0\x18ftypheic")
    result = predict("--input in")
    assert result.returncode == 1
    for name in ("photo.HEIC", "renamed.jpg"):
        assert f"{name}: HEIC is not read: save it as JPEG" in result.stdout


def test_a_picture_that_an_output_would_replace_is_left_alone(predict, tmp_path):
    """The user's own picture has the name of another's output; a picture in the folder of a video's frames."""
    for name in ("a.jpg", "a_depth.png", "clip_frames/mine.png"):
        paint(tmp_path / name)
    write_video(tmp_path / "clip.avi", 1)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for inputs, named in (
        (".", "a_depth.png"),
        ("a.jpg a_depth.png", "a_depth.png"),
        ("clip.avi clip_frames/mine.png --save npy", "clip_frames"),
    ):
        line = one_line(predict(f"--input {inputs} --output_dir . --overwrite"))
        assert f"{named} would replace an input" in line
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_outputs_that_would_meet_are_refused(tmp_path, monkeypatch):
    one, other = (paint(tmp_path / name / "p.png") for name in ("a", "b"))
    assert [job.source for job in find_jobs([one, one], tmp_path / "out")[0]] == [one]
    with pytest.raises(UserError, match=r"b/p\.png and .*a/p\.png would both become .*out/p_png: predict"):
        find_jobs([one, other], tmp_path / "out")
    clip = write_video(tmp_path / "clip.avi", 1, (64, 48))
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
    targets = {job.target.relative_to(tmp_path).as_posix() for job in jobs}
    assert targets >= {"Train/sample_0001_out/1", "Test/00000_colors"}
