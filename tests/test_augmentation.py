"""The random changes of a training pair, against Pillow, SciPy and closed forms."""

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy import ndimage

from src.data import augmentation, sampling


class Choices:
    """A generator that gives back chosen numbers."""

    def __init__(self, flip, brightness, sharpness):
        self.flip, self.factors = flip, [brightness, sharpness]

    def random(self):
        return 0.0 if self.flip else 1.0

    def uniform(self, low, high):
        value = self.factors.pop(0)
        assert low <= value <= high
        return value


@pytest.mark.parametrize(("flip", "brightness", "sharpness"), [(False, 1.0, 1.0), (True, 0.85, 0.8), (False, 0.9, 1.2)])
def test_augmentation_is_that_of_pillow(flip, brightness, sharpness):
    rng = np.random.default_rng(0)
    rgb = cv2.GaussianBlur(rng.integers(0, 256, (228, 304, 3), np.uint8), (5, 5), 0)
    depth_m = rng.uniform(1, 9, (55, 74)).astype(np.float32)
    ours, ours_m = np.empty((3, 228, 304), np.uint8), np.empty((1, 55, 74), np.float32)
    augmentation.augment(rgb, depth_m, Choices(flip, brightness, sharpness), ours, ours_m)
    pillow = ImageEnhance.Brightness(Image.fromarray(rgb)).enhance(brightness)
    pillow = np.asarray(ImageEnhance.Sharpness(pillow).enhance(sharpness)).astype(int)
    smooth = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    exact = rgb * brightness
    exact = sharpness * exact + (1 - sharpness) * ndimage.convolve(exact, smooth[..., None], mode="nearest")
    if flip:
        pillow, exact, depth_m = pillow[:, ::-1], exact[:, ::-1], depth_m[:, ::-1]
    inner = (slice(None), slice(1, -1), slice(1, -1))  # Pillow leaves the border unsmoothed
    assert np.abs(ours - pillow.transpose(2, 0, 1))[inner].max() <= 2  # it rounds down, and between the steps
    assert np.abs(ours - exact.clip(0, 255).transpose(2, 0, 1)).max() < 0.65
    np.testing.assert_array_equal(ours_m, depth_m[None])


class PaperChoices(Choices):
    """The same for the paper's augmentation: scale, angle in degrees, place."""

    def __init__(self, flip, scale, degrees, place):
        self.flip, self.factors = flip, [scale, degrees, np.array(place), np.ones(3)]

    def uniform(self, low, high, size=None):
        value = self.factors.pop(0)
        assert np.shape(value) == (() if size is None else (size,)) and np.all((low <= value) & (value <= high))
        return value


@pytest.mark.parametrize(
    ("flip", "scale", "degrees", "place"),
    [
        (False, 1.0, 0.0, (0, 0)),
        (False, 1.0, 0.0, (1, 1)),
        (False, 1.0, 0.0, (-1, 0.5)),
        (True, 1.0, 0.0, (1, -1)),
        (False, 1.5, 0.0, (1, -1)),
        (True, 1.25, 5.0, (0.5, 1)),
        (False, 1.0, -5.0, (1, -1)),
    ],
)
def test_the_paper_s_augmentation_is_an_affine_map(flip, scale, degrees, place):
    """Against SciPy's interpolation at the places that the paper's words give."""
    rng = np.random.default_rng(0)
    rgb = cv2.normalize(cv2.GaussianBlur(rng.random((240, 320, 3)), (15, 15), 0), None, 0, 255, cv2.NORM_MINMAX)
    rgb, pixels = rgb.astype(np.uint8), cv2.GaussianBlur(rng.integers(1, 256, (240, 320), np.uint8), (31, 31), 0)
    ours, ours_m = np.empty((3, 228, 304), np.uint8), np.empty((1, 55, 74), np.float32)
    augmentation.augment_as_paper(rgb, pixels, PaperChoices(flip, scale, degrees, place), ours, ours_m)
    angle = np.deg2rad(degrees)
    extent = [
        (304 * abs(np.cos(angle)) + 228 * abs(np.sin(angle))) / scale,
        (304 * abs(np.sin(angle)) + 228 * abs(np.cos(angle))) / scale,
    ]
    centre = [
        whole / 2 + max(whole - part, 0) / 2 * where
        for whole, part, where in zip((320, 240), extent, place, strict=True)
    ]

    def at(array, rows, columns, mode):
        """The array where the window has its cells, as many as it is given."""
        y, x = np.mgrid[:rows, :columns]
        x, y = ((x + 0.5) / columns - 0.5) * 304 / scale, ((y + 0.5) / rows - 0.5) * 228 / scale
        x = -x if flip else x
        place = (
            centre[1] + np.sin(angle) * x + np.cos(angle) * y - 0.5,
            centre[0] + np.cos(angle) * x - np.sin(angle) * y - 0.5,
        )
        return ndimage.map_coordinates(array.astype(float), place, order=1, mode=mode)

    for channel in range(3):
        assert np.abs(ours[channel] - at(rgb[..., channel], 228, 304, "mirror")).max() < 1.5
    inside = at(np.ones((240, 320)), 55, 74, "grid-constant") > 0.999
    assert inside.mean() > (0.9 if degrees else 0.999)
    depth_m = at(pixels, 55, 74, "nearest") / 25.5 / scale
    assert np.abs(ours_m[0] - depth_m)[inside].max() < 0.02
    pixels[::7], pixels[60:150, 100:180] = 1, 0  # the least depth; and a hole
    augmentation.augment_as_paper(rgb, pixels, PaperChoices(flip, scale, degrees, place), ours, ours_m)
    weight = at(pixels > 0, 55, 74, "grid-constant")
    depth_m = at(pixels, 55, 74, "grid-constant") / weight.clip(0.5) / 25.5 / scale
    known, seen = abs(weight - 0.5) > 0.03, weight > 0.5
    assert 300 < (known & ~seen).sum() < 2000 and (~known).sum() < 100
    assert (ours_m[0][known & ~seen] == 0).all()
    assert np.abs(ours_m[0] - depth_m)[known & seen].max() < 0.2


