"""Training as TensorBoard shows it: the numbers of the stage's log, and panels of fixed validation images."""

from tensorboardX import SummaryWriter

from src import evaluation, visual
from src.data_loader import evenly

PANEL_IMAGES = 4


class Board:
    """One stage's part of Log/tensorboard.

    Args:
        folder: the folder of the event files.
        stage: "coarse" or "fine", the prefix of every tag.
        first_step: the step that the run goes on from; what an earlier run in this folder wrote after it is hidden.
        pairs: the validation pairs, or None; PANEL_IMAGES of them, evenly spaced, are shown after each epoch.
    """

    def __init__(self, folder, stage, first_step, pairs):
        self.stage = stage
        self.pairs = evenly(pairs or [], PANEL_IMAGES)
        self.writer = SummaryWriter(str(folder / stage), purge_step=first_step + 1)

    def add(self, step, values):
        """Numbers by name; those that are not there ("" or None) are left out."""
        for name, value in values.items():
            if value not in ("", None):
                self.writer.add_scalar(f"{self.stage}/{name}", float(value), step)

    def add_panels(self, step, predict):
        """Panels of the validation images as the net predicts them now: `predict` is RGB -> log depth."""
        net = f"{self.stage.capitalize()}Net"
        rows = [evaluation.panel_row(pair.name, pair, lambda rgb: {net: predict(rgb)}) for pair in self.pairs]
        if rows:
            self.writer.add_figure(f"{self.stage}/panels", visual.panels(rows), step)

    def close(self):
        """Write what is still held back."""
        self.writer.close()
