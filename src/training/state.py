"""Checkpoints of a stage: resumable states, the best and the final weights."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from src.nets import checkpoint
from src.training.log import StageLog
from src.training.options import Stage
from src.training.run_folder import Folder, TrainingError
from src.training.trainer import Trainer

# Decisive options: the digests of the training files' sizes and times, and of the coarse net that FineNet refines.
DATA, COARSE = "data", checkpoint.COARSE_SHA256

# First weights that earlier versions offered. They do not matter once a state is saved.
RETIRED, RETIRED_STARTS = ("mean_depth_start", "ridge"), ("lsuv", "closed_form")

logger = logging.getLogger(__name__)


class Saver:
    """Saves the checkpoints of a stage. Only rank 0 writes."""

    def __init__(self, stage: Stage, trainer: Trainer, folder: Folder, log: StageLog) -> None:
        self.stage, self.trainer, self.folder, self.log = stage, trainer, folder, log

    def _info(self) -> dict[str, Any]:
        coarse_net = {"coarse_net": self.stage.decisive["coarse_net"]} if self.stage.name == "coarse" else {}
        return {"stage": self.stage.name, "step": self.trainer.step, "options": self.stage.decisive, **coarse_net}

    def state(self) -> None:
        """Save a resumable state, and delete the oldest ones beyond --keep_checkpoint_max."""
        if not self.trainer.device.is_first:
            return
        checkpoint.save(
            self.folder.state(self.stage.name, self.trainer.step),
            self.trainer.state(),
            {**self._info(), "epoch_sums": self.log.sums},
        )
        # A state of a later step is damaged: this run resumed from an earlier one instead.
        earlier = [path for step, path in self.folder.states(self.stage.name) if step < self.trainer.step]
        for old in earlier[::-1][self.stage.keep_checkpoint_max - 1 :]:
            old.unlink()

    def best(self, abs_rel: float) -> None:
        """Save the weights as the best if `abs_rel` is lower than in all epochs before."""
        earlier = [float(row["abs_rel"]) for row in self.log.rows[:-1] if row["abs_rel"]]
        if all(abs_rel < value for value in earlier):
            self._weights(self.folder.best(self.stage.name), {"abs_rel": abs_rel})

    def final(self) -> None:
        """Save the final weights, and a state of the last step unless it has been saved."""
        states = self.folder.states(self.stage.name)
        if not states or states[-1][0] != self.stage.last_step:
            self.state()
        self._weights(self.folder.final(self.stage.name), {})

    def _weights(self, path: Path, extra: Mapping[str, Any]) -> None:
        if not self.trainer.device.is_first:
            return
        checkpoint.save(path, self.trainer.weights(), {**self._info(), **extra})
        logger.info("saved %s", path)


def newest_state(stage_name: str, folder: Folder) -> checkpoint.Checkpoint | None:
    """Return the newest undamaged state of a stage, or None. Logs a warning for each damaged one."""
    for _, path in reversed(folder.states(stage_name)):
        try:
            return checkpoint.load(path)
        except checkpoint.CheckpointError as error:
            logger.warning("warning: %s: falling back to the state before it", error)
    return None


def check_same_options(stage: Stage, saved: checkpoint.Checkpoint, allow_changed_data: bool = False) -> None:
    """Check that a stage has the decisive options of the saved state.

    With `allow_changed_data` the digest of the training files may differ; then the stage gets that of the saved state.

    Raises TrainingError naming the options that differ.
    """
    before = {
        name: value
        for name, value in saved.info.get("options", {}).items()
        if name not in RETIRED and value not in RETIRED_STARTS
    }
    if DATA in before and before[DATA] != stage.decisive[DATA]:
        if not allow_changed_data:
            raise TrainingError(
                f"{saved.path}: files of the training data have another size or time than when this "
                "run began: --allow_changed_data if they were only copied, else begin anew"
            )
        stage.decisive[DATA] = before[DATA]
    if COARSE in stage.decisive and before.get(COARSE) != stage.decisive[COARSE]:
        raise TrainingError(
            f"{saved.path}: FineNet was trained on another CoarseNet: --stage fine --overwrite begins "
            "FineNet anew on this one"
        )
    changed = [
        f"{name} was {before.get(name)!r}, now {stage.decisive.get(name)!r}"
        for name in {**stage.decisive, **before}
        if name not in {*stage.idle, COARSE} and before.get(name) != stage.decisive.get(name)
    ]
    if changed:
        raise TrainingError(f"{saved.path}: --resume with other options would change the result: " + "; ".join(changed))