def test_the_paper_s_random_choices_have_its_ranges_and_shares():
    """Section 3.4's, read back from what becomes of a grey picture and of depth that grows from left to right."""
    rgb, growth = np.full((240, 320, 3), 100, np.uint8), 200 / 320
    pixels = np.tile(np.rint(20.5 + growth * np.arange(320)).astype(np.uint8), (240, 1))
    rows, columns = np.mgrid[:55, :74]
    v, u = ((rows + 0.5) / 55 - 0.5) * 228, ((columns + 0.5) / 74 - 0.5) * 304
    found, colours = [], []
    ours, ours_m = np.empty((3, 228, 304), np.uint8), np.empty((1, 55, 74), np.float32)
    for sample in range(1000):
        augmentation.augment_as_paper(rgb, pixels, sampling.counter_rng(3, 0, sample), ours, ours_m)
        colours.append(ours[:, 0, 0] / 100)
        seen = ours_m[0] > 0
        across, down, middle = np.linalg.lstsq(
            np.column_stack([u[seen], v[seen], np.ones(seen.sum())]), ours_m[0][seen] * 25.5, rcond=None
        )[0]
        scale = np.sqrt(growth / np.hypot(across, down))
        angle = np.arctan(-down / abs(across))
        room = max(320 - (304 * np.cos(angle) + 228 * abs(np.sin(angle))) / scale, 0)
        place = ((middle * scale - 20.5) / growth + 0.5 - 160) / (room / 2) if room > 5 else 0
        found.append((across < 0, scale, np.rad2deg(angle), place))
    flips, scales, degrees, places = np.transpose(found)
    assert abs(flips.mean() - 0.5) < 0.05
    for values, low, high, near in (
        (scales, 1, 1.5, 0.01),
        (degrees, -5, 5, 0.1),
        (places, -1, 1, 0.05),
        (np.ravel(colours), 0.8, 1.2, 0.01),
    ):
        assert abs(values.min() - low) < near and abs(values.max() - high) < near
        assert abs(values.mean() - (low + high) / 2) < 0.05 * (high - low)
    assert np.corrcoef(np.transpose(colours))[0, 1] < 0.1  # each channel by its own factor


def test_random_choices_have_their_ranges_and_shares():
    flips, brightness, sharpness = [], [], []
    for sample in range(2000):
        rng = sampling.counter_rng(0, 1, sample)
        flips.append(rng.random() < 0.5)
        brightness.append(rng.uniform(*augmentation.BRIGHTNESS))
        sharpness.append(rng.uniform(*augmentation.SHARPNESS))
    assert abs(np.mean(flips) - 0.5) < 0.04
    assert 0.8 <= min(brightness) < 0.81 and 0.99 < max(brightness) <= 1.0
    assert 0.8 <= min(sharpness) < 0.81 and 1.19 < max(sharpness) <= 1.2
    for seed, epoch, sample in ((0, 0, None), (7, 3, 5), (2**63, 1, 0)):  # what a run drew is the same in every version
        bits = np.random.Philox(key=seed + (0 if sample is None else sample + 1 << 64), counter=epoch << 192)
        assert sampling.counter_rng(seed, epoch, sample).random() == np.random.Generator(bits).random()
    assert sampling.counter_rng(0, 1, 2).random() != sampling.counter_rng(0, 2, 2).random()
    assert len({sampling.counter_rng(0, 1, sample).random() for sample in (None, 0, 1, 2)}) == 4
    assert sampling.counter_rng(0, 1, 2).random() != sampling.counter_rng(1, 1, 2).random()
