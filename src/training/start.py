"""How a run starts in its folder: as a new run, in place of an earlier run, or by resuming it."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mindspore as ms

from src.base.files import remove_partial, writable_folder, write_text
from src.nets import checkpoint
from src.training.log import StageLog
from src.training.options import SavingOptions, Stage
from src.training.run_folder import Folder, TrainingError
from src.training.state import check_same_options, newest_state
from src.training.trainer import Trainer

logger = logging.getLogger(__name__)


class RunStart:
    """Checks how the run may start in its folder; `begin` then moves an earlier run aside.

    Args:
        stages: the stages to train.
        folder: the folder of the run.
        saving: --resume, --overwrite and --allow_changed_data.
        pre_trained: the checkpoint that --pre_trained names.

    Raises TrainingError if folder and options do not fit each other; nothing but partial files has been removed then.
    """

    def __init__(
        self, stages: Sequence[Stage], folder: Folder, saving: SavingOptions, pre_trained: Path | None
    ) -> None:
        self.stages, self.folder, self.allow_changed_data = stages, folder, saving.allow_changed_data
        remove_partial(writable_folder(folder.checkpoints))
        remove_partial(writable_folder(folder.log))
        logs, checkpoints = folder.earlier_run(stages[0].name)
        resumes = saving.resume == "always" or (saving.resume == "auto" and checkpoints)
        self.saved = self._saved_states() if resumes else {}
        # Logs without checkpoints may be all that is left of a run.
        replaces = saving.overwrite or (not self.saved and any(path.suffix == ".csv" for path in logs))
        self.replaced = logs + checkpoints if replaces else []
        if checkpoints and not saving.resume and not saving.overwrite:
            raise TrainingError(
                f"{checkpoints[0]}: {folder.root} already holds a run of the {stages[0].name} net: "
                "--resume continues it, --overwrite moves it aside, --train_url names another folder"
            )
        if pre_trained and pre_trained.resolve() in [path.resolve() for path in self.replaced]:
            raise TrainingError(
                f"--pre_trained {pre_trained} is of the run that --overwrite replaces: copy "
                "it to another folder first, or name another folder with --train_url"
            )

    def _saved_states(self) -> dict[str, checkpoint.Checkpoint]:
        """Return the newest state of each stage that has one."""
        saved = {}
        for stage in self.stages:
            if state := newest_state(stage.name, self.folder):
                check_same_options(stage, state, self.allow_changed_data)
                saved[stage.name] = state
        missing = [stage.name for stage in self.stages if stage.name not in saved]
        files = [path for name in missing for path in (self.folder.final(name), self.folder.best(name))]
        weights = [path.name for path in files if path.exists()]
        if weights or not saved:
            raise self._no_state(missing[0], weights)
        return saved

    def _no_state(self, stage_name: str, weights: Sequence[str]) -> TrainingError:
        """Return the error that says that --resume needs a state of this stage, and what is there instead."""
        moved = [path.name for path in sorted(self.folder.root.glob("replaced-*"))]
        found = [f"{', '.join(weights)}, which are weights"] * bool(weights)
        found += [f"{', '.join(moved)}, which --overwrite moved aside"] * bool(moved)
        advice = "--overwrite in its place begins anew, with --pre_trained from weights"
        return TrainingError(
            f"{self.folder.state(stage_name, '<step>')}: --resume finds no state to resume from "
            f"(found: {'; '.join(found) or 'no run'}): {advice if weights else 'leave --resume out to begin'}"
        )

    def restore(self, stage: Stage, trainer: Trainer, log: StageLog) -> None:
        """Load the newest state of the stage, if there is one to resume from."""
        if saved := self.saved.get(stage.name):
            check_same_options(stage, saved, self.allow_changed_data)  # now with the digest of FineNet's coarse net
            trainer.restore(saved)
            log.resume(saved)
            logger.info("resuming from %s", saved.path)

    def begin(self, options: Mapping[str, Any]) -> None:
        """Move the run that is replaced aside, and write the options, by name, to options.json."""
        if self.replaced:
            # Logs go first: if killed meanwhile, the checkpoints that are still there keep a new run from starting.
            self.folder.move_aside(self.replaced)
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
        text = json.dumps({**settings, "mindspore": ms.__version__}, indent=2)
        write_text(self.folder.log_file("options.json"), text + "\n")
