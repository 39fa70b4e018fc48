"""From a depth map to a coloured point cloud."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from src.base.arrays import Floats, Pixels
from src.base.files import StrPath, replacing


@dataclass(frozen=True)
class Intrinsics:
    """A pinhole camera in pixels of its picture; pixel (0, 0) is the centre of the upper left one."""

    fx: float
    fy: float
    cx: float
    cy: float

    @classmethod
    def from_fov(cls, height: int, width: int, degrees: float) -> "Intrinsics":
        """A camera whose picture is `degrees` wide."""
        focal = width / 2 / np.tan(np.radians(degrees) / 2)
        return cls(focal, focal, (width - 1) / 2, (height - 1) / 2)

    @classmethod
    def from_35mm(cls, height: int, width: int, focal_mm: float) -> "Intrinsics":
        """A camera of this 35 mm equivalent focal length, which is defined by the diagonal (CIPA DCG-001)."""
        focal = focal_mm * np.hypot(height, width) / np.hypot(36, 24)
        return cls(focal, focal, (width - 1) / 2, (height - 1) / 2)

    @classmethod
    def kinect(cls, height: int, width: int) -> "Intrinsics":
        """The RGB camera of NYU Depth V2's Kinect (its toolbox, camera_params.m), whose picture is 480x640. In another
        size it is the camera of the largest such picture in the middle, which is what the nets take it for."""
        scale = min(height / 480, width / 640)
        return cls(518.86 * scale, 519.47 * scale, (324.58 - 319.5) * scale + (width - 1) / 2,
                   (252.74 - 239.5) * scale + (height - 1) / 2)  # MATLAB counts pixels from 1


def points(depth_m: Floats, camera: Intrinsics) -> Floats:
    """float32 (H * W, 3) metres: x right, y down, z along the optical axis, row by row."""
    height, width = depth_m.shape
    x = (np.arange(width, dtype=np.float32) - np.float32(camera.cx)) / np.float32(camera.fx)
    y = (np.arange(height, dtype=np.float32) - np.float32(camera.cy)) / np.float32(camera.fy)
    return np.stack([depth_m * x, depth_m * y[:, None], depth_m], axis=-1).reshape(-1, 3)


def write_ply(path: StrPath, depth_m: Floats, rgb: Pixels, camera: Intrinsics) -> None:
    """Write a binary PLY of all measured pixels: float32 metres and uint8 colours."""
    measured = (depth_m > 0).ravel()
    vertices = np.empty(np.count_nonzero(measured), [("xyz", "<f4", 3), ("rgb", "u1", 3)])
    vertices["xyz"], vertices["rgb"] = points(depth_m, camera)[measured], rgb.reshape(-1, 3)[measured]
    properties = [f"property float {name}" for name in "xyz"] \
        + [f"property uchar {name}" for name in ("red", "green", "blue")]
    header = ["ply", "format binary_little_endian 1.0", "comment metres; x right, y down, z forward",
              f"element vertex {len(vertices)}", *properties, "end_header"]
    with replacing(path, "wb") as file:
        file.write("\n".join(header).encode() + b"\n")
        file.write(vertices.tobytes())


# A mesh has at most so many points along a side; and no face where the depth of its corners differs by more than this
# share from one point to the next: there is an edge between two things.
MESH_SIDE = 320
LONGEST_STEP = 0.08


def faces(depth_m: Floats) -> npt.NDArray[np.int64]:
    """int64 (N, 3): the triangles over the grid of a depth map (H, W), each by its corners' places row by row; none
    over an unmeasured pixel or over an edge (LONGEST_STEP)."""
    place = np.arange(depth_m.size).reshape(depth_m.shape)
    upper_left, upper_right, lower_left, lower_right = (place[:-1, :-1], place[:-1, 1:], place[1:, :-1], place[1:, 1:])
    found = np.concatenate([np.stack(corners, axis=-1).reshape(-1, 3) for corners in (
        (upper_left, lower_left, upper_right), (upper_right, lower_left, lower_right))])
    corners_m = depth_m.ravel()[found]
    nearest = corners_m.min(axis=1)
    return found[(nearest > 0) & (corners_m.max(axis=1) <= nearest * (1 + LONGEST_STEP))]


def write_glb(path: StrPath, depth_m: Floats, rgb: Pixels, camera: Intrinsics) -> None:
    """Write a coloured triangle mesh as binary glTF 2.0: metres, x right, y up, z towards the viewer."""
    import trimesh

    step = -(-max(depth_m.shape) // MESH_SIDE)
    cloud = points(depth_m, camera).reshape(*depth_m.shape, 3)[::step, ::step].reshape(-1, 3)
    cloud *= np.array((1, -1, -1), np.float32)
    mesh = trimesh.Trimesh(cloud, faces(depth_m[::step, ::step]), vertex_colors=rgb[::step, ::step].reshape(-1, 3),
                           process=False)

    def unlit(tree: dict[str, Any]) -> None:  # a photograph has its own light
        tree["extensionsUsed"] = ["KHR_materials_unlit"]
        tree["materials"] = [{"doubleSided": True, "extensions": {"KHR_materials_unlit": {}}}]
        for one in tree["meshes"]:
            for primitive in one["primitives"]:
                primitive["material"] = 0

    with replacing(path, "wb") as file:
        file.write(mesh.export(file_type="glb", tree_postprocessor=unlit))
