"""The CSV log of a stage."""

import csv
from pathlib import Path
from typing import Any

from src import metrics
from src.base.files import StrPath, replacing
from src.nets import checkpoint
from src.training.run_folder import TrainingError
from src.training.tensorboard import Board, Learning

CSV_COLUMNS = ("epoch", "step", "loss", "step_seconds", "mean_loss", "images_per_s", "overflows", *metrics.METRICS)


class StageLog:
    """The stage's CSV file (none where `path` is None), and the sums of the epoch that is running, which travel
    with the state. What goes into the file goes to the `boards` (src/tensorboard.py) as well, with the learning rate.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.boards: list[Board | Learning] = []
        self.rows: list[dict[str, Any]] = []
        self.sums = {"loss": 0.0, "steps": 0, "overflows": 0}
        self.timings: list[float] = []
        self.started = False

    def add_step(self, loss: float, seconds: float, applied: bool) -> None:
        """Count one step into the running epoch."""
        self.sums["loss"] += loss
        self.sums["steps"] += 1
        self.sums["overflows"] += not applied
        self.timings.append(seconds)

    def row(self, **values: Any) -> None:
        """Append a row to the file."""
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
        for board in self.boards:
            board.add(values["step"], {name: values[name] for name in values if name != "step"})

    def resume(self, saved: checkpoint.Checkpoint) -> None:
        """Take over the rows and sums of an earlier run up to its saved state."""
        rows = read_rows(self.path) if self.path else []
        self.rows = [row for row in rows if int(row["step"]) <= saved.info["step"]]
        self.sums = dict(saved.info["epoch_sums"])
        if self.rows and self.rows[-1]["mean_loss"] and int(self.rows[-1]["step"]) == saved.info["step"]:
            self.end_epoch()  # what this epoch had to say is said

    def end_epoch(self) -> tuple[float, float, float | None]:
        """(mean loss, overflows, seconds a step or None) of the finished epoch; the next one starts from zero."""
        mean_loss = self.sums["loss"] / max(self.sums["steps"], 1)
        seconds = sum(self.timings) / len(self.timings) if self.timings else None
        finished = mean_loss, self.sums["overflows"], seconds
        self.sums, self.timings = {"loss": 0.0, "steps": 0, "overflows": 0}, []
        return finished


def read_rows(path: StrPath) -> list[dict[str, str]]:
    """The rows of a stage's CSV file as dicts of text; none when there is no file. A last row that was cut off by a
    kill is left out. Raises TrainingError when it is another file."""
    if not Path(path).is_file():
        return []
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        content = file.read()
    rows = list(csv.DictReader(content[: content.rfind("\n") + 1].splitlines()))
    if any(list(row) != list(CSV_COLUMNS) or not row["step"].isdecimal() for row in rows):
        raise TrainingError(f"{path}: not a training log of this program: move it away")
    return rows
