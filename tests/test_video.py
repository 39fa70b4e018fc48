"""Videos as telephones, browsers and recorders make them: which way up, when each frame is to be seen, what plays."""

import socket
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.prediction import video
from tests.conftest import ROOT, onnx_nets, paint, write_video
from tests.fuzz import MEGABYTES, files, fresh, judge, mutations, slow
from tests.test_commands import one_line

ONE = 1 << 16


def clip(path, times, codec="libx264", options=None, tick=Fraction(1, 1000), size=(48, 64), rate=25):
    """A video whose frames have these times, in ticks; each is red below and blue on its right."""
    rgb = np.zeros((*size, 3), np.uint8)
    rgb[size[0] // 2 :, :, 0] = 255
    rgb[:, size[1] // 2 :, 2] = 255
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate, width=size[1], height=size[0], pix_fmt=pixels, time_base=tick)
        for time in times:
            frame = av.VideoFrame.from_ndarray(rgb)
            frame.pts, frame.time_base = time, tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def seen(path):
    """The times of a video's frames in seconds, from the first."""
    with av.open(str(path)) as container:
        times = [float(frame.pts * frame.time_base) for frame in container.decode(video=0)]
    return np.array(times) - times[0]


def with_matrix(path, *matrix):
    """The MP4 with another matrix in its track header (ISO 14496-12, 8.3.2)."""
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 44
    content[at : at + 20] = struct.pack(">5i", *matrix[:2], 0, *matrix[2:])
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("matrix", "shown"),
    [
        ((0, ONE, -ONE, 0), lambda depth: np.rot90(depth, -1)),  # clockwise
        ((-ONE, 0, 0, -ONE), lambda depth: np.rot90(depth, 2)),
        ((0, -ONE, ONE, 0), lambda depth: np.rot90(depth, 1)),
        ((-ONE, 0, 0, ONE), np.fliplr),
        ((ONE, 0, 0, -ONE), np.flipud),
        ((0, ONE, ONE, 0), np.transpose),
        ((46341, 46341, -46341, 46341), lambda depth: depth),  # by 45 degrees
        ((0, 0, 0, 0), lambda depth: depth),
    ],
)
def test_frames_are_turned_as_the_file_says(tmp_path, matrix, shown):
    plain, turned = (clip(tmp_path / f"{name}.mp4", range(0, 80, 40)) for name in ("plain", "turned"))
    with_matrix(turned, *matrix)
    (stored, _), *_ = video.Video(plain).frames()
    (upright, _), *_ = video.Video(turned).frames()
    assert upright.shape[:2] == shown(stored[..., 0]).shape
    for channel in (0, 2):
        np.testing.assert_array_equal(upright[..., channel], shown(stored[..., channel]))


def test_a_telephone_s_video_is_predicted_upright(predict, tmp_path):
    with_matrix(clip(tmp_path / "phone.mp4", range(0, 120, 40)), 0, ONE, -ONE, 0)
    result = predict("--input phone.mp4 --save npy side")
    assert result.returncode == 0, result.stdout + result.stderr
    depth_m = np.load(tmp_path / "predictions" / "phone_frames" / "000000_depth.npy")
    assert depth_m.shape == (64, 48) and depth_m[:, :20].min() > 2 * depth_m[:, 28:].max()  # below is left now
    with av.open(str(tmp_path / "predictions" / "phone_side.mp4")) as container:
        frame = next(container.decode(video=0))
        assert frame.height == 64 and frame.rotation == 0


