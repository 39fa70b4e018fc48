"""Shows how a training proceeds, besides its log: in TensorBoard, and as a picture of the predictions of each epoch."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from src.base.arrays import Floats, Pixels
from src.base.files import replacing
from src.data.listing import evenly
from src.scoring import visual
from src.training.validation import Pictures

PANEL_IMAGES = 4

Predict: TypeAlias = Callable[[Floats], Floats]  # RGB (N, 3, 228, 304) -> log depth (N, 1, 55, 74)
Panel: TypeAlias = tuple[str, Pixels, Floats, Floats]


def _panels(pictures: Pictures, predict: Predict) -> list[Panel]:
    """Return (name, RGB (228, 304, 3), target, prediction, both (55, 74) metres) of PANEL_IMAGES evenly spaced
    pictures."""
    panels: list[Panel] = []
    for indices, rgb, depth_m in pictures.batches(evenly(range(len(pictures.names)), PANEL_IMAGES), PANEL_IMAGES, 1):
        pixels = (rgb * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)
        names = [pictures.names[index] for index in indices]
        panels += zip(names, pixels, depth_m[:, 0], np.exp(predict(rgb)[:, 0]), strict=True)
    return panels


class Board:
    """One stage's part of Log/tensorboard.

    Args:
        folder: the folder of the event files.
        stage: "coarse" or "fine", the prefix of every tag.
        first_step: the step that the run starts at. Events of an earlier run after it are hidden.
    """

    def __init__(self, folder: Path, stage: str, first_step: int) -> None:
        from tensorboardX import SummaryWriter  # needed only here

        self.stage = stage
        self.writer = SummaryWriter(str(folder / stage), purge_step=first_step + 1)

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """Add numbers by name. Leaves out values of "" or None."""
        for name, value in values.items():
            if value not in ("", None):
                self.writer.add_scalar(f"{self.stage}/{name}", float(value), step)

    def add_panels(self, step: int, pictures: Pictures, predict: Predict) -> None:
        """Add a figure of PANEL_IMAGES of the validation pictures as the net predicts them now."""
        rows = [
            (name, rgb, target_m, {f"{self.stage.capitalize()}Net": depth_m})
            for name, rgb, target_m, depth_m in _panels(pictures, predict)
        ]
        if rows:
            self.writer.add_figure(f"{self.stage}/panels", visual.panels(rows), step)

    def close(self) -> None:
        """Write the events that are still in memory."""
        self.writer.close()


class PanelsFile:
    """Log/<stage>_panels.png: PANEL_IMAGES validation pictures as the net predicts them after each epoch.

    The predictions are kept in an .npz file beside it, so that a resumed run adds to them.

    Args:
        path: the PNG file.
        first_step: the step that the run starts at. Later predictions of an earlier run are dropped.
    """

    def __init__(self, path: Path, first_step: int) -> None:
        self.path = path
        self.maps_m: dict[int, Floats] = {}  # step -> (PANEL_IMAGES, 55, 74)
        if first_step and path.with_suffix(".npz").is_file():
            with np.load(path.with_suffix(".npz")) as saved:
                self.maps_m = {int(name): saved[name] for name in saved.files if int(name) <= first_step}

    def add_panels(self, step: int, pictures: Pictures, predict: Predict) -> None:
        """Add the pictures as the net predicts them now."""
        rows = _panels(pictures, predict)
        if not rows:
            return
        _, pixels, targets_m, maps_m = zip(*rows, strict=True)
        self.maps_m[step] = np.stack(maps_m)
        with replacing(self.path.with_suffix(".npz"), "wb") as file:
            np.savez(file, **{str(step): maps for step, maps in self.maps_m.items()})
        visual.save_figure(visual.learning(pixels, targets_m, self.maps_m), self.path)
