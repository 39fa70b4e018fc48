"""Reading and geometry against OpenCV, Pillow and hand-made files."""

import struct

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from src.data import image
from tests.conftest import paint, taken_by
from tests.fuzz import MEGABYTES, PICTURES, bounded, files, fresh, judge, mutations


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)


@pytest.fixture
def depth_m():
    return np.random.default_rng(1).uniform(0.5, 9, (480, 640)).astype(np.float32)


def test_network_rgb_is_the_mean_of_two_by_two(picture):
    """Half-pixel centres at a factor of exactly two, over the crop."""
    block = picture[12:468, 16:624].astype(np.float64).reshape(228, 2, 304, 2, 3).mean((1, 3)) / 255
    ours = image.network_rgb(picture)
    assert ours.shape == (3, 228, 304) and ours.dtype == np.float32 and ours.flags.c_contiguous
    np.testing.assert_allclose(ours, block.transpose(2, 0, 1), atol=1e-6)


def test_network_depth_is_opencv_bilinear_of_the_crop(depth_m):
    expected = cv2.resize(depth_m[12:468, 16:624], (74, 55), interpolation=cv2.INTER_LINEAR)
    assert image.network_depth(depth_m).shape == (1, 55, 74)
    np.testing.assert_array_equal(image.network_depth(depth_m)[0], expected)


@pytest.mark.parametrize("metres", [4.0, 0.5])
def test_holes_do_not_smear_into_their_neighbours(metres):
    depth_m = np.full((480, 640), metres, np.float32)
    depth_m[np.random.default_rng(2).random(depth_m.shape) < 0.4] = 0
    depth_m[100:200, 100:300] = 0
    resized = image.network_depth(depth_m)
    np.testing.assert_allclose(resized[resized > 0], metres, rtol=1e-6)
    assert (resized > 0).sum() > 1000
    assert (resized == 0).sum() > 100  # the big hole stays a hole


def test_half_of_what_a_cell_takes_must_be_measured():
    """At half size a pixel takes two by two: its value is the mean of those that are measured, if two are."""
    rng = np.random.default_rng(4)
    blocks = rng.integers(1, 256, (240, 320, 4))
    blocks[rng.random(blocks.shape) < 0.5] = 0
    measured = (blocks > 0).sum(-1)
    mean = np.where(measured >= 2, blocks.sum(-1) / np.maximum(measured, 1), 0)
    pixels = blocks.reshape(240, 320, 2, 2).transpose(0, 2, 1, 3).reshape(480, 640).astype(np.uint8)
    np.testing.assert_allclose(image.resize_depth(pixels, image.HALF_SIZE), mean, rtol=1e-6)
    assert all((measured == count).sum() > 1000 for count in range(5))