@pytest.mark.parametrize(
    ("name", "times", "codec", "options"),
    [
        ("recorded.webm", [33 * number + number % 3 for number in range(31)], "libvpx", {"live": "1"}),
        ("phone.mp4", [0, 40, 500, 540, 2000, 2033, 9000], "libx264", None),
        ("screen.mkv", [7, 40, 51, 9000], "libvpx-vp9", None),
        ("late.mp4", [70_000, 70_040, 70_080], "libx264", None),
    ],
)
def test_frames_keep_their_times(predict, tmp_path, name, times, codec, options):
    clip(tmp_path / name, times, codec, options)
    result = predict("--input", name, "--save", "color")
    assert result.returncode == 0, result.stdout + result.stderr
    out = tmp_path / "predictions" / f"{name.split('.')[0]}_depth.mp4"
    np.testing.assert_allclose(seen(out), (np.array(times) - times[0]) / 1000, atol=1e-4)
    with av.open(str(out)) as container:
        lasts = (times[-1] - times[-2] + times[-1] - times[0]) / 1000
        assert abs(container.duration / av.time_base - lasts) < 0.01


def test_what_is_written_plays_everywhere(predict, tmp_path):
    write_video(tmp_path / "a.avi", 3, (96, 60))
    result = predict("--input a.avi --save side")
    assert result.returncode == 0, result.stdout + result.stderr
    out = tmp_path / "predictions" / "a_side.mp4"
    with av.open(str(out)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 12 and stream.height == 60
        shown = next(container.decode(video=0)).to_ndarray(format="rgb24")
    content = out.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    (first, _), *_ = video.Video(tmp_path / "a.avi").frames()
    assert np.abs(shown[:, :96].astype(int) - first).mean() < 40  # noise, at half of the colours' resolution


def test_without_an_encoder_for_h264_it_is_vp9(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(video, "ENCODERS", {"nosuch264": {}, "libvpx-vp9": video.ENCODERS["libvpx-vp9"]})
    caplog.set_level("INFO")
    with video.Writer(tmp_path / "a.mp4", Fraction(1, 25)) as out:
        for number in range(5):
            out.add(np.full((47, 63, 3), 50 * number, np.uint8), Fraction(number, 25))
        out.finish()
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.height, stream.width) == ("vp9", 48, 64)  # even
    assert "a.mp4: VP9, for PyAV has no encoder for H.264 here" in caplog.text
    np.testing.assert_allclose(seen(tmp_path / "a.mp4"), np.arange(5) / 25)


def test_av1_is_read_without_a_word_of_a_decoder(predict, tmp_path):
    clip(tmp_path / "av1.mp4", range(0, 200, 40), "libsvtav1", size=(64, 96))
    result = predict("--input av1.mp4")
    assert result.returncode == 0 and result.stderr == "" and "1 predicted" in result.stdout
    assert len(seen(tmp_path / "predictions" / "av1_depth.mp4")) == 5


def test_a_codec_without_a_decoder_is_said(predict, tmp_path):
    content = clip(tmp_path / "x.mp4", range(0, 200, 40)).read_bytes()
    (tmp_path / "x.mp4").write_bytes(content.replace(b"avc1", b"zzz1"))
    result = predict("--input x.mp4")
    assert result.returncode == 1 and result.stdout.count("x.mp4: not a readable video") == 1
    assert result.stderr.count("\n") == 1 and not list((tmp_path / "predictions").iterdir())


def patched(path, name, at, form, *values):
    """`path` with numbers put in behind the first `name`."""
    content = bytearray(path.read_bytes())
    struct.pack_into(form, content, content.index(name) + len(name) + at, *values)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("form", "at", "values"),
    [
        ("<II", 24, (1, 1_000_000)),  # scale, rate: a million frames a second
        ("<II", 24, (1_000_000, 1)),  # a frame that lasts eleven days
        ("<II", 24, (0, 0)),
        ("<I", 36, (0xFFFF_FFFF,)),  # as many frames
    ],
)
def test_rates_and_counts_that_cannot_be_are_not_believed(predict, tmp_path, form, at, values):
    patched(write_video(tmp_path / "a.avi", 6), b"strh", at, form, *values)
    result = predict("--input a.avi --save color")
    assert result.returncode in (0, 1) and "Traceback" not in result.stderr
    if result.returncode == 0 or "cut off" in result.stdout:
        times = seen(tmp_path / "predictions" / "a_depth.mp4")
        assert len(times) == 6 and 0.1 < times[-1] < 1


