"""Export a trained CoarseNet or FineNet to MindIR, AIR or ONNX. Compares MindIR and ONNX with the checkpoint."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from src.base import cli


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    add = parser.add_argument
    add("--coarse_or_fine", choices=("coarse", "fine"), required=True)
    add("--ckpt_file", type=Path, help="default: Model/Ckpt/Final{Coarse,Fine}Net.ckpt, or else weights/ of this repo")
    add("--output_dir", type=Path, default=cli.MODEL, help="parent of the folders MindIR, AIR and ONNX")
    add(
        "--file_format",
        nargs="+",
        choices=("MINDIR", "AIR", "ONNX"),
        default=["MINDIR"],
        help="AIR is deprecated and can be written on Ascend only",
    )
    add("--batch_size", type=cli.positive_int, default=1, help="fixed batch size of MindIR and AIR; ONNX accepts any")
    add(
        "--mindir_version",
        choices=("1", "native"),
        default="1",
        help="1: readable by every MindSpore Lite; native: as MindSpore writes it",
    )
    add(
        "--device_target",
        choices=("auto", "Ascend", "GPU", "CPU"),
        default="auto",
        help="for AIR; the other formats are written on the CPU",
    )
    add("--device_id", type=cli.non_negative_int, default=0)
    return cli.parse(
        parser,
        arguments,
        {
            "batch_size": ("--file_format MINDIR or AIR", lambda options: options.file_format != ["ONNX"]),
            "mindir_version": ("--file_format MINDIR", lambda options: "MINDIR" in options.file_format),
        },
    )


def main() -> int:
    options = parse_args()
    from src.nets import checkpoint, device, exporting

    # Only AIR needs the device. The other formats are compared with the net on the CPU, in fp32: on Ascend, CANN
    # computes convolutions in HF32.
    device.select(options.device_target if "AIR" in options.file_format else "CPU", options.device_id)
    path = options.ckpt_file or cli.default_or_shipped_checkpoints()[options.coarse_or_fine == "fine"]
    net = checkpoint.load_coarse(path) if options.coarse_or_fine == "coarse" else checkpoint.load_fine(path)
    # FinalFineNet and BestFineNet were both trained on FinalCoarseNet.
    coarse_path = path.with_name(path.name.replace("Fine", "Coarse").replace("Best", "Final"))
    if options.coarse_or_fine == "fine" and coarse_path != path and coarse_path.exists():
        try:
            checkpoint.warn_of_another_coarse(checkpoint.load_coarse(coarse_path), net)
        except checkpoint.CheckpointError as error:  # the export does not need this CoarseNet
            logging.warning("warning: not known whether FineNet was trained on the CoarseNet beside it: %s", error)
    for file_format in dict.fromkeys(options.file_format):
        exporting.export(net, file_format, options.output_dir, options.batch_size, options.mindir_version)
    return 0


if __name__ == "__main__":
    cli.run(main)
