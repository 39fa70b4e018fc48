"""Train CoarseNet, then FineNet on top of it, on NYU Depth V2."""

import argparse
import logging
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from src.base import cli, stopping
from src.training.options import NEEDS, Options


class _Parser(argparse.ArgumentParser):
    """Also reads options from files, several on a line, with comments."""

    def convert_arg_line_to_args(self, arg_line: str) -> list[str]:
        return shlex.split(arg_line, comments=True)


def parse_args(arguments: Sequence[str] | None = None) -> Options:
    parser = _Parser(
        description=__doc__,
        formatter_class=cli.HelpFormatter,
        allow_abbrev=False,
        fromfile_prefix_chars="@",
        epilog="@FILE reads options from a file, such as those in recipes/",
    )
    for add_group in (_add_data, _add_net, _add_recipe, _add_start, _add_saving, _add_running):
        add_group(parser)
    options = cli.parse(parser, arguments, NEEDS)
    for first, second in (("val_data", "val_scenes"), ("resume", "overwrite")):
        if getattr(options, first) and getattr(options, second):
            parser.error(f"argument --{second}: not allowed with argument --{first}")
    return Options.of(vars(options))


def _add_data(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("data").add_argument
    add(
        "--data_url",
        type=Path,
        required=True,
        help="the NYU folder (Train/<scene>_out/<n>.jpg + <n>.png), or a folder that tools/pack_nyu.py made from it",
    )
    add(
        "--augmentation",
        choices=("reference", "paper"),
        default="reference",
        help="reference: flip, brightness, sharpness; paper: scale, rotation, translation, colours, flip",
    )
    add(
        "--bad_samples",
        choices=("stop", "skip"),
        default="stop",
        help="at an unreadable picture: stop, or take another of the same shard, for one picture or up to 1%% of them",
    )
    add(
        "--num_parallel_workers", type=cli.positive_int, help="decoding threads (default: one per processor, at most 8)"
    )
    add("--val_data", type=Path, help="the NYU folder whose Test part is scored after each epoch")
    add(
        "--val_scenes",
        type=cli.share,
        default=0.0,
        metavar="SHARE",
        help="share of the training scenes to hold out and to score after each epoch",
    )


def _add_net(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("net").add_argument
    add("--coarse_net", choices=("default", "paper"), default="default", help="the model zoo's net, or the paper's")
    add("--dropout", type=cli.share, metavar="RATE", help="dropout of PaperCoarseNet (default: 0.5, as in the paper)")
    add(
        "--amp_level",
        choices=("auto", "O0", "O1", "O2", "O3"),
        default="auto",
        help="O0: fp32; the others: fp16 compute with loss scaling; auto: O2 on Ascend, else O0",
    )
    add(
        "--jit_level",
        choices=("auto", "O0", "O1", "O2"),
        default="auto",
        help="how MindSpore compiles; auto: O2 (CANN's graph engine) on Ascend, else MindSpore's default",
    )


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("recipe").add_argument
    add("--epochs_coarse", type=cli.non_negative_int, default=20, help="0 keeps the first weights")
    add("--epochs_fine", type=cli.non_negative_int, default=10)
    add("--max_steps", type=cli.positive_int, help="end each stage after this many steps")
    add("--batch_size", type=cli.positive_int, default=32, help="pairs per step on each device")
    add("--learning_rate_coarse", type=cli.positive_float, default=1e-4)
    add("--learning_rate_fine", type=cli.positive_float, default=1e-5)
    add("--scale_lr", action="store_true", help="multiply the learning rates by the number of devices")
    add("--loss", choices=("composite", "scale_invariant"), default="composite")
    add("--lr_schedule", choices=("constant", "cosine"), default="constant", help="cosine falls to 0 at the last step")
    add(
        "--warmup_steps",
        type=cli.non_negative_int,
        default=0,
        help="steps over which the learning rate grows to its value",
    )
    add(
        "--dense_lr_scale",
        type=cli.positive_float,
        default=1.0,
        help="the dense layers' learning rate as a share of the others'",
    )
    add("--weight_decay", type=cli.non_negative_float, default=0.0, help="decoupled, as in AdamW")
    add(
        "--clip_norm",
        type=cli.non_negative_float,
        default=0.0,
        help="maximum global gradient norm; 0 disables clipping",
    )
    add(
        "--ema",
        type=cli.share,
        default=0.0,
        help="validate and save averaged weights; this share of the average, such as 0.999, stays at each step",
    )
    add("--seed", type=cli.seed, default=0)


def _add_start(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("start").add_argument
    add("--stage", choices=("all", "coarse", "fine"), default="all", help="fine needs a trained CoarseNet")
    add(
        "--start",
        choices=("random", "imagenet"),
        default="random",
        help="first weights of PaperCoarseNet: random, or convolutions trained on ImageNet features, with the dense "
        "layers solved on the training pairs",
    )
    add(
        "--fine_start",
        choices=("random", "coarse"),
        default="random",
        help="first weights of FineNet: random, or weights that return CoarseNet's prediction",
    )
    add(
        "--pre_trained",
        type=Path,
        metavar="CKPT",
        help="first weights of CoarseNet; with --stage fine the CoarseNet to refine (default: the run's own)",
    )


def _add_saving(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("saving").add_argument
    add("--train_url", type=Path, default=cli.MODEL, help="output folder, for Ckpt/ and Log/")
    add(
        "--save_checkpoint_steps",
        type=cli.positive_int,
        help="steps between resumable checkpoints, besides those at the end of each epoch",
    )
    add("--keep_checkpoint_max", type=cli.positive_int, default=3, help="resumable checkpoints kept of each net")
    add(
        "--resume",
        nargs="?",
        const="always",
        choices=("always", "auto"),
        help="continue the run in --train_url from its newest undamaged state; auto: or start one if there is none",
    )
    add(
        "--overwrite",
        action="store_true",
        help="move the run in --train_url into its subfolder replaced-<date>-<n>, and start anew",
    )
    add(
        "--allow_changed_data",
        action="store_true",
        help="resume although sizes or times of the training files have changed, as when they were copied",
    )
    add(
        "--tensorboard",
        action="store_true",
        help="write losses, rates, metrics and panels of validation images to Log/tensorboard",
    )
    add(
        "--val_panels",
        action="store_true",
        help="draw Log/<stage>_panels.png: the predictions of four validation images after each epoch",
    )


def _add_running(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("running").add_argument
    add("--device_target", choices=("auto", "Ascend", "GPU", "CPU"), default="auto")
    add("--device_id", type=cli.non_negative_int, default=0)


def resume_command() -> str:
    """Return the command that resumes this run: the script's, if a script started it."""
    if command := os.environ.get("DEPTHNET_COMMAND"):  # a space within a word is written as "\ "
        command = re.sub(r"(?<!\\) --overwrite(?= |$)", "", command)
        return command if re.search(r"(?<!\\) --resume(?=[ =]|$)", command) else f"{command} --resume"
    words = [word for word in sys.orig_argv if word != "--overwrite"]
    resumes = any(word.split("=")[0] == "--resume" for word in words)
    return shlex.join(words if resumes else [*words, "--resume"])


def main(stop: stopping.StopRequest) -> int:
    options = parse_args()
    from src.data.packed import open_training

    source = open_training(options.data.data_url)  # reports mistakes before MindSpore is imported, which takes seconds
    from src.nets import device
    from src.training import stages

    chosen = device.select(options.running.device_target, options.running.device_id, options.net.jit_level)
    try:
        stages.train(options, source, chosen, stop)
    except stopping.Stopped as stopped:
        logging.info("%s: stopped, the state is saved; to resume: %s", stopped, resume_command())
        return 128 + stopped.signal_number
    folder = options.saving.train_url
    logging.info("training finished: checkpoints in %s, curves in %s", folder / "Ckpt", folder / "Log")
    return 0


if __name__ == "__main__":
    cli.run(main)