def test_a_video_that_was_trimmed_is_whole(predict, tmp_path):
    """By an edit list, as telephones do it: the frames outside are in the file, and are not to be seen. Cut off, it is
    still named."""
    path = clip(tmp_path / "trimmed.mp4", range(0, 2000, 40), options={"movflags": "faststart"})
    content = bytearray(path.read_bytes())
    at = content.index(b"elst") + 12
    content[at : at + 4] = struct.pack(">i", struct.unpack(">i", content[at : at + 4])[0] // 4)
    path.write_bytes(content)
    result = predict("--input", path)
    assert result.returncode == 0, result.stdout + result.stderr
    shown = len(seen(tmp_path / "predictions" / "trimmed_depth.mp4"))
    assert shown == len(seen(path)) == video.Video(path).count < 20
    path.write_bytes(content[: content.index(b"mdat") + 900])
    assert "trimmed.mp4: cut off" in predict("--input", path, "--overwrite").stdout


def test_avi_tells_no_times_but_those_of_decoding(tmp_path):
    path = clip(tmp_path / "clip.avi", range(30), options={}, tick=Fraction(1, 10), rate=10)
    np.testing.assert_allclose([float(at) for _, at in video.Video(path).frames()], np.arange(30) / 10)


def test_times_that_cannot_be_are_not_believed(tmp_path):
    path = clip(tmp_path / "a.mkv", [0, 40, 80, 3_000_000_000, 3_000_000_040], "libvpx")
    np.testing.assert_allclose([float(at) for _, at in video.Video(path).frames()], np.arange(5) * 0.04)
    assert video.Video(path).seconds == pytest.approx(0.2)


def test_pixels_that_are_no_squares_are_made_so(tmp_path):
    path = tmp_path / "wide.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", 25, width=64, height=48, pix_fmt="yuv420p")
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8))))
        container.mux(stream.encode(None))
    ((rgb, _),) = video.Video(path).frames()
    assert rgb.shape == (48, 85, 3)


def test_a_colon_in_a_name_is_no_protocol(predict, tmp_path):
    names = ["2024-05-01T12:30:05.mp4", "concat:a.mp4", "file:b.mp4", "pipe:0.mp4"]
    for name in names:
        clip(tmp_path / "a.mp4", range(0, 120, 40)).rename(tmp_path / name)
    result = predict("--input", *names, "--save", "color", "npy", "--output_dir", "out:1")
    assert result.returncode == 0, result.stdout + result.stderr
    made = {path.name for path in (tmp_path / "out:1").iterdir()}
    assert made == {name[:-4] + ending for name in names for ending in ("_depth.mp4", "_frames")}


