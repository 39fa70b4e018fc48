"""Converts depth maps to coloured point clouds and meshes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from src.base.arrays import Floats, Pixels
from src.base.files import StrPath, replacing


@dataclass(frozen=True)
class Intrinsics:
    """A pinhole camera: focal lengths and principal point in pixels; (0, 0) is the centre of the upper left pixel."""

    fx: float
    fy: float
    cx: float
    cy: float

    @classmethod
    def from_fov(cls, height: int, width: int, degrees: float) -> "Intrinsics":
        """Return the camera whose horizontal field of view is `degrees`."""
        focal = width / 2 / np.tan(np.radians(degrees) / 2)
        return cls(focal, focal, (width - 1) / 2, (height - 1) / 2)

    @classmethod
    def from_35mm(cls, height: int, width: int, focal_mm: float) -> "Intrinsics":
        """Return the camera of a 35 mm equivalent focal length, which is defined by the diagonal (CIPA DCG-001)."""
        focal = focal_mm * np.hypot(height, width) / np.hypot(36, 24)
        return cls(focal, focal, (width - 1) / 2, (height - 1) / 2)

    @classmethod
    def kinect(cls, height: int, width: int) -> "Intrinsics":
        """Return the RGB camera of NYU Depth V2's Kinect (camera_params.m of its toolbox).

        It is defined for 480x640. For another size it is scaled to the largest centred 4:3 window, which the nets take
        for a picture of the Kinect.
        """
        scale = min(height / 480, width / 640)
        return cls(
            518.86 * scale,
            519.47 * scale,
            (324.58 - 319.5) * scale + (width - 1) / 2,
            (252.74 - 239.5) * scale + (height - 1) / 2,
        )  # MATLAB counts pixels from 1


def points(depth_m: Floats, camera: Intrinsics) -> Floats:
    """Return the point of each pixel, row by row: float32 (H * W, 3) metres, x right, y down, z forward.

    Args:
        depth_m: float32 metres (H, W).
        camera: the camera of the picture.
    """
    height, width = depth_m.shape
    x = (np.arange(width, dtype=np.float32) - np.float32(camera.cx)) / np.float32(camera.fx)
    y = (np.arange(height, dtype=np.float32) - np.float32(camera.cy)) / np.float32(camera.fy)
    return np.stack([depth_m * x, depth_m * y[:, None], depth_m], axis=-1).reshape(-1, 3)


def write_ply(path: StrPath, depth_m: Floats, rgb: Pixels, camera: Intrinsics) -> None:
    """Write the measured pixels as a binary PLY point cloud, float32 metres and uint8 colours, atomically.

    Args:
        path: the file.
        depth_m: float32 metres (H, W), 0 = not measured.
        rgb: uint8 (H, W, 3).
        camera: the camera of the picture.
    """
    measured = (depth_m > 0).ravel()
    vertices = np.empty(np.count_nonzero(measured), [("xyz", "<f4", 3), ("rgb", "u1", 3)])
    vertices["xyz"], vertices["rgb"] = points(depth_m, camera)[measured], rgb.reshape(-1, 3)[measured]
    properties = [f"property float {name}" for name in "xyz"] + [
        f"property uchar {name}" for name in ("red", "green", "blue")
    ]
    header = [
        "ply",
        "format binary_little_endian 1.0",
        "comment metres; x right, y down, z forward",
        f"element vertex {len(vertices)}",
        *properties,
        "end_header",
    ]
    with replacing(path, "wb") as file:
        file.write("\n".join(header).encode() + b"\n")
        file.write(vertices.tobytes())


MESH_SIDE = 320  # largest number of mesh points along a side
LONGEST_STEP = 0.08  # largest relative difference of depth within a triangle; a larger one is an edge of an object


def faces(depth_m: Floats) -> npt.NDArray[np.int64]:
    """Return triangles between neighbouring pixels, without those that touch an unmeasured pixel or cross an edge.

    Args:
        depth_m: metres (H, W), 0 = not measured.

    Returns:
        int64 (N, 3): indices of the three pixels, counted row by row.
    """
    index = np.arange(depth_m.size).reshape(depth_m.shape)
    upper_left, upper_right, lower_left, lower_right = (index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:])
    triangles = np.concatenate(
        [
            np.stack(corners, axis=-1).reshape(-1, 3)
            for corners in ((upper_left, lower_left, upper_right), (upper_right, lower_left, lower_right))
        ]
    )
    corners_m = depth_m.ravel()[triangles]
    nearest = corners_m.min(axis=1)
    return triangles[(nearest > 0) & (corners_m.max(axis=1) <= nearest * (1 + LONGEST_STEP))]


def write_glb(path: StrPath, depth_m: Floats, rgb: Pixels, camera: Intrinsics) -> None:
    """Write a coloured triangle mesh as binary glTF 2.0, in metres: x right, y up, z towards the viewer.

    Arguments as in `write_ply`. The mesh has at most MESH_SIDE points along a side.
    """
    import trimesh

    step = -(-max(depth_m.shape) // MESH_SIDE)
    cloud = points(depth_m, camera).reshape(*depth_m.shape, 3)[::step, ::step].reshape(-1, 3)
    cloud *= np.array((1, -1, -1), np.float32)
    mesh = trimesh.Trimesh(
        cloud, faces(depth_m[::step, ::step]), vertex_colors=rgb[::step, ::step].reshape(-1, 3), process=False
    )

    def unlit(tree: dict[str, Any]) -> None:  # the photo already contains its lighting
        tree["extensionsUsed"] = ["KHR_materials_unlit"]
        tree["materials"] = [{"doubleSided": True, "extensions": {"KHR_materials_unlit": {}}}]
        for mesh_node in tree["meshes"]:
            for primitive in mesh_node["primitives"]:
                primitive["material"] = 0

    with replacing(path, "wb") as file:
        file.write(mesh.export(file_type="glb", tree_postprocessor=unlit))
