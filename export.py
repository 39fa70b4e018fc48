"""Export a trained CoarseNet or FineNet to MindIR, AIR or ONNX, each verified against the checkpoint."""

import argparse
import logging
from pathlib import Path

from src import cli


def parse_args(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--coarse_or_fine", choices=("coarse", "fine"), required=True)
    add("--ckpt_file", type=Path, help="default: Model/Ckpt/Final{Coarse,Fine}Net.ckpt")
    add("--output_dir", type=Path, default=Path("Model"), help="MindIR/, AIR/ and ONNX/ go into it")
    add("--file_format", nargs="+", choices=("MINDIR", "AIR", "ONNX"),
        help="default: MINDIR, and AIR as well on Ascend")
    add("--batch_size", type=cli.positive_int, default=1, help="the fixed batch of MindIR and AIR; ONNX takes any")
    add("--mindir_version", choices=("1", "native"), default="1",
        help="1 is read by every MindSpore Lite; native is what MindSpore writes")
    add("--device_target", choices=("auto", "Ascend", "GPU", "CPU"), default="auto")
    add("--device_id", type=cli.non_negative_int, default=0)
    return parser.parse_args(arguments)


def main():
    options = parse_args()
    from src import checkpoint, device, exporting

    target = device.select(options.device_target, options.device_id).target
    path = options.ckpt_file or Path("Model/Ckpt") / f"Final{options.coarse_or_fine.capitalize()}Net.ckpt"
    net = checkpoint.load_coarse(path) if options.coarse_or_fine == "coarse" else checkpoint.load_fine(path)
    formats = options.file_format or (["MINDIR", "AIR"] if target == "Ascend" else ["MINDIR"])
    if not options.file_format and target != "Ascend":
        logging.info("no AIR: MindSpore writes it on Ascend only, and this is %s", target)
    for file_format in dict.fromkeys(formats):
        exporting.export(net, file_format, options.output_dir, options.batch_size, options.mindir_version)
    return 0


if __name__ == "__main__":
    cli.run(main)