@pytest.fixture
def listener():
    """A socket that listens: its port, and whether anybody has come."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.setblocking(False)
        yield listening


def nobody_came(listening):
    with pytest.raises(BlockingIOError):
        listening.accept()


def test_addresses_are_no_files(predict, listener, tmp_path):
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    clip(tmp_path / "a.mp4", [0, 40])
    remote = (f"http://{address}/a.mp4", f"tcp://{address}/a.mp4")
    for name in (*remote, "concat:a.mp4|a.mp4", "file:a.mp4", "subfile:a.mp4"):
        line = one_line(predict("--input", name))
        assert f"{name}: no picture or video" in line
    nobody_came(listener)


@pytest.mark.parametrize(
    "playlist",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://{address}/a.mp4\n#EXT-X-ENDLIST\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nsecret.mp4\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile secret.mp4\n",
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period><AdaptationSet><Representation>'
        "<BaseURL>http://{address}/</BaseURL></Representation></AdaptationSet></Period></MPD>",
        "v=0\r\nc=IN IP4 127.0.0.1\r\nm=video 9 RTP/AVP 96\r\n",
    ],
)
def test_a_playlist_that_is_called_a_video_opens_nothing(predict, listener, tmp_path, playlist):
    clip(tmp_path / "secret.mp4", [0, 40])
    (tmp_path / "a.mp4").write_text(playlist.format(address=f"127.0.0.1:{listener.getsockname()[1]}"))
    result = predict("--input a.mp4")
    assert result.returncode == 1 and result.stdout.count("a.mp4: not a readable video") == 1, result.stdout
    assert not list((tmp_path / "predictions").iterdir())
    nobody_came(listener)


def test_without_pyav_pictures_are_predicted_and_videos_name_what_to_install(run, red_onnx, tmp_path):
    paint(tmp_path / "a.png")
    clip(tmp_path / "b.mp4", [0, 40])
    without = 'import sys; sys.modules["av"] = None'
    result = run("predict.py --input a.png", *onnx_nets(red_onnx), cwd=tmp_path, before=without)
    assert result.returncode == 0, result.stderr
    result = run("predict.py --input a.png b.mp4 --overwrite", *onnx_nets(red_onnx), cwd=tmp_path, before=without)
    line = one_line(result)
    assert "videos need PyAV" in line and f"pip install -r {ROOT}/requirements-predict.txt" in line


def test_a_video_on_a_full_disk_is_no_success(predict, tiny_disk, tmp_path):
    write_video(tmp_path / "clip.avi", 60, (640, 480))
    result = predict("--input clip.avi --output_dir disk --save side")
    assert result.returncode == 1 and "clip" in result.stdout and "0 predicted" in result.stdout, result.stdout
    assert "1 of 1 failed" in result.stderr and not list(tiny_disk.iterdir())


def test_a_video_that_was_cut_off_is_said(predict, tmp_path):
    whole = write_video(tmp_path / "whole.avi", 10, (320, 240)).read_bytes()
    (tmp_path / "cut.avi").write_bytes(whole[: int(len(whole) * 0.6)])
    result = predict("--input cut.avi --save color")
    assert result.returncode == 1, result.stdout
    assert "cut.avi: cut off: " in result.stdout and " of its 10 frames could be read" in result.stdout


def test_a_shorter_video_leaves_no_stale_frames(predict, tmp_path):
    for frames in (5, 3):
        write_video(tmp_path / "clip.avi", frames)
        assert predict("--input clip.avi --save npy --overwrite").returncode == 0
        (tmp_path / "predictions" / "clip_frames" / "mine.txt").write_text("mine")
    names = sorted(path.name for path in (tmp_path / "predictions" / "clip_frames").iterdir())
    assert names == ["000000_depth.npy", "000001_depth.npy", "000002_depth.npy", "mine.txt"]


def video_seeds(folder):
    """The contents of short videos of each kind."""
    kinds = ("mp4 libx264", "mp4 mpeg4", "avi mjpeg", "mkv libvpx-vp9", "webm libvpx", "ts libx264")
    return [
        clip(folder / f"seed.{kind.split()[0]}", range(0, 400, 100), kind.split()[1]).read_bytes() for kind in kinds
    ]


def test_videos(forked, tmp_path):
    @slow
    @given(content=mutations(*video_seeds(tmp_path)), ending=st.sampled_from([".mp4", ".avi", ".webm", ".mkv"]))
    def one(content, ending):
        folder = fresh(tmp_path / "videos")
        (folder / "in").mkdir()
        (folder / "in" / f"a{ending}").write_bytes(content)
        answer = forked("predict in out", cwd=folder, megabytes=MEGABYTES)
        judge(answer)
        made = {name for name in files(folder) if name != f"in/a{ending}"}
        assert made == {name for name in made if name == "out/a_depth.mp4" or name.startswith("out/a_frames/")}
        assert bool(made) == (answer.returncode == 0 or "cut off" in answer.stdout), answer.stdout
        assert answer.returncode == 0 or f"in/a{ending}" in answer.stdout

    one()
