"""Export a trained CoarseNet or FineNet to MindIR, AIR or ONNX, each verified against the checkpoint."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from src.base import cli


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    add = parser.add_argument
    add("--coarse_or_fine", choices=("coarse", "fine"), required=True)
    add("--ckpt_file", type=Path, help="default: Model/Ckpt/Final{Coarse,Fine}Net.ckpt, or else weights/ of this repo")
    add("--output_dir", type=Path, default=cli.MODEL, help="MindIR/, AIR/ and ONNX/ go into it")
    add("--file_format", nargs="+", choices=("MINDIR", "AIR", "ONNX"),
        default=["MINDIR"], help="AIR is deprecated, and written on Ascend only")
    add("--batch_size", type=cli.positive_int, default=1, help="the fixed batch of MindIR and AIR; ONNX takes any")
    add("--mindir_version", choices=("1", "native"), default="1",
        help="1 is read by every MindSpore Lite; native is what MindSpore writes")
    add("--device_target", choices=("auto", "Ascend", "GPU", "CPU"), default="auto",
        help="for AIR; the other formats are made on the CPU")
    add("--device_id", type=cli.non_negative_int, default=0)
    return parser.parse_args(arguments)


def main() -> int:
    options = parse_args()
    from src.nets import checkpoint, device, exporting

    # Only AIR needs the device. The others are compared with the net in fp32, which an Ascend does not compute in: CANN
    # runs convolutions as HF32.
    device.select(options.device_target if "AIR" in options.file_format else "CPU", options.device_id)
    path = options.ckpt_file or cli.default_or_shipped_checkpoints()[options.coarse_or_fine == "fine"]
    net = checkpoint.load_coarse(path) if options.coarse_or_fine == "coarse" else checkpoint.load_fine(path)
    beside = path.with_name(path.name.replace("Fine", "Coarse"))
    if options.coarse_or_fine == "fine" and beside != path and beside.exists():
        checkpoint.warn_of_another_coarse(checkpoint.load_coarse(beside), net)
    for file_format in dict.fromkeys(options.file_format):
        exporting.export(net, file_format, options.output_dir, options.batch_size, options.mindir_version)
    return 0


if __name__ == "__main__":
    cli.run(main)
