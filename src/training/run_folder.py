"""The folder of a run: names of its files, the lock, and moving an earlier run aside."""

import contextlib
import itertools
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from src.base.errors import UserError
from src.base.files import writable_folder

logger = logging.getLogger(__name__)


class TrainingError(UserError):
    """Training cannot start as asked, or cannot continue."""


@dataclass
class Folder:
    """Names the files of a run in Model/Ckpt and Model/Log. A standalone and a distributed run can share one folder.

    Args:
        root: the folder that --train_url names.
        suffix: of the files' names: "_rank0" in a distributed run.
    """

    root: Path
    suffix: str = ""
    checkpoints: Path = field(init=False)
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.checkpoints, self.log = self.root / "Ckpt", self.root / "Log"

    def final(self, stage_name: str) -> Path:
        """Return the path of the stage's final weights."""
        return self.checkpoints / f"Final{stage_name.capitalize()}Net{self.suffix}.ckpt"

    def best(self, stage_name: str) -> Path:
        """Return the path of the stage's weights with the lowest validation abs_rel."""
        return self.checkpoints / f"Best{stage_name.capitalize()}Net{self.suffix}.ckpt"

    def state(self, stage_name: str, step: int | str) -> Path:
        """Return the path of the stage's resumable checkpoint of a step."""
        return self.checkpoints / f"{stage_name.capitalize()}Net_{step}{self.suffix}.ckpt"

    def states(self, stage_name: str) -> list[tuple[int, Path]]:
        """Return (step, path) of the stage's resumable checkpoints, oldest first."""
        pattern = re.compile(rf"{stage_name.capitalize()}Net_(\d+){self.suffix}\.ckpt")
        matches = [(pattern.fullmatch(path.name), path) for path in self.checkpoints.glob("*.ckpt")]
        return sorted((int(match[1]), path) for match, path in matches if match)

    def earlier_run(self, first_stage: str) -> tuple[list[Path], list[Path]]:
        """Return the existing (logs, checkpoints) that a new run starting with this stage replaces: FineNet's, and
        CoarseNet's unless the first stage is "fine".

        They are in the order in which to move them aside, so that what is left can be resumed at any time: FineNet
        before the CoarseNet that it was trained on, and of each net the weights before the states.
        """
        stages = ("fine",) if first_stage == "fine" else ("fine", "coarse")
        logs = [self.log_file(name) for name in ("options.json", "mean_map.json", "curves.png")]
        checkpoints = []
        for name in stages:
            logs += [self.log_file(f"{name}{ending}") for ending in (".csv", "_panels.png", "_panels.npz")]
            logs.append(self.log_file("tensorboard") / name)
            checkpoints += [self.best(name), self.final(name), *(path for _, path in self.states(name))]
        return [path for path in logs if path.exists()], [path for path in checkpoints if path.exists()]

    def move_aside(self, paths: Sequence[Path]) -> None:
        """Move these files and folders of an earlier run into a new folder root/replaced-<date>-<n>, in which they keep
        their relative paths."""
        names = (self.root / f"replaced-{time.strftime('%Y%m%d')}-{number}" for number in itertools.count(1))
        target = next(path for path in names if not path.exists())
        for path in paths:
            moved = target / path.relative_to(self.root)
            moved.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, moved)
        logger.info("moved the earlier run to %s (%d files and folders)", target, len(paths))

    def log_file(self, name: str) -> Path:
        """Return the path of `name`, such as coarse.csv, in the log folder, with the run's suffix."""
        path = self.log / name
        return path.with_stem(path.stem + self.suffix)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder against other trainings within this context. The lock ends with the process.

        Raises TrainingError if another training holds the lock.
        """
        import fcntl

        with open(writable_folder(self.root) / ".lock", "a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                raise TrainingError(
                    f"{self.root}: another training writes there (process {file.read().strip()}): "
                    "wait for it, or name another folder with --train_url"
                ) from error
            except OSError as error:  # some network file systems have no locks
                logger.warning("warning: %s cannot be locked (%s): let no other training use it", self.root, error)
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            yield
