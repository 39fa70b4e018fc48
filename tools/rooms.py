"""Renders rooms with their true depth: walls with doors, windows and pictures, furniture, and daylight.

A room and all objects in it are axis-aligned boxes. The camera is a pinhole camera with the intrinsics of NYU's Kinect.
Depth is the distance along the optical axis, computed by ray casting. World axes: x right, y up, z forward, in metres.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypeVar

import cv2
import numpy as np

from src.base.arrays import Array, Doubles, Floats, Pixels
from src.prediction.pointcloud import Intrinsics

HEIGHT, WIDTH = 480, 640
KINECT = Intrinsics.kinect(HEIGHT, WIDTH)
MAX_DEPTH_M = 9.9  # below 10 m, the largest depth of the 8-bit encoding
FREE_M = 0.5  # free space around the camera

# Linear albedos.
WALLS = (
    (0.75, 0.72, 0.66),
    (0.70, 0.64, 0.52),
    (0.58, 0.66, 0.70),
    (0.62, 0.68, 0.58),
    (0.78, 0.76, 0.74),
    (0.66, 0.56, 0.50),
)
WOODS = ((0.42, 0.26, 0.13), (0.24, 0.13, 0.07), (0.55, 0.40, 0.24), (0.33, 0.20, 0.11), (0.66, 0.62, 0.55))
CLOTHS = (
    (0.30, 0.34, 0.42),
    (0.45, 0.16, 0.12),
    (0.55, 0.50, 0.42),
    (0.16, 0.28, 0.24),
    (0.50, 0.42, 0.20),
    (0.18, 0.18, 0.20),
    (0.40, 0.30, 0.45),
)
WHITE, METAL, SKY = (0.80, 0.79, 0.76), (0.35, 0.35, 0.36), (0.85, 0.93, 1.0)

T = TypeVar("T")
Colour: TypeAlias = tuple[float, ...]  # albedo (3,)
Extent: TypeAlias = tuple[float, float]
Footprint: TypeAlias = tuple[Array, Array]  # lower and upper corner (x, z) in metres


@dataclass(frozen=True)
class Box:
    """An axis-aligned box: lower and upper corner (3,) in metres, albedo, and texture (a key of LOOKS)."""

    low: Doubles
    high: Doubles
    colour: Colour
    look: str = "plain"


def box(x: Extent, y: Extent, z: Extent, colour: Colour, look: str = "plain") -> Box:
    """Return a Box from its extents (from, to) along each axis, in either order."""
    low, high = np.sort(np.array([x, y, z], float), axis=1).T
    return Box(low, high, tuple(colour), look)


# ---- geometry


def camera_axes(yaw: float, pitch: float) -> Doubles:
    """Return the camera's axes (right, up, forward) in world coordinates, as the columns of a matrix (3, 3).

    Args:
        yaw, pitch: in radians; a negative pitch looks down.
    """
    tilt = np.array([[1, 0, 0], [0, np.cos(pitch), np.sin(pitch)], [0, -np.sin(pitch), np.cos(pitch)]])
    turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    return turn @ tilt


def camera_rays(yaw: float, pitch: float) -> Doubles:
    """Return ray directions (H, W, 3), scaled so that the ray parameter is depth along the optical axis.

    Arguments as in `camera_axes`.
    """
    x = (np.arange(WIDTH) - KINECT.cx) / KINECT.fx
    y = (KINECT.cy - np.arange(HEIGHT)) / KINECT.fy
    rays = np.stack(np.broadcast_arrays(x[None, :], y[:, None], 1.0), axis=-1)
    return rays @ camera_axes(yaw, pitch).T


def cast_box(origin: Array, rays: Array, low: Array, high: Array, inside: bool) -> tuple[Array, Array]:
    """Intersect rays with an axis-aligned box.

    Args:
        origin: origin of the rays (3,).
        rays: directions (H, W, 3), as `camera_rays` returns them.
        low, high: corners of the box (3,).
        inside: whether the origin is inside the box.

    Returns:
        (depth (H, W), axis that the face is normal to (H, W)) of the point where a ray leaves the box if `inside`, else
        where it enters the box. The depth is infinite where a ray misses the box.
    """
    depth = np.full(rays.shape[:2], np.inf if inside else -np.inf, rays.dtype)
    axis, exit_depth = np.zeros(rays.shape[:2], np.int8), np.inf
    for number in range(3):
        with np.errstate(divide="ignore", invalid="ignore"):
            at_low, at_high = ((bound[number] - origin[number]) / rays[..., number] for bound in (low, high))
        near, far = np.minimum(at_low, at_high), np.maximum(at_low, at_high)
        hit = far < depth if inside else near > depth
        axis[hit] = number
        depth = np.where(hit, far if inside else near, depth)
        exit_depth = np.minimum(exit_depth, far)
    return (depth, axis) if inside else (np.where((depth < exit_depth) & (depth > 0), depth, np.inf), axis)


def seen_in(solid: Box, origin: Array, axes: Array) -> tuple[slice, slice]:
    """Return the slices of rows and columns in which a Box appears. If a part of it is behind the camera, the whole
    picture.

    Args:
        solid: the Box.
        origin: position of the camera (3,).
        axes: as `camera_axes` returns them.
    """
    corners = np.array(list(itertools.product(*zip(solid.low, solid.high, strict=True))))
    right, up, forward = ((corners - origin) @ axes).T
    if forward.min() < 0.05:
        return slice(0, HEIGHT), slice(0, WIDTH)
    columns, rows = KINECT.cx + KINECT.fx * right / forward, KINECT.cy - KINECT.fy * up / forward

    def within(pixels: Array, count: int) -> slice:
        return slice(int(np.clip(np.floor(pixels.min()), 0, count)), int(np.clip(np.ceil(pixels.max()) + 1, 0, count)))

    return within(rows, HEIGHT), within(columns, WIDTH)


# ---- furniture, in its own coordinates: x along the wall from 0, y up, z from the wall into the room


def _table(rng: np.random.Generator, height: float = 0.74) -> list[Box]:
    width, deep, wood = rng.uniform(0.9, 1.6), rng.uniform(0.6, 0.9), _one_of(rng, WOODS)
    legs = [
        box((x, x + 0.06), (0, height), (z, z + 0.06), wood, "wood")
        for x in (0.03, width - 0.09)
        for z in (0.03, deep - 0.09)
    ]
    return [
        box((0, width), (height - 0.04, height), (0, deep), wood, "wood"),
        *legs,
        *_things(rng, width, deep, height),
    ]


def _things(rng: np.random.Generator, width: float, deep: float, height: float) -> list[Box]:
    """Return 0 to 3 small boxes on a table."""
    things = []
    for _ in range(rng.integers(0, 4)):
        size = rng.uniform((0.08, 0.03, 0.08), (0.3, 0.3, 0.22))
        x, z = rng.uniform(0, width - size[0]), rng.uniform(0, deep - size[2])
        things.append(box((x, x + size[0]), (height, height + size[1]), (z, z + size[2]), _one_of(rng, CLOTHS)))
    return things


def _low_table(rng: np.random.Generator) -> list[Box]:
    return _table(rng, height=0.42)


def _chair(rng: np.random.Generator) -> list[Box]:
    wood, cloth = _one_of(rng, WOODS), _one_of(rng, CLOTHS)
    legs = [box((x, x + 0.04), (0, 0.45), (z, z + 0.04), wood) for x in (0, 0.4) for z in (0, 0.4)]
    return [
        box((0, 0.44), (0.43, 0.49), (0, 0.44), cloth, "cloth"),
        box((0, 0.44), (0.49, 0.95), (0, 0.05), wood, "wood"),
        *legs,
    ]


def _sofa(rng: np.random.Generator) -> list[Box]:
    width, cloth = rng.uniform(1.5, 2.2), _one_of(rng, CLOTHS)
    lighter = tuple(1.15 * channel for channel in cloth)
    half = (width - 0.36) / 2
    cushions = [
        box((0.18 + n * half + 0.01, 0.18 + (n + 1) * half - 0.01), (0.25, 0.45), (0.22, 0.88), lighter, "cloth")
        for n in range(2)
    ]
    return [
        box((0, width), (0.05, 0.28), (0, 0.88), cloth, "cloth"),
        box((0, width), (0.28, 0.85), (0, 0.22), cloth, "cloth"),
        box((0, 0.18), (0.05, 0.6), (0, 0.88), cloth, "cloth"),
        box((width - 0.18, width), (0.05, 0.6), (0, 0.88), cloth, "cloth"),
        *cushions,
    ]


def _bed(rng: np.random.Generator) -> list[Box]:
    width, wood, cloth = rng.uniform(1.0, 1.7), _one_of(rng, WOODS), _one_of(rng, CLOTHS)
    pillow = (width - 0.3) / 2
    pillows = [
        box((0.1 + n * (pillow + 0.1), 0.1 + n * (pillow + 0.1) + pillow), (0.5, 0.62), (0.1, 0.5), WHITE, "cloth")
        for n in range(2)
    ]
    return [
        box((0, width), (0.1, 0.3), (0, 2.0), wood, "wood"),
        box((0.02, width - 0.02), (0.3, 0.5), (0.05, 1.98), WHITE, "cloth"),
        box((0, width), (0.32, 0.53), (0.7, 2.01), cloth, "cloth"),
        box((0, width), (0, 1.0), (0, 0.05), wood, "wood"),
        *pillows,
    ]


def _shelf(rng: np.random.Generator) -> list[Box]:
    width, height, wood = rng.uniform(0.7, 1.4), rng.uniform(1.5, 2.1), _one_of(rng, WOODS)
    levels = np.linspace(0.05, height - 0.02, rng.integers(5, 7))
    boards = [box((0, width), (y - 0.02, y + 0.02), (0, 0.3), wood, "wood") for y in levels]
    books = [
        box(
            (0.03, 0.03 + rng.uniform(0.5, 1) * (width - 0.06)),
            (y + 0.02, y + rng.uniform(0.55, 0.85) * (up - y)),
            (0.04, 0.25),
            WHITE,
            "books",
        )
        for y, up in itertools.pairwise(levels)
        if rng.random() < 0.85
    ]
    return [
        box((0, width), (0, height), (0, 0.02), wood, "wood"),
        box((0, 0.03), (0, height), (0, 0.3), wood, "wood"),
        box((width - 0.03, width), (0, height), (0, 0.3), wood, "wood"),
        *boards,
        *books,
    ]


def _wardrobe(rng: np.random.Generator) -> list[Box]:
    width, height, wood = rng.uniform(1.0, 1.8), rng.uniform(1.9, 2.2), _one_of(rng, (*WOODS, WHITE))
    handles = [box((x, x + 0.02), (0.95, 1.15), (0.6, 0.63), METAL) for x in (width / 2 - 0.06, width / 2 + 0.04)]
    return [box((0, width), (0, height), (0, 0.6), wood, "doors"), *handles]


def _drawers(rng: np.random.Generator) -> list[Box]:
    width, height, wood = rng.uniform(0.8, 1.4), rng.uniform(0.7, 1.0), _one_of(rng, (*WOODS, WHITE))
    return [box((0, width), (0, height), (0, 0.45), wood, "drawers"), *_things(rng, width, 0.45, height)]


def _screen(rng: np.random.Generator) -> list[Box]:
    return [
        box((0, 1.4), (0.1, 0.45), (0, 0.4), _one_of(rng, WOODS), "drawers"),
        box((0.5, 0.9), (0.45, 0.5), (0.1, 0.3), METAL),
        box((0.2, 1.2), (0.5, 1.1), (0.18, 0.22), (0.02, 0.02, 0.025)),
    ]


def _lamp(rng: np.random.Generator) -> list[Box]:
    return [
        box((0.12, 0.28), (0, 0.03), (0.12, 0.28), METAL),
        box((0.19, 0.21), (0.03, 1.4), (0.19, 0.21), METAL),
        box((0.05, 0.35), (1.4, 1.7), (0.05, 0.35), (0.9, 0.8, 0.6), "glow"),
    ]


AT_WALL = (_bed, _sofa, _shelf, _wardrobe, _drawers, _screen, _shelf)
FREE = (_table, _low_table, _chair, _chair, _lamp)


def _one_of(rng: np.random.Generator, choices: Sequence[T]) -> T:
    return choices[rng.integers(len(choices))]


def _placed(boxes: Sequence[Box], wall: str, start: Any, size: Array) -> list[Box]:
    """Convert boxes from their own coordinates to the room's.

    Args:
        boxes: furniture, or things on a wall.
        wall: "left", "right" or "back"; "free": not at a wall.
        start: position along the wall in metres, or (x, z) if "free".
        size: size of the room (3,).
    """

    def placed(solid: Box) -> Box:
        (x0, y0, z0), (x1, y1, z1) = solid.low, solid.high
        if wall == "back":
            x, z = (start + x0, start + x1), (size[2] - z0, size[2] - z1)
        elif wall == "free":
            x, z = (start[0] + x0, start[0] + x1), (start[1] + z0, start[1] + z1)
        else:
            x, z = ((z0, z1) if wall == "left" else (size[0] - z0, size[0] - z1)), (start + x0, start + x1)
        return box(x, (y0, y1), z, solid.colour, solid.look)

    return [placed(solid) for solid in boxes]


def footprint(boxes: Sequence[Box]) -> Footprint:
    """Return the floor area that boxes cover together: its lower and upper corner (x, z)."""
    return (
        np.min([solid.low[[0, 2]] for solid in boxes], axis=0),
        np.max([solid.high[[0, 2]] for solid in boxes], axis=0),
    )


def furnish(rng: np.random.Generator, size: Array, origin: Array, doorways: Sequence[Footprint]) -> list[list[Box]]:
    """Furnish a room at random. Pieces do not overlap, and leave the doorways and the area around the camera free.

    Args:
        rng: random generator.
        size: size of the room (3,).
        origin: position of the camera (3,).
        doorways: floor areas to leave free.

    Returns:
        A list of Boxes for each piece of furniture.
    """
    pieces: list[list[Box]] = []
    taken = [(origin[[0, 2]] - FREE_M, origin[[0, 2]] + FREE_M), *doorways]
    for _ in range(40):
        if len(pieces) >= 7:
            break
        if rng.random() < 0.6:
            wall = ("left", "right", "back", "back")[rng.integers(4)]
            boxes = _one_of(rng, AT_WALL)(rng)
            last_start = size[0 if wall == "back" else 2] - footprint(boxes)[1][0]
            start = rng.uniform(0, max(last_start, 0.01))
        else:
            wall, boxes = "free", _one_of(rng, FREE)(rng)
            start = rng.uniform((0.2, 1.0), np.maximum(size[[0, 2]] - 1.2, 1.01))
        boxes = _placed(boxes, wall, start, size)
        low, high = footprint(boxes)
        if (low < -1e-9).any() or (high > size[[0, 2]] + 1e-9).any() or max(solid.high[1] for solid in boxes) > size[1]:
            continue
        if all((high + 0.05 < other_low).any() or (low - 0.05 > other_high).any() for other_low, other_high in taken):
            pieces.append(boxes)
            taken.append((low, high))
    return pieces


def fittings(rng: np.random.Generator, size: Array) -> tuple[list[Box], list[Box], list[Footprint]]:
    """Put doors, windows, pictures and skirting on the walls at random.

    Args:
        rng: random generator.
        size: size of the room (3,).

    Returns:
        (all Boxes, the window panes, the floor areas in front of the doors).
    """
    boxes, panes, doorways = [], [], []
    trim = _one_of(rng, (WHITE, *WOODS[:3]))
    for wall, length in (("back", size[0]), ("left", size[2]), ("right", size[2])):
        boxes += _placed([box((0, length), (0, 0.09), (0, 0.015), trim)], wall, 0, size)
        at = rng.uniform(0.3, 0.9)
        while at < length - 1.2:
            kind = rng.random()
            width = rng.uniform(0.9, 1.8)
            if kind < 0.45 and at + width < length - 0.2:
                pane, frame = _window(rng, width, trim)
                panes += _placed([pane], wall, at, size)
                boxes += _placed([pane, *frame], wall, at, size)
            elif kind < 0.65:
                width = 0.9
                doorways.append(footprint(_placed([box((0, width), (0, 2), (0, 0.9), WHITE)], wall, at, size)))
                boxes += _placed(_door(rng, width, trim), wall, at, size)
            elif kind < 0.9:
                width = rng.uniform(0.4, 1.0)
                boxes += _placed(_framed_picture(rng, width), wall, at, size)
            at += width + rng.uniform(0.3, 1.5)
    return boxes, panes, doorways


def _window(rng: np.random.Generator, width: float, trim: Colour) -> tuple[Box, list[Box]]:
    """Return (the pane of a window, its bars and sill)."""
    low, high = rng.uniform(0.8, 1.0), rng.uniform(1.9, 2.2)
    pane = box((0.05, width - 0.05), (low + 0.05, high - 0.05), (0, 0.01), SKY, "sky")
    frame = [box((0, width), (y, y + 0.05), (0, 0.05), trim) for y in (low, high - 0.05)]
    frame += [box((x, x + 0.05), (low, high), (0, 0.05), trim) for x in (0, width / 2 - 0.025, width - 0.05)]
    return pane, [*frame, box((-0.05, width + 0.05), (low - 0.04, low), (0, 0.12), trim)]


def _door(rng: np.random.Generator, width: float, trim: Colour) -> list[Box]:
    """Return the frame, the leaf and the handle of a door."""
    return [
        box((0, width), (0, 2.1), (0, 0.03), trim),
        box((0.08, width - 0.08), (0, 2.02), (0, 0.045), _one_of(rng, (*WOODS, WHITE)), "panels"),
        box((width - 0.2, width - 0.1), (1.0, 1.03), (0.045, 0.09), METAL),
    ]


def _framed_picture(rng: np.random.Generator, width: float) -> list[Box]:
    """Return the frame and the picture."""
    height = rng.uniform(0.3, 0.7)
    return [
        box((0, width), (1.3, 1.3 + height), (0, 0.02), _one_of(rng, WOODS)),
        box((0.04, width - 0.04), (1.34, 1.26 + height), (0, 0.025), WHITE, "picture"),
    ]


# ---- textures: functions of (points (N, 3), axis (N,), Box, rng) -> factors of the albedo (N,) or (N, 3)


def _inside(points: Array, axis: Array, solid: Box) -> tuple[Array, Array]:
    """Return the position of points on their face, (across, up) in [0, 1]; on horizontal faces "up" is along z."""
    position = (points - solid.low) / np.maximum(solid.high - solid.low, 1e-6)
    across = np.where(axis == 0, position[:, 2], position[:, 0])
    return across, np.where(axis == 1, position[:, 2], position[:, 1])


def _plain(points: Array, axis: Array, solid: Box, rng: np.random.Generator) -> Array | float:
    return np.ones(len(points), np.float32)


def _wood(points: Array, axis: Array, solid: Box, rng: np.random.Generator) -> Array | float:
    long = np.argmax(solid.high - solid.low)
    along, across = points[:, long], points[:, (long + 1) % 3] + points[:, (long + 2) % 3]
    return 1 + 0.06 * np.sin(45 * across + 2 * np.sin(3 * along + rng.uniform(0, 6))) * np.sin(17 * across)


def _cloth(points: Array, axis: Array, solid: Box, rng: np.random.Generator) -> Array | float:
    return 1 + 0.05 * np.sin(5 * points.sum(1)) + rng.normal(0, 0.03, len(points))


def _books(points: Array, axis: Array, solid: Box, rng: np.random.Generator) -> Array | float:
    width = rng.uniform(0.03, 0.05)
    across = np.where(axis == 0, points[:, 2], points[:, 0])
    return rng.uniform(0.05, 0.75, (64, 3))[(across / width).astype(int) % 64]


def _picture(points: Array, axis: Array, solid: Box, rng: np.random.Generator) -> Array | float:
    """Draw hills under a sky."""
    across, up = _inside(points, axis, solid)
    colours, layer = rng.uniform(0.1, 1.0, (4, 3)), np.zeros(len(points), int)
    for number in range(1, 4):
        hill = 0.9 - 0.25 * number + 0.1 * np.sin(rng.uniform(3, 9) * across + rng.uniform(0, 6))
        layer[up < hill] = number
    return colours[layer]


def _doors(points: Array, axis: Array, solid: Box, rng: np.random.Generator) -> Array | float:
    across, up = _inside(points, axis, solid)
    return _wood(points, axis, solid, rng) * np.where(
        (np.abs(across - 0.5) < 0.006) | (np.abs(up - 0.04) < 0.004), 0.35, 1
    )


def _drawer_fronts(points: Array, axis: Array, solid: Box, rng: np.random.Generator) -> Array | float:
    across, up = _inside(points, axis, solid)
    knob = (np.abs(up * 3 % 1 - 0.5) < 0.08) & (np.abs(across - 0.5) < 0.03) & (axis != 1)
    gap = (up * 3 % 1 < 0.04) & (axis != 1)
    return _wood(points, axis, solid, rng) * np.where(gap, 0.35, 1) * np.where(knob, 0.3, 1)


def _panels(points: Array, axis: Array, solid: Box, rng: np.random.Generator) -> Array | float:
    across, up = _inside(points, axis, solid)
    edge = np.minimum(np.abs(np.abs(across - 0.5) - 0.32) / 1.0, np.abs(np.abs(up * 2 % 1 - 0.5) - 0.38))
    return np.where((edge < 0.012) & (np.abs(across - 0.5) < 0.33) & (np.abs(up * 2 % 1 - 0.5) < 0.39), 0.7, 1.0)


def _planks(points: Array, axis: Array, solid: Box, rng: np.random.Generator) -> Array | float:
    width = rng.uniform(0.09, 0.16)
    row = np.floor(points[:, 0] / width).astype(int)
    plank = np.floor(points[:, 2] / 1.2 + 0.37 * row).astype(int)
    tint = rng.uniform(0.8, 1.1, 997)[(31 * row + 17 * plank) % 997]
    gap = (points[:, 0] / width % 1 < 0.03) | ((points[:, 2] / 1.2 + 0.37 * row) % 1 < 0.004)
    return tint * np.where(gap, 0.5, 1) * (1 + 0.05 * np.sin(300 * points[:, 0] + 2 * np.sin(5 * points[:, 2] + row)))


def _tiles(points: Array, axis: Array, solid: Box, rng: np.random.Generator) -> Array | float:
    side = rng.uniform(0.28, 0.42)
    cells = points[:, [0, 2]] / side
    tint = rng.uniform(0.92, 1.05, 997)[(31 * np.floor(cells[:, 0]) + 17 * np.floor(cells[:, 1])).astype(int) % 997]
    return tint * np.where((cells % 1 < 0.02).any(1), 0.6, 1)


def _carpet(points: Array, axis: Array, solid: Box, rng: np.random.Generator) -> Array | float:
    return rng.normal(1, 0.07, len(points))


LOOKS: dict[str, Callable[[Array, Array, Box, np.random.Generator], Array | float]] = {
    "plain": _plain,
    "wood": _wood,
    "cloth": _cloth,
    "books": _books,
    "picture": _picture,
    "doors": _doors,
    "drawers": _drawer_fronts,
    "panels": _panels,
    "planks": _planks,
    "tiles": _tiles,
    "carpet": _carpet,
    "sky": _plain,
    "glow": _plain,
}
GLOWS = {"sky": 1.6, "glow": 1.2}


# ---- light


def _light(points: Array, normals: Array, depth: Array, size: Array, panes: Sequence[Box], lamp: float) -> Array:
    """Return the light on each point: from the window panes, from a ceiling lamp, from all sides, and from the camera,
    whose light fades with distance.

    Args:
        points, normals: (H, W, 3).
        depth: (H, W) metres.
        size: size of the room (3,).
        panes: the window panes.
        lamp: power of the ceiling lamp.

    Returns:
        (H, W), in arbitrary units.
    """
    total = 0.30 + 0.08 * normals[..., 1]
    sources = [((pane.low + pane.high) / 2, 1.5 * np.prod(np.sort(pane.high - pane.low)[1:])) for pane in panes]
    for position, power in [*sources, (np.array([size[0] / 2, size[1] - 0.1, size[2] / 2]), lamp)]:
        towards = position.astype(np.float32) - points
        squared = (towards**2).sum(-1)
        facing = np.clip((towards * normals).sum(-1), 0, None) / np.sqrt(squared)
        total = total + power * facing / (squared + 0.5)
    return total + 0.5 / (1 + 0.5 * depth**2)


def _corners(points: Array, axis: Array, size: Array) -> Array:
    """Return factors of the light that darken walls, floor and ceiling near their common edges."""
    distance = np.minimum(points, size.astype(np.float32) - points)
    shade = 1 - 0.28 * np.exp(-distance / 0.22)
    return shade.prod(-1) / np.take_along_axis(shade, axis[..., None], -1)[..., 0]


def _contact(points: Array, pieces: Sequence[Sequence[Box]]) -> Array:
    """Return factors of the light that darken the floor beside and under furniture."""
    shade = np.ones(len(points), np.float32)
    for boxes in pieces:
        low, high = footprint(boxes)
        away = np.hypot(
            *(
                np.maximum(np.maximum(low[n] - points[:, axis], points[:, axis] - high[n]), 0)
                for n, axis in enumerate((0, 2))
            )
        )
        shade *= 1 - 0.5 * np.exp(-away / 0.15)
    return shade


# ---- a picture


def render(rng: np.random.Generator) -> tuple[Pixels, Floats]:
    """Render a view of a random room. Returns (uint8 RGB (480, 640, 3), depth in metres (480, 640))."""
    size = np.array([rng.uniform(3, 6.5), rng.uniform(2.4, 3.0), rng.uniform(3.2, 7)])
    origin = size * (rng.uniform(0.3, 0.7), 0, rng.uniform(0.05, 0.25)) + (0, rng.uniform(1.2, 1.7), 0)
    yaw, pitch = rng.uniform(-0.4, 0.4), rng.uniform(-0.3, 0.0)
    axes = camera_axes(yaw, pitch)
    rays = np.ascontiguousarray(camera_rays(yaw, pitch).transpose(2, 0, 1), np.float32).transpose(1, 2, 0)
    on_walls, panes, doorways = fittings(rng, size)
    pieces = furnish(rng, size, origin, doorways)
    boxes = [*on_walls, *(solid for piece in pieces for solid in piece)]

    depth, axis, which = _cast_room(boxes, size, origin, axes, rays)
    points = origin.astype(np.float32) + depth[..., None] * rays
    normals = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    for number in range(3):
        normals[..., number] = np.where(axis == number, -np.sign(rays[..., number]), 0)
    light = _light(points, normals, depth, size, panes, rng.uniform(0.3, 1.2))
    room = which == -1
    light[room] *= _corners(points[room], axis[room], size)
    floor = room & (normals[..., 1] > 0)
    light[floor] *= _contact(points[floor], pieces)

    surfaces = _room_surfaces(rng, size)
    visible = [
        (floor, surfaces[0]),
        (room & (normals[..., 1] < 0), surfaces[1]),
        (room & (normals[..., 1] == 0), surfaces[2]),
        *((which == number, boxes[number]) for number in np.unique(which[~room])),
    ]
    radiance = _radiance(rng, visible, points, axis, light)
    return _photograph(radiance, rng), np.minimum(depth, MAX_DEPTH_M)


def _cast_room(
    boxes: Sequence[Box], size: Array, origin: Array, axes: Array, rays: Array
) -> tuple[Array, Array, Array]:
    """Cast rays from inside a room.

    Args:
        boxes: all Boxes in the room.
        size: size of the room (3,).
        origin, axes, rays: of the camera, as in `seen_in` and `cast_box`.

    Returns:
        (depth (H, W), axis that the face is normal to (H, W), index of the Box, or -1 for the room itself (H, W)).
    """
    depth, axis = cast_box(origin, rays, np.zeros(3), size, inside=True)
    which = np.full((HEIGHT, WIDTH), -1, np.int16)
    for number, solid in enumerate(boxes):
        part = seen_in(solid, origin, axes)
        box_depth, box_axis = cast_box(origin, rays[part], solid.low, solid.high, inside=False)
        closer = box_depth < depth[part]
        depth[part][closer] = box_depth[closer]
        axis[part][closer] = box_axis[closer]
        which[part][closer] = number
    return depth, axis, which


def _radiance(
    rng: np.random.Generator, visible: Sequence[tuple[Array, Box]], points: Array, axis: Array, light: Array
) -> Array:
    """Return the linear colour of each pixel: albedo with its texture, times the light.

    Args:
        rng: random generator.
        visible: each visible surface as (mask of its pixels (H, W), Box with its albedo and texture).
        points: the visible point of each pixel (H, W, 3).
        axis: the axis that its face is normal to (H, W).
        light: the light on each point (H, W). Changed: surfaces in GLOWS get their own light.

    Returns:
        (H, W, 3).
    """
    albedo = np.empty((HEIGHT, WIDTH, 3), np.float32)
    for mask, solid in visible:
        factor = LOOKS[solid.look](points[mask], axis[mask], solid, rng)
        albedo[mask] = np.array(solid.colour, np.float32) * (
            factor if np.ndim(factor) == 2 else np.asarray(factor)[:, None]
        )
        if solid.look in GLOWS:
            light[mask] = GLOWS[solid.look] * (1 if solid.look == "glow" else 0.6 + 0.4 * (points[mask][:, 1] > 1.4))
    return albedo * light[..., None]


def _room_surfaces(rng: np.random.Generator, size: Array) -> tuple[Box, Box, Box]:
    """Return Boxes with the albedo and texture of floor, ceiling and walls."""
    look = _one_of(rng, ("planks", "planks", "tiles", "carpet"))
    colours = {"planks": WOODS, "tiles": (WHITE, (0.55, 0.5, 0.42), (0.4, 0.42, 0.44)), "carpet": CLOTHS}
    room = Box(np.zeros(3), size, _one_of(rng, colours[look]), look)
    return room, replace(room, colour=WHITE, look="plain"), replace(room, colour=_one_of(rng, WALLS), look="plain")


def _photograph(radiance: Array, rng: np.random.Generator) -> Pixels:
    """Convert linear light to uint8 RGB as a camera does: exposure, tint, slight blur, and noise."""
    exposed = radiance * (rng.uniform(0.55, 0.8) / np.percentile(radiance, 90)) * rng.uniform(0.92, 1.08, 3)
    encoded = cv2.GaussianBlur(np.clip(exposed, 0, 1) ** (1 / 2.2), (3, 3), 0.6).astype(np.float32)
    noisy = encoded + rng.normal(0, 0.012, (HEIGHT, WIDTH, 1)).astype(np.float32)
    return (np.clip(noisy, 0, 1) * 255).round().astype(np.uint8)
