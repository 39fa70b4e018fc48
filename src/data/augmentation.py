"""Augments training pairs at random, with a generator passed by the caller."""

from collections.abc import Callable
from typing import TypeAlias

import cv2
import numpy as np

from src.base.arrays import Array, Floats, Pixels
from src.data import image

BRIGHTNESS = (0.8, 1.0)
SHARPNESS = (0.8, 1.2)

# The paper's augmentation (section 3.4).
PAPER_SCALE, PAPER_ROTATION_DEGREES, PAPER_COLOUR = (1.0, 1.5), 5.0, (0.8, 1.2)


def augment(rgb: Pixels, depth_m: Floats, rng: np.random.Generator, rgb_out: Pixels, depth_out: Floats) -> None:
    """Flip RGB and depth with probability 0.5, and change the brightness and sharpness of RGB.

    Sharpness is defined as in Pillow's ImageEnhance: c * rgb + (1 - c) * smooth, where smooth is 5/13 of the pixel plus
    1/13 of each of its eight neighbours, which equals 4/13 of the pixel plus 9/13 of the 3x3 mean.

    Args:
        rgb: uint8 (228, 304, 3).
        depth_m: metres (55, 74).
        rng: source of all randomness.
        rgb_out: the result, uint8 (3, 228, 304), written in place.
        depth_out: the result, float32 metres (1, 55, 74), written in place.
    """
    flip = rng.random() < 0.5
    brightness, sharpness = rng.uniform(*BRIGHTNESS), rng.uniform(*SHARPNESS)
    mean = cv2.blur(rgb, (3, 3), borderType=cv2.BORDER_REPLICATE)
    rgb = cv2.addWeighted(
        rgb, brightness * (sharpness + (1 - sharpness) * 4 / 13), mean, brightness * (1 - sharpness) * 9 / 13, 0
    )
    if flip:
        rgb, depth_m = cv2.flip(rgb, 1), depth_m[:, ::-1]
    cv2.split(rgb, list(rgb_out))
    depth_out[0] = depth_m


def augment_as_paper(rgb: Pixels, pixels: Pixels, rng: np.random.Generator, rgb_out: Pixels, depth_out: Floats) -> None:
    """Augment as in the paper (section 3.4): scale by 1 to 1.5 and divide the depth by it, rotate by up to 5 degrees,
    translate within the picture, multiply each colour by 0.8 to 1.2, and flip with probability 0.5.

    RGB outside the picture is its mirror image; depth outside is not measured. Depth is resampled bilinearly over the
    measured pixels.

    Args:
        rgb: the whole picture at half size, uint8 (240, 320, 3).
        pixels: its training depth pixels, uint8 (240, 320).
        rng: source of all randomness.
        rgb_out: the result, uint8 (3, 228, 304), written in place.
        depth_out: the result, float32 metres (1, 55, 74), written in place.
    """
    flip, scale = rng.random() < 0.5, rng.uniform(*PAPER_SCALE)
    angle = np.deg2rad(rng.uniform(-PAPER_ROTATION_DEGREES, PAPER_ROTATION_DEGREES))
    offset, colour = rng.uniform(-1, 1, 2), rng.uniform(*PAPER_COLOUR, 3)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
    full, seen = np.array(image.HALF_SIZE[::-1]), np.array(image.RGB_SIZE[::-1])  # as (x, y)
    room = np.maximum(full - np.abs(turn) @ seen, 0)
    centre = full / 2 + offset * room / 2
    turn = turn @ np.diag([-1 if flip else 1, 1])

    def cut(array: Array, size: tuple[int, int], border: int) -> Array:
        """Sample the window on a grid of `size` (height, width) cells with half-pixel centres."""
        cells = np.array(size[::-1])
        matrix = turn @ np.diag(seen / cells)
        origin = centre - 0.5 - matrix @ (cells - 1) / 2
        return cv2.warpAffine(
            array,
            np.column_stack([matrix, origin]),
            size[::-1],
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=border,
        )

    rgb = cut(rgb, image.RGB_SIZE, cv2.BORDER_REFLECT_101)
    cv2.split(cv2.multiply(rgb, (*colour, 0)), list(rgb_out))
    depth = np.dstack([pixels, pixels > 0]).astype(np.float32)
    total, weight = np.moveaxis(cut(depth, image.DEPTH_SIZE, cv2.BORDER_CONSTANT), 2, 0)
    depth_out[0] = np.where(weight >= 0.5, total / np.maximum(weight, 0.5), 0) * (image.TRAIN_DEPTH_SCALE / scale)


Augmentation: TypeAlias = Callable[[Pixels, Array, np.random.Generator, Pixels, Floats], None]

AUGMENTATIONS: dict[str, Augmentation] = {"reference": augment, "paper": augment_as_paper}
