"""What a training shows of itself beside its log: to TensorBoard, and in a picture of how a net learns to see."""

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

Panel: TypeAlias = tuple[str, Pixels, Floats, Floats]


def _predicted(pictures: Pictures | None, predict: Callable[[Floats], Floats]) -> list[Panel]:
    """(name, RGB (228, 304, 3), target, prediction, both (55, 74) metres) of PANEL_IMAGES of the pictures, evenly
    spaced."""
    if pictures is None:
        return []
    rows: list[Panel] = []
    for indices, rgb, depth_m in pictures.batches(evenly(range(len(pictures.names)), PANEL_IMAGES), PANEL_IMAGES, 1):
        pixels = (rgb * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)
        names = [pictures.names[index] for index in indices]
        rows += zip(names, pixels, depth_m[:, 0], np.exp(predict(rgb)[:, 0]), strict=True)
    return rows


class Board:
    """One stage's part of Log/tensorboard.

    Args:
        folder: the folder of the event files.
        stage: "coarse" or "fine", the prefix of every tag.
        first_step: the step that the run goes on from; what an earlier run in this folder wrote after it is hidden.
        pictures: the validation pictures, or None; PANEL_IMAGES of them, evenly spaced, are shown after each epoch.
    """

    def __init__(self, folder: Path, stage: str, first_step: int, pictures: Pictures | None) -> None:
        from tensorboardX import SummaryWriter  # needed for this only

        self.stage, self.pictures = stage, pictures
        self.writer = SummaryWriter(str(folder / stage), purge_step=first_step + 1)

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """Numbers by name; those that are not there ("" or None) are left out."""
        for name, value in values.items():
            if value not in ("", None):
                self.writer.add_scalar(f"{self.stage}/{name}", float(value), step)

    def add_panels(self, step: int, predict: Callable[[Floats], Floats]) -> None:
        """Panels of the validation images as the net predicts them now: `predict` is RGB -> log depth."""
        rows = [
            (name, rgb, target_m, {f"{self.stage.capitalize()}Net": depth_m})
            for name, rgb, target_m, depth_m in _predicted(self.pictures, predict)
        ]
        if rows:
            self.writer.add_figure(f"{self.stage}/panels", visual.panels(rows), step)

    def close(self) -> None:
        """Write what is still held back."""
        self.writer.close()


class Learning:
    """A Board that is a picture (Log/<stage>_panels.png): the same PANEL_IMAGES validation images after each epoch,
    predicted on the way. The predictions are kept beside it (.npz), so that a resumed run goes on with them."""

    def __init__(self, path: Path, first_step: int, pictures: Pictures) -> None:
        self.path, self.pictures = path, pictures
        self.maps_m: dict[int, Floats] = {}  # step -> (PANEL_IMAGES, 55, 74)
        if first_step and path.with_suffix(".npz").is_file():
            with np.load(path.with_suffix(".npz")) as saved:
                self.maps_m = {int(name): saved[name] for name in saved.files if int(name) <= first_step}

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """Numbers are not shown here."""

    def add_panels(self, step: int, predict: Callable[[Floats], Floats]) -> None:
        """Add the images as the net predicts them now: `predict` is RGB -> log depth."""
        rows = _predicted(self.pictures, predict)
        if not rows:
            return
        _, shown, targets_m, maps_m = zip(*rows, strict=True)
        self.maps_m[step] = np.stack(maps_m)
        with replacing(self.path.with_suffix(".npz"), "wb") as file:
            np.savez(file, **{str(step): maps for step, maps in self.maps_m.items()})
        visual.save_figure(visual.learning(shown, targets_m, self.maps_m), self.path)

    def close(self) -> None:
        """All is written."""
