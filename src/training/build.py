"""Builds the Trainer of a stage: the net, its first weights, and for FineNet the frozen coarse net below it."""

import logging
from functools import partial

import mindspore as ms
from mindspore import nn

from src.base.cli import WEIGHTS
from src.base.files import StrPath
from src.data_loader import TrainingData
from src.net import COARSE_NETS, FineNet
from src.nets import checkpoint
from src.nets.device import Device
from src.training.options import NetOptions, RecipeOptions, Stage, StartOptions
from src.training.run_folder import Folder
from src.training.solving import solve_dense_layers
from src.training.state import COARSE
from src.training.step import in_precision
from src.training.trainer import Trainer

# Convolutions of PaperCoarseNet, trained by research/imagenet_start/ on the features of a network trained on ImageNet.
IMAGENET = WEIGHTS / "PaperCoarseNet_imagenet.ckpt"

logger = logging.getLogger(__name__)


def build_trainer(
    stage: Stage, net: NetOptions, recipe: RecipeOptions, start: StartOptions, folder: Folder, device: Device
) -> Trainer:
    """Return the Trainer of a stage, at step 0. For FineNet, adds the digest of its coarse net to `stage.decisive`.

    Args:
        stage: settings of the stage.
        net, recipe, start: the options of the run.
        folder: the run's folder, whose final CoarseNet FineNet refines unless --pre_trained names another.
        device: the device of this process.

    Raises CheckpointError if weights cannot be loaded.
    """
    ms.set_seed(recipe.seed)
    build = partial(
        Trainer,
        loss=recipe.loss,
        learning_rate=stage.decisive["learning_rate"],
        amp_level=stage.decisive["amp_level"],
        device=device,
        recipe=recipe,
        last_step=stage.last_step,
    )
    if stage.name == "coarse":
        coarse_net = COARSE_NETS[net.coarse_net]()
        if net.dropout is not None:
            coarse_net.dropout_rate = net.dropout
        if start.pre_trained and device.is_first:  # the other ranks get rank 0's weights
            checkpoint.assign(coarse_net, checkpoint.load(start.pre_trained))
        return build(coarse_net)
    path = start.pre_trained if start.stage == "fine" and start.pre_trained else folder.final("coarse")
    coarse = _frozen_coarse(path, device)
    stage.decisive[COARSE] = checkpoint.digest(coarse)
    logger.info("FineNet is trained on %s of %s", type(coarse).__name__, path)
    coarse = in_precision(coarse, stage.decisive["amp_level"])
    ms.set_seed(recipe.seed)
    return build(FineNet(), inputs=lambda rgb: (rgb, coarse(rgb)))


def _frozen_coarse(path: StrPath, device: Device) -> nn.Cell:
    """Return the coarse net of a checkpoint. Only rank 0 reads the file: the other servers need not have it."""
    kinds: list[type[nn.Cell]] = list(COARSE_NETS.values())
    loaded = checkpoint.load_coarse(path) if device.is_first else None
    kind = kinds[device.broadcast_int(kinds.index(type(loaded)) if loaded is not None else 0)]
    coarse = kind() if loaded is None else loaded
    coarse.set_train(False)
    device.broadcast(coarse.get_parameters())
    return coarse


def set_first_weights(stage_name: str, net: nn.Cell, data: TrainingData, start: StartOptions) -> None:
    """Set the weights that --start or --fine_start asks for; "random" leaves the net as it is."""
    if stage_name == "fine" and start.fine_start == "coarse":
        net.start_as_identity()
    elif stage_name == "coarse" and start.start == "imagenet":
        convolutions = checkpoint.load(IMAGENET)
        checkpoint.assign(net, convolutions, convolutions.arrays)
        logger.info("solving the dense layers of PaperCoarseNet on training pairs")
        solve_dense_layers(net, data.source, data.workers, data.skip_bad)
