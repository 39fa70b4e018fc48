"""The files of a run: their names, the lock, and how an earlier run is moved aside."""

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
    """Training cannot go on, or cannot begin as asked."""


@dataclass
class Folder:
    """Where a run's files are: Model/Ckpt and Model/Log. A standalone and a distributed run can live in one."""

    root: Path
    suffix: str = ""  # of the files' names: "_rank0" in a distributed run
    checkpoints: Path = field(init=False)
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.checkpoints, self.log = self.root / "Ckpt", self.root / "Log"

    def final(self, stage_name: str) -> Path:
        """The stage's last weights."""
        return self.checkpoints / f"Final{stage_name.capitalize()}Net{self.suffix}.ckpt"

    def best(self, stage_name: str) -> Path:
        """The stage's weights with the lowest validation abs_rel."""
        return self.checkpoints / f"Best{stage_name.capitalize()}Net{self.suffix}.ckpt"

    def state(self, stage_name: str, step: int | str) -> Path:
        """The stage's resumable checkpoint of a step."""
        return self.checkpoints / f"{stage_name.capitalize()}Net_{step}{self.suffix}.ckpt"

    def states(self, stage_name: str) -> list[tuple[int, Path]]:
        """(step, path) of the stage's resumable checkpoints, oldest first."""
        pattern = re.compile(rf"{stage_name.capitalize()}Net_(\d+){self.suffix}\.ckpt")
        matches = [(pattern.fullmatch(path.name), path) for path in self.checkpoints.glob("*.ckpt")]
        return sorted((int(match[1]), path) for match, path in matches if match)

    def earlier_run(self, first_stage: str) -> tuple[list[Path], list[Path]]:
        """(logs, checkpoints) of the run whose place one takes that begins with this stage: FineNet's, and CoarseNet's
        unless "fine" is the first. A net's states come after its weights, CoarseNet after the FineNet that was trained
        on it: what is left when some of them are gone can be resumed."""
        stages = ("fine",) if first_stage == "fine" else ("fine", "coarse")
        logs = [self.log_file(name) for name in ("options.json", "mean_map.json", "curves.png")]
        checkpoints = []
        for name in stages:
            logs += [self.log_file(f"{name}{ending}") for ending in (".csv", "_panels.png", "_panels.npz")]
            logs.append(self.log_file("tensorboard") / name)
            checkpoints += [self.best(name), self.final(name), *(path for _, path in self.states(name))]
        return [path for path in logs if path.exists()], [path for path in checkpoints if path.exists()]

    def move_aside(self, paths: Sequence[Path]) -> None:
        """Move these files and folders of an earlier run into one new folder, under the names that they have here."""
        names = (self.root / f"replaced-{time.strftime('%Y%m%d')}-{number}" for number in itertools.count(1))
        target = next(path for path in names if not path.exists())
        for path in paths:
            moved = target / path.relative_to(self.root)
            moved.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, moved)
        logger.info("moved the earlier run to %s (%d files and folders)", target, len(paths))

    def log_file(self, name: str) -> Path:
        """`name` in the log folder, with this run's suffix: coarse.csv, curves.png, options.json."""
        path = self.log / name
        return path.with_stem(path.stem + self.suffix)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other trainings out of this folder while entered; the lock goes when the process does."""
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
