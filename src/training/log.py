"""The log of a stage: its CSV file, and what TensorBoard shows of it."""

import csv
from pathlib import Path
from typing import Any

from src import metrics
from src.base.files import StrPath, replacing
from src.nets import checkpoint
from src.training.run_folder import TrainingError
from src.training.tensorboard import Board, PanelsFile

CSV_COLUMNS = ("epoch", "step", "loss", "step_seconds", "mean_loss", "images_per_s", "overflows", *metrics.METRICS)


class StageLog:
    """The CSV file of a stage, and the sums of the current epoch, which are saved with each state.

    Args:
        path: the CSV file; None on the ranks that write none.

    Attributes:
        board: gets the same numbers as the file, and the learning rate; or None.
        panels: what shows the predictions of the validation pictures after each epoch.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.board: Board | None = None
        self.panels: list[Board | PanelsFile] = []
        self.rows: list[dict[str, Any]] = []
        self.sums = {"loss": 0.0, "steps": 0, "overflows": 0}
        self.timings: list[float] = []
        self.started = False

    def add_step(self, loss: float, seconds: float, applied: bool) -> None:
        """Add a step to the sums of the current epoch."""
        self.sums["loss"] += loss
        self.sums["steps"] += 1
        self.sums["overflows"] += not applied
        self.timings.append(seconds)

    def row(self, **values: Any) -> None:
        """Append a row to the file, and to the board the values that are no columns of the file, too."""
        self.rows.append({column: values.get(column, "") for column in CSV_COLUMNS})
        if self.path and self.started:
            with open(self.path, "a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, CSV_COLUMNS).writerow(self.rows[-1])
        elif self.path:
            with replacing(self.path) as file:
                writer = csv.DictWriter(file, CSV_COLUMNS)
                writer.writeheader()
                writer.writerows(self.rows)
            self.started = True
        if self.board:
            self.board.add(values["step"], {name: values[name] for name in values if name != "step"})

    def close(self) -> None:
        """Write what the board still holds in memory."""
        if self.board:
            self.board.close()

    def resume(self, saved: checkpoint.Checkpoint) -> None:
        """Continue with the rows and sums that an earlier run had at its saved state."""
        rows = read_rows(self.path) if self.path else []
        self.rows = [row for row in rows if int(row["step"]) <= saved.info["step"]]
        self.sums = dict(saved.info["epoch_sums"])
        if self.rows and self.rows[-1]["mean_loss"] and int(self.rows[-1]["step"]) == saved.info["step"]:
            self.end_epoch()  # its row is written already

    def end_epoch(self) -> tuple[float, float, float | None]:
        """Return (mean loss, overflows, seconds per step or None) of the finished epoch, and reset the sums."""
        mean_loss = self.sums["loss"] / max(self.sums["steps"], 1)
        seconds = sum(self.timings) / len(self.timings) if self.timings else None
        finished = mean_loss, self.sums["overflows"], seconds
        self.sums, self.timings = {"loss": 0.0, "steps": 0, "overflows": 0}, []
        return finished


def read_rows(path: StrPath) -> list[dict[str, str]]:
    """Return the rows of a stage's CSV file as dicts of text; none if there is no file. Leaves out a last row that was
    cut off by a kill. Raises TrainingError if the file is no training log."""
    if not Path(path).is_file():
        return []
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        content = file.read()
    rows = list(csv.DictReader(content[: content.rfind("\n") + 1].splitlines()))
    if any(list(row) != list(CSV_COLUMNS) or not row["step"].isdecimal() for row in rows):
        raise TrainingError(f"{path}: not a training log of this program: move it away")
    return rows