def test_the_whole_at_half_size_has_what_the_nets_see_in_its_middle(picture):
    half = image.half_pixels(picture)
    assert half.shape == (240, 320, 3) and half.dtype == np.uint8
    np.testing.assert_array_equal(half[image.HALF_ROWS, image.HALF_COLUMNS], image.network_pixels(picture))
    expected = cv2.resize(picture[12:468, 16:624], (304, 228), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(image.network_pixels(picture), expected)
    pixels = picture[..., 0] // 2 + 1
    assert image.half_depth(pixels).shape == (240, 320) and image.half_depth(pixels).dtype == np.uint8
    expected = pixels.reshape(240, 2, 320, 2).mean((1, 3))
    assert np.abs(image.half_depth(pixels) - expected).max() <= 0.5


def test_photographs_are_brought_to_the_size_of_nyu(picture):
    """Larger ones by the mean of their pixels, smaller ones bilinearly."""
    large = cv2.resize(picture, (1920, 1440), interpolation=cv2.INTER_NEAREST)
    np.testing.assert_array_equal(image.network_rgb(large), image.network_rgb(picture))
    small = cv2.resize(picture, (400, 300), interpolation=cv2.INTER_AREA)
    expected = cv2.resize(small, (640, 480), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(image.view(small), expected[12:468, 16:624])
    narrow = cv2.resize(picture, (600, 480), interpolation=cv2.INTER_NEAREST)
    expected = cv2.resize(narrow, (640, 480), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(image.view(narrow), expected[12:468, 16:624])
    taller = cv2.resize(picture, (600, 484), interpolation=cv2.INTER_NEAREST)
    expected = cv2.resize(taller, (640, 480), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(image.view(taller), expected[12:468, 16:624])


def test_depth_is_written_as_it_is_read():
    depth_m = np.array([-0.5, 0, 0.001, 5, 8, 9.99, 10.03, 12, 65.535, 65.536, 214, np.inf, np.nan], np.float32)
    np.testing.assert_array_equal(image.encode_train_depth(depth_m), [0, 0, 1, 128, 204, *[255] * 6, 0, 0])
    np.testing.assert_array_equal(
        image.encode_test_depth(depth_m), [0, 0, 1, 5000, 8000, 9990, 10030, 12000, *[65535] * 3, 0, 0]
    )
    assert image.encode_train_depth(depth_m).dtype == np.uint8 and image.encode_test_depth(depth_m).dtype == np.uint16


def test_other_sizes_of_the_same_ratio_see_the_same_part(picture):
    double = cv2.resize(picture, (1280, 960), interpolation=cv2.INTER_NEAREST)
    assert image.crop(double).shape == (912, 1216, 3)
    np.testing.assert_array_equal(image.crop(double)[::2, ::2], image.crop(picture))


@pytest.mark.parametrize("size", [(480, 641), (640, 480), (425, 560), (120, 160)])
def test_other_ratios_are_refused(size):
    with pytest.raises(image.ImageError, match="expected 480x640"):
        image.crop(np.zeros(size, np.uint8))


def test_rgb_variants_are_read_as_three_channels(tmp_path, picture):
    grey = picture[..., 0]
    for name, pixels in (("rgb", picture), ("grey", grey), ("alpha", np.dstack((picture, grey)))):
        paint(tmp_path / f"{name}.png", pixels)
    Image.fromarray(picture).quantize(64).save(tmp_path / "palette.png")
    cv2.imwrite(str(tmp_path / "grey16.png"), grey.astype(np.uint16) * 257)
    np.testing.assert_array_equal(image.load_rgb(tmp_path / "rgb.png"), picture)
    np.testing.assert_array_equal(image.load_rgb(tmp_path / "alpha.png"), picture)
    for name in ("grey.png", "grey16.png"):
        np.testing.assert_array_equal(image.load_rgb(tmp_path / name), np.repeat(grey[..., None], 3, axis=2))
    assert image.load_rgb(tmp_path / "palette.png").shape == (480, 640, 3)


def test_depth_is_read_with_its_true_bits(tmp_path):
    millimetres = np.arange(480 * 640, dtype=np.uint16).reshape(480, 640) % 10000
    eight = (millimetres % 256).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "test.png"), millimetres)
    cv2.imwrite(str(tmp_path / "train.png"), eight)
    np.testing.assert_allclose(image.load_test_depth(tmp_path / "test.png"), millimetres / 1000, rtol=1e-6)
    np.testing.assert_allclose(image.load_train_depth(tmp_path / "train.png"), eight / 255 * 10, rtol=1e-6)


def test_the_unit_trap_is_named(tmp_path):
    cv2.imwrite(str(tmp_path / "sixteen.png"), np.ones((480, 640), np.uint16))
    cv2.imwrite(str(tmp_path / "eight.png"), np.ones((480, 640), np.uint8))
    cv2.imwrite(str(tmp_path / "colour.png"), np.ones((480, 640, 3), np.uint8))
    with pytest.raises(image.ImageError, match=r"sixteen\.png: 16-bit grey, expected 8-bit .*belong in Test"):
        image.load_train_depth(tmp_path / "sixteen.png")
    with pytest.raises(image.ImageError, match=r"eight\.png: 8-bit grey, expected 16-bit .*belongs in Train"):
        image.load_test_depth(tmp_path / "eight.png")
    with pytest.raises(image.ImageError, match=r"colour\.png: mode RGB"):
        image.load_test_depth(tmp_path / "colour.png")


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "BMP", "GIF", "JPEG"])
def test_every_kind_of_picture_is_read_whatever_it_is_called(tmp_path, kind):
    Image.new("RGB", (40, 30), (200, 100, 50)).save(tmp_path / "picture.bin", kind)
    found = image.load_rgb(tmp_path / "picture.bin")
    assert found.shape == (30, 40, 3) and np.abs(found.astype(int) - (200, 100, 50)).max() <= 3


