"""What a training shows of itself beside its log: to TensorBoard, and in a picture of how a net learns to see."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from src import evaluation, image, visual
from src.arrays import Floats
from src.data_loader import Pair, evenly, load_test_pair
from src.files import replacing

PANEL_IMAGES = 4


class Board:
    """One stage's part of Log/tensorboard.

    Args:
        folder: the folder of the event files.
        stage: "coarse" or "fine", the prefix of every tag.
        first_step: the step that the run goes on from; what an earlier run in this folder wrote after it is hidden.
        pairs: the validation pairs, or None; PANEL_IMAGES of them, evenly spaced, are shown after each epoch.
    """

    def __init__(self, folder: Path, stage: str, first_step: int, pairs: Sequence[Pair] | None) -> None:
        from tensorboardX import SummaryWriter  # needed for this only

        self.stage = stage
        self.pairs = evenly(pairs or [], PANEL_IMAGES)
        self.writer = SummaryWriter(str(folder / stage), purge_step=first_step + 1)

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """Numbers by name; those that are not there ("" or None) are left out."""
        for name, value in values.items():
            if value not in ("", None):
                self.writer.add_scalar(f"{self.stage}/{name}", float(value), step)

    def add_panels(self, step: int, predict: Callable[[Floats], Floats]) -> None:
        """Panels of the validation images as the net predicts them now: `predict` is RGB -> log depth."""
        net = f"{self.stage.capitalize()}Net"
        rows = [evaluation.panel_row(pair.name, pair, lambda rgb: {net: predict(rgb)}) for pair in self.pairs]
        if rows:
            self.writer.add_figure(f"{self.stage}/panels", visual.panels(rows), step)

    def close(self) -> None:
        """Write what is still held back."""
        self.writer.close()


class Learning:
    """A Board that is a picture (Log/<stage>_panels.png): the same PANEL_IMAGES validation images after each epoch,
    predicted on the way. The predictions are kept beside it (.npz), so that a resumed run goes on with them."""

    def __init__(self, path: Path, first_step: int, pairs: Sequence[Pair]) -> None:
        self.path, self.pairs = path, evenly(pairs, PANEL_IMAGES)
        self.maps_m = {}  # step -> (PANEL_IMAGES, 55, 74)
        if first_step and path.with_suffix(".npz").is_file():
            with np.load(path.with_suffix(".npz")) as saved:
                self.maps_m = {int(name): saved[name] for name in saved.files if int(name) <= first_step}

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """Numbers are not shown here."""

    def add_panels(self, step: int, predict: Callable[[Floats], Floats]) -> None:
        """Add the images as the net predicts them now: `predict` is RGB -> log depth."""
        loaded = [load_test_pair(pair) for pair in self.pairs]
        self.maps_m[step] = np.exp(predict(np.stack([rgb for rgb, _ in loaded]))[:, 0])
        with replacing(self.path.with_suffix(".npz"), "wb") as file:
            np.savez(file, **{str(step): maps for step, maps in self.maps_m.items()})
        targets_m = [image.network_depth(depth_m)[0] for _, depth_m in loaded]
        pictures = [image.load_rgb(pair.rgb) for pair in self.pairs]
        visual.save_figure(visual.learning(pictures, targets_m, self.maps_m), self.path)

    def close(self) -> None:
        """All is written."""
