"""From a depth map to a coloured point cloud."""

from dataclasses import dataclass

import numpy as np

from src.files import replacing


@dataclass(frozen=True)
class Intrinsics:
    """A pinhole camera in pixels of its picture; pixel (0, 0) is the centre of the upper left one."""

    fx: float
    fy: float
    cx: float
    cy: float

    @classmethod
    def from_fov(cls, height, width, degrees):
        """A camera whose picture is `degrees` wide."""
        focal = width / 2 / np.tan(np.radians(degrees) / 2)
        return cls(focal, focal, (width - 1) / 2, (height - 1) / 2)

    @classmethod
    def from_35mm(cls, height, width, focal_mm):
        """A camera of this 35 mm equivalent focal length, which is defined by the diagonal (CIPA DCG-001)."""
        focal = focal_mm * np.hypot(height, width) / np.hypot(36, 24)
        return cls(focal, focal, (width - 1) / 2, (height - 1) / 2)

    @classmethod
    def kinect(cls, height, width):
        """The RGB camera of NYU Depth V2's Kinect (its toolbox, camera_params.m), whose picture is 480x640. In another
        size it is the camera of the largest such picture in the middle, which is what the nets take it for."""
        scale = min(height / 480, width / 640)
        return cls(518.86 * scale, 519.47 * scale, (324.58 - 319.5) * scale + (width - 1) / 2,
                   (252.74 - 239.5) * scale + (height - 1) / 2)  # MATLAB counts pixels from 1


def points(depth_m, camera):
    """float32 (H * W, 3) metres: x right, y down, z along the optical axis, row by row."""
    height, width = depth_m.shape
    x = (np.arange(width, dtype=np.float32) - np.float32(camera.cx)) / np.float32(camera.fx)
    y = (np.arange(height, dtype=np.float32) - np.float32(camera.cy)) / np.float32(camera.fy)
    return np.stack([depth_m * x, depth_m * y[:, None], depth_m], axis=-1).reshape(-1, 3)


def write_ply(path, depth_m, rgb, camera):
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