def test_sixteen_bit_depth_may_be_in_tiff_of_either_byte_order_or_in_32_bits(tmp_path):
    millimetres = np.arange(1, 301, dtype=np.uint16).reshape(15, 20) * 30
    for order, mode in (("<u2", "I;16"), (">u2", "I;16B"), ("<i4", "I")):
        content = millimetres.astype(order).tobytes()
        Image.frombytes(mode, (20, 15), content).save(tmp_path / "depth.tif")
        np.testing.assert_allclose(image.load_test_depth(tmp_path / "depth.tif"), millimetres / 1000, rtol=1e-6)
        with pytest.raises(image.BitDepthError, match=r"depth\.tif: 16-bit grey, expected 8-bit"):
            image.load_train_depth(tmp_path / "depth.tif")


def test_the_lens_is_what_exif_tells(tmp_path):
    read, absurd = (28, 5, 3000), (0, -28, 4, 3001, 65535)
    for told, expected in (*((one, float(one)) for one in read), *((one, None) for one in absurd), (None, None)):
        exif = Image.Exif() if told is None else taken_by(told)
        paint(tmp_path / "photo.jpg", exif=exif)
        assert image.focal_length_35mm(tmp_path / "photo.jpg") == expected
    assert image.focal_length_35mm(tmp_path / "absent.jpg") is None


BAD_RATIONAL = struct.pack("<2i", -1, 0)


def exif_of(orientation, *, count=1, kind=3):
    """EXIF with an orientation and, behind it, a resolution of -1/0."""
    return (
        b"Exif\0\0II*\0\x08\0\0\0"
        + struct.pack("<HHHIHH", 2, 0x112, kind, count, orientation, 0)
        + struct.pack("<HHII", 0x11A, 10, 1, 38)
        + bytes(4)
        + BAD_RATIONAL
    )


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
def test_a_picture_is_turned_upright_whatever_else_its_exif_holds(tmp_path, picture, ending, orientation):
    Image.fromarray(picture).save(tmp_path / f"plain.{ending}")
    Image.fromarray(picture).save(tmp_path / f"a.{ending}", exif=exif_of(orientation))
    pixels = image.load_rgb(tmp_path / f"plain.{ending}")
    by_the_standard = {  # what row 0 and column 0 of the file show: EXIF 2.32, tag 0x0112
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.swapaxes(0, 1),
        6: pixels[::-1].swapaxes(0, 1),
        7: pixels[::-1, ::-1].swapaxes(0, 1),
        8: pixels[:, ::-1].swapaxes(0, 1),
    }
    np.testing.assert_array_equal(image.load_rgb(tmp_path / f"a.{ending}"), by_the_standard.get(orientation, pixels))


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_tiff_is_turned_once_whatever_else_it_holds(tmp_path, picture, compression):
    path = tmp_path / "a.tif"
    Image.fromarray(picture).save(path, compression=compression, tiffinfo={0x112: 6}, dpi=(300, 300))
    content = bytearray(path.read_bytes())
    at = content.find(struct.pack("<HHI", 0x11A, 5, 1))  # the resolution's entry: its kind, and where its value is
    content[at + 2 : at + 4] = struct.pack("<H", 10)
    (value,) = struct.unpack("<I", content[at + 8 : at + 12])
    content[value : value + 8] = BAD_RATIONAL
    path.write_bytes(content)
    np.testing.assert_array_equal(image.load_rgb(path), np.rot90(picture, -1))


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0no TIFF at all",
        exif_of(6, kind=2),
        exif_of(6, count=9),
        exif_of(6, kind=12),
        exif_of(6, kind=99),
    ],
)
def test_broken_exif_makes_no_broken_picture(tmp_path, picture, exif):
    Image.fromarray(picture).save(tmp_path / "plain.jpg")
    Image.fromarray(picture).save(tmp_path / "a.jpg", exif=exif)
    found = image.load_rgb(tmp_path / "a.jpg")
    assert sorted(found.shape) == [3, 480, 640]
    if found.shape[0] == 480:
        np.testing.assert_array_equal(found, image.load_rgb(tmp_path / "plain.jpg"))
    assert image.focal_length_35mm(tmp_path / "a.jpg") is None


