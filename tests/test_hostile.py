"""Training on sets and logs that are damaged."""

import pytest

from src.data import sampling
from tests.test_commands import one_line


def test_bad_samples_are_counted_over_all_ranks(nyu):
    """Each rank is under the limit, both together are not."""
    from src.base.stopping import SIGNALS
    from src.training import run_folder, stage, trainer

    pace = stage._Pace(None, None, type("Data", (), {"schedule": sampling.Schedule(8, 2, 0)})(), None, None)
    pace.log = type("Log", (), {"add_step": lambda *_: None})()
    pace.bar = type("Bar", (), {"update": lambda self: None})()
    pace.stage = type("Stage", (), {"name": "coarse"})()
    votes = [0] * len(SIGNALS)
    pace.began = 0.0
    pace.waiting = lambda: trainer.StepResult(2, 1.0, 1.0, True, [*votes, 2.0])
    with pytest.raises(run_folder.TrainingError, match="2 of 8 samples are bad on all ranks together"):
        pace.settle()


def test_a_log_of_another_kind_is_named(nyu, forked, tmp_path):
    line = f"train_tiny --data_url {nyu} --stage coarse --batch_size 8 --max_steps"
    assert forked(f"{line} 1", cwd=tmp_path).returncode == 0
    (tmp_path / "Model" / "Log" / "coarse.csv").write_text("a,b\n1,2\n")
    assert "coarse.csv: not a training log" in one_line(forked(f"{line} 2 --resume", cwd=tmp_path))