@pytest.mark.parametrize(
    ("beginning", "name"),
    [
        (b"\0\0\0\x18ftypheic", "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x1cftypavif", "AVIF"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avif", "AVIF"),
        (b"\0\0\0\x0cjP  \r\n", "JPEG 2000"),
        (b"\xff\n", "JPEG XL"),
    ],
)
def test_formats_that_are_not_read_are_called_by_their_names(tmp_path, beginning, name):
    (tmp_path / "a.jpg").write_bytes(beginning.ljust(99, b"\0"))
    with pytest.raises(image.ImageError, match=rf"a\.jpg: {name} is not read: save it as JPEG or PNG first"):
        image.load_rgb(tmp_path / "a.jpg")


def test_a_large_photograph_is_read_at_half_its_size(tmp_path, monkeypatch, caplog, picture):
    smooth = cv2.GaussianBlur(picture, (31, 31), 0)
    for orientation in (1, 6):
        exif = taken_by(26)
        exif[0x112] = orientation
        Image.fromarray(smooth).save(tmp_path / f"{orientation}.jpg", quality=95, exif=exif)
    Image.fromarray(smooth).save(tmp_path / "progressive.jpg", progressive=True)
    monkeypatch.setattr(image, "MAX_PIXELS", 640 * 480 - 1)
    with caplog.at_level("INFO"):
        found = image.load_rgb(tmp_path / "1.jpg")
    assert "1.jpg: 480x640 is more than 307,199 pixels: read at half its size, 240x320" in caplog.text
    expected = cv2.resize(smooth, (320, 240), interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(found - expected).max() <= 8
    np.testing.assert_array_equal(image.load_rgb(tmp_path / "6.jpg"), np.rot90(found, -1))
    assert image.focal_length_35mm(tmp_path / "6.jpg") == 26
    with pytest.raises(image.ImageError, match=r"progressive\.jpg: 480x640 is more than 307,199 pixels: refused"):
        image.load_rgb(tmp_path / "progressive.jpg")
    monkeypatch.setattr(image, "MAX_JPEG_PIXELS", 640 * 480 - 1)
    with pytest.raises(image.ImageError, match=r"1\.jpg: 480x640 is more than 307,199 pixels: refused$"):
        image.load_rgb(tmp_path / "1.jpg")


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_broken_files_are_named(tmp_path, picture, ending):
    whole = tmp_path / f"whole.{ending}"
    Image.fromarray(picture).save(whole)
    content = whole.read_bytes()
    for name, damaged, text in (
        ("empty", b"", "the file is empty"),
        ("text", b"not a picture", "not one of JPEG, PNG, WEBP, TIFF, BMP, GIF"),
        ("eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not one of JPEG"),
        ("ppm", b"P6 9 9 255\n" + b"\0" * 243, "not one of JPEG"),
        ("half", content[: len(content) // 2], ""),
    ):
        path = tmp_path / f"{name}.{ending}"
        path.write_bytes(damaged)
        with pytest.raises(image.ImageError, match=rf"{name}\.{ending}: broken image: .*{text}"):
            image.load_rgb(path)
    with pytest.raises(image.ImageError, match="no such file"):
        image.load_rgb(tmp_path / f"absent.{ending}")


def test_the_most_that_is_read(tmp_path, monkeypatch):
    assert image.MAX_PIXELS == 64e6 and image.MAX_BYTES == 256e6
    path = tmp_path / "picture.png"
    Image.new("RGB", (20, 10)).save(path)
    monkeypatch.setattr(image, "MAX_PIXELS", 200)
    assert image.load_rgb(path).shape == (10, 20, 3)
    monkeypatch.setattr(image, "MAX_PIXELS", 199)
    with pytest.raises(image.ImageError, match=r"picture\.png: 10x20 is more than 199 pixels: refused \(a JPEG"):
        image.load_rgb(path)
    monkeypatch.setattr(image, "MAX_PIXELS", 200)
    monkeypatch.setattr(image, "MAX_BYTES", path.stat().st_size)
    assert image.load_rgb(path).shape == (10, 20, 3)
    monkeypatch.setattr(image, "MAX_BYTES", path.stat().st_size - 1)
    with pytest.raises(image.ImageError, match=r"picture\.png: more than .* bytes: refused"):
        image.load_rgb(path)


def test_a_pair_of_two_sizes_is_refused():
    image.check_pair(np.zeros((480, 640, 3), np.uint8), np.zeros((480, 640)), "a.jpg", "a.png")
    image.check_pair(np.zeros((240, 320, 3), np.uint8), np.zeros((240, 320)), "a.jpg", "a.png")  # the least
    for rgb, depth in (("480x640", "240x320"), ("240x320", "480x640"), ("480x640", "480x320"), ("480x320", "480x640")):
        sizes = [tuple(map(int, size.split("x"))) for size in (rgb, depth)]
        with pytest.raises(image.ImageError, match=rf"a\.jpg is {rgb} but a\.png is {depth}"):
            image.check_pair(np.zeros((*sizes[0], 3), np.uint8), np.zeros(sizes[1]), "a.jpg", "a.png")
    with pytest.raises(image.ImageError, match=r"a\.jpg: size 427x561"):
        image.check_pair(np.zeros((427, 561, 3), np.uint8), np.zeros((427, 561)), "a.jpg", "a.png")


@pytest.fixture
def decoded_by_opencv(monkeypatch):
    """For each picture that OpenCV is given, whether it made something of it."""
    made, decode = [], cv2.imdecode

    def watched(*arguments):
        pixels = decode(*arguments)
        made.append(pixels is not None)
        return pixels

    monkeypatch.setattr(cv2, "imdecode", watched)
    return made


@pytest.mark.parametrize(
    ("options", "by_opencv"),
    [
        ({}, [True]),
        ({"subsampling": 0, "quality": 97}, [True]),
        ({"progressive": True}, [True]),
        ({"mode": "L"}, [True]),
        ({"mode": "CMYK"}, []),
        ({"orientation": 6}, []),
    ],
)
def test_jpeg_is_read_as_pillow_reads_it(tmp_path, decoded_by_opencv, options, by_opencv):
    """Whichever library decodes it: the variants that OpenCV, which is faster, is given, and those that it is not."""
    options, path = dict(options), tmp_path / "picture.jpg"
    rng = np.random.default_rng(3)
    rgb = cv2.GaussianBlur(rng.integers(0, 256, (240, 320, 3), np.uint8), (7, 7), 0)
    saved = Image.fromarray(rgb).convert(options.pop("mode", "RGB"))
    if "orientation" in options:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = options.pop("orientation")
    saved.save(path, **options)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    np.testing.assert_array_equal(image.load_rgb(path), expected)
    assert decoded_by_opencv == by_opencv


@pytest.mark.parametrize(
    ("name", "options", "by_opencv"),
    [
        ("depth.png", {}, [True]),
        ("depth.png", {"transparency": 7}, [True]),
        ("depth.tif", {}, []),
        ("depth.jpg", {}, []),
    ],
)
def test_a_depth_map_is_read_as_it_is(tmp_path, decoded_by_opencv, name, options, by_opencv):
    """PNG by the faster library, with a transparent grey level or without, the others by Pillow."""
    pixels = np.arange(480 * 640).reshape(480, 640).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / name, **options)
    if name == "depth.jpg":
        pixels = np.asarray(Image.open(tmp_path / name))
    np.testing.assert_array_equal(image.load_train_depth_pixels(tmp_path / name), pixels)
    assert decoded_by_opencv == by_opencv


def test_what_opencv_makes_nothing_of_is_named_by_pillow(tmp_path, picture, decoded_by_opencv):
    """A JPEG that is whole but for its quantization tables."""
    path = tmp_path / "tables.jpg"
    Image.fromarray(picture).save(path)
    path.write_bytes(path.read_bytes().replace(b"\xff\xdb", b"\xff\xec"))  # a segment that readers pass over
    with pytest.raises(image.ImageError, match=r"tables\.jpg: broken image"):
        image.load_rgb(path)
    assert decoded_by_opencv == [False]


def test_a_broken_depth_map_is_named(tmp_path):
    path = tmp_path / "depth.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (480, 640), np.uint8)).save(path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    for content in (whole[:-40], whole[:1000], bytes(flipped)):
        path.write_bytes(content)
        with pytest.raises(image.ImageError, match=r"depth\.png: broken image"):
            image.load_train_depth(path)


@bounded
@given(content=mutations(*PICTURES), ending=st.sampled_from([".jpg", ".png", ".webp", ".tif", ".bmp"]))
def test_pictures(forked, tmp_path_factory, content, ending):
    folder = fresh(tmp_path_factory.getbasetemp() / "pictures")
    (folder / "in").mkdir()
    (folder / "in" / f"a{ending}").write_bytes(content)
    answer = forked("predict in out", cwd=folder, megabytes=MEGABYTES)
    judge(answer)
    made = files(folder) - {f"in/a{ending}"}
    assert made == ({"out/a_depth.png", "out/a_depth.npy"} if answer.returncode == 0 else set())
    assert answer.returncode == 0 or f"in/a{ending}" in answer.stdout
