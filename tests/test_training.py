"""The training step and loop, in process; the command itself is in test_commands.py."""

import math

import mindspore as ms
import numpy as np
import pytest
import torch

from src import metrics
from src.data import plain
from src.data.plain import PlainPairs
from src.data.sampling import Schedule
from src.data_loader import TrainingData
from src.loss import CompositeLoss
from src.net import CoarseNet, FineNet, PaperCoarseNet
from src.nets.device import Device
from src.training import run_folder
from src.training import trainer as trainer_module
from src.training.log import StageLog
from src.training.options import Recipe, Stage
from src.training.stage import StageLoop
from src.training.trainer import Trainer
from tests.test_commands import one_line
from tests.tiny import NOBODY_STOPS, TinyCoarse

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def batch(nyu):
    """Two training pairs as they are, not augmented."""
    rgb, depth_m = zip(*map(plain.PlainPairs(nyu).load, range(2)), strict=True)
    return np.stack(rgb).transpose(0, 3, 1, 2), np.stack(depth_m)[:, None]


def unit_range(rgb):
    """What the step makes of uint8 RGB on the device."""
    return rgb.astype(np.float32) / 255


def train_until(trainer, batch, share, most):
    first = loss = trainer.run_step(*batch)[0]
    while loss > share * first and trainer.step < most:
        loss, _ = trainer.run_step(*batch)
    return first, loss


def test_a_picture_is_learnt_by_heart(batch):
    ms.set_seed(0)
    batch = [part[:1] for part in batch]
    trainer = Trainer(CoarseNet(), "composite", 3e-4)
    first, loss = train_until(trainer, batch, 0.08, 300)
    worst = 0.0
    while trainer.step < 400:  # Adam's steps move the scale of all cells at once, to and fro
        worst = metrics.evaluate(trainer.predict(unit_range(batch[0])), batch[1])["delta1"].min()
        if loss < 0.1 * first and worst > 0.9:
            break
        loss, _ = trainer.run_step(*batch)
    assert loss < 0.1 * first
    assert worst > 0.9


def test_the_fine_net_learns_on_top_of_a_coarse_prediction(batch):
    ms.set_seed(0)
    blurred = np.log(batch[1].mean((2, 3), keepdims=True)) * np.ones_like(batch[1])
    trainer = Trainer(FineNet(), "composite", 1e-3, inputs=lambda rgb: (rgb, ms.Tensor(blurred)))
    first, last = train_until(trainer, batch, 0.3, 60)
    assert last < 0.4 * first


def test_the_printed_loss_is_that_of_the_step_s_own_forward(batch):
    """The loss that a step returns is the one before its update."""
    ms.set_seed(0)
    net = FineNet()
    coarse = np.ones_like(batch[1])
    expected = CompositeLoss()(net(ms.Tensor(unit_range(batch[0])), ms.Tensor(coarse)), ms.Tensor(batch[1]))
    trainer = Trainer(net, "composite", 1e-4, inputs=lambda rgb: (rgb, ms.Tensor(coarse)))
    assert trainer.run_step(*batch)[0] == pytest.approx(float(expected), rel=1e-6)
    assert trainer.run_step(*batch)[0] < float(expected)


def test_one_step_is_adam_s(batch):
    """FineNet's update against torch.optim.Adam on the same gradients."""
    ms.set_seed(0)
    net, coarse = FineNet(), ms.Tensor(np.ones_like(batch[1]))
    before = net.conv3.weight.asnumpy().copy()
    gradient = ms.value_and_grad(_FineLoss(net), None, net.trainable_params())(
        ms.Tensor(unit_range(batch[0])), coarse, ms.Tensor(batch[1])
    )[1][2].asnumpy()
    Trainer(net, "composite", 1e-3, inputs=lambda rgb: (rgb, coarse)).run_step(*batch)
    weight = torch.nn.Parameter(torch.from_numpy(before))
    weight.grad = torch.from_numpy(gradient)
    # MindSpore adds eps to the root of the uncorrected second moment, PyTorch to that of the corrected one.
    torch.optim.Adam([weight], 1e-3, eps=1e-8 / math.sqrt(1 - 0.999)).step()
    np.testing.assert_allclose(net.conv3.weight.asnumpy(), weight.detach().numpy(), atol=2e-6)


class _FineLoss(ms.nn.Cell):
    def __init__(self, net):
        super().__init__(auto_prefix=False)
        self.net, self.loss = net, CompositeLoss()

    def construct(self, rgb, coarse, depth_m):
        return self.loss(self.net(rgb, coarse), depth_m)


def test_the_paper_net_trains_with_its_dropout_mask(batch):
    ms.set_seed(0)
    trainer = Trainer(PaperCoarseNet(), "scale_invariant", 1e-4)
    kept = np.random.default_rng(0).integers(0, 2, (2, 4096)).astype(np.float32)
    losses = [trainer.run_step(*batch, kept)[0] for _ in range(8)]
    assert losses[-1] < 0.5 * losses[0]
    assert trainer.predict(unit_range(batch[0])).shape == (2, 1, 55, 74)


def test_gradients_do_not_vary_from_run_to_run(batch):
    """MindSpore's CPU kernels choose their number of threads after five runs: no result may depend on it."""
    ms.set_seed(0)
    net = FineNet()
    gradient = ms.value_and_grad(_FineLoss(net), None, net.trainable_params())
    arguments = [ms.Tensor(array) for array in (unit_range(batch[0]), np.ones_like(batch[1]), batch[1])]
    first = [g.asnumpy() for g in gradient(*arguments)[1]]
    for _ in range(9):
        for ours, theirs in zip(gradient(*arguments)[1], first, strict=True):
            np.testing.assert_array_equal(ours.asnumpy(), theirs)


@pytest.mark.parametrize("net", ["default", "paper"])
def test_o1_trains_both_coarse_nets_and_leaves_no_code_behind(nyu, run, tmp_path, net):
    (tmp_path / "tmp").mkdir()
    result = run(
        "train.py",
        "--data_url",
        nyu,
        "--amp_level",
        "O1",
        "--coarse_net",
        net,
        "--batch_size",
        1,
        "--max_steps",
        1,
        cwd=tmp_path,
        TMPDIR=str(tmp_path / "tmp"),
    )
    assert result.returncode == 0 and "NameError" not in result.stderr, result.stdout + result.stderr
    assert f"FineNet is trained on {'Paper' * (net == 'paper')}CoarseNet of" in result.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"Model", "tmp"} and not list((tmp_path / "tmp").iterdir())


def test_an_overflow_is_no_step_of_the_schedule(batch):
    ms.set_seed(0)
    trainer = Trainer(
        FineNet(),
        "composite",
        1e-3,
        amp_level="O2",
        recipe=Recipe("cosine"),
        last_step=9,
        inputs=lambda rgb: (rgb, ms.Tensor(np.ones_like(batch[1]))),
    )
    updates = [trainer.launch(*batch)().updates]
    scale = float(trainer.scaler.scale_value.asnumpy())
    trainer.scaler.scale_value.set_data(ms.Tensor(2.0**60, ms.float32))
    updates.append(trainer.launch(*batch)().updates)
    trainer.scaler.scale_value.set_data(ms.Tensor(scale, ms.float32))
    updates += [trainer.launch(*batch)().updates for _ in range(2)]
    assert updates == [0, 1, 1, 2]


@pytest.mark.parametrize("afterwards", ["let go of", "overwritten"])
def test_a_launched_step_has_read_its_arrays(batch, afterwards):
    def losses(spoil):
        trainer, own = fine_trainer("O0", np.ones_like(batch[1])), []
        for _ in range(3):
            arrays = [array.copy() for array in batch]
            wait = trainer.launch(*arrays)
            if spoil == "overwritten":
                arrays[0][:], arrays[1][:] = 0, np.nan
            elif spoil:
                shapes = [(array.shape, array.dtype) for array in arrays]
                del arrays  # their memory goes to the next of that size
                others = [np.full(shape, 99, dtype) for shape, dtype in shapes for _ in range(8)]
                assert len(others) == 16
            own.append(wait().own_loss)
        return own

    assert losses(afterwards) == losses(None)


@pytest.mark.parametrize(("amp_level", "cleared"), [("O2", ["cleared"]), ("O0", [])])
def test_overflows_of_the_frozen_net_are_cleared_before_each_step_on_910a(batch, monkeypatch, amp_level, cleared):
    class Ascend910A(Device):
        keeps_overflows = True

    def coarse(rgb):
        calls.append("frozen net")
        return rgb, ms.Tensor(np.ones_like(batch[1]))

    calls = []
    monkeypatch.setattr(trainer_module, "clear_overflows", lambda: calls.append("cleared"))
    trainer = Trainer(FineNet(), "composite", 3e-4, amp_level=amp_level, inputs=coarse, device=Ascend910A("CPU"))
    for _ in range(2):
        trainer.run_step(*batch)
    assert calls == 2 * ["frozen net", *cleared]


def fine_trainer(amp_level, coarse):
    ms.set_seed(0)
    return Trainer(FineNet(), "composite", 3e-4, amp_level=amp_level, inputs=lambda rgb: (rgb, ms.Tensor(coarse)))


def test_half_precision_follows_single_precision(batch):
    batch = [part[:1] for part in batch]
    coarse = np.ones_like(batch[1])
    curves = []
    for amp_level in ("O0", "O2"):
        trainer = fine_trainer(amp_level, coarse)
        curves.append([trainer.run_step(*batch)[0] for _ in range(6)])
        assert trainer.predict(unit_range(batch[0])).dtype == np.float32
    np.testing.assert_allclose(curves[1], curves[0], rtol=0.02)
    assert curves[0][-1] < 0.5 * curves[0][0]


@pytest.mark.parametrize("amp_level", ["O1", "O2", "O3"])
def test_an_overflow_skips_the_step_lowers_the_scale_and_is_counted(batch, amp_level, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = fine_trainer(amp_level, np.ones_like(batch[1]))
    assert not list(tmp_path.iterdir())  # O1 writes the net's code somewhere else
    assert trainer.run_step(*batch)[1]
    before = {name: parameter.asnumpy().copy() for name, parameter in trainer.state().items()}
    trainer.scaler.scale_value.set_data(ms.Tensor(2.0**60, ms.float32))
    loss, applied = trainer.run_step(*batch)
    assert np.isfinite(loss) and not applied
    after = trainer.state()
    assert float(after["scale_value"].asnumpy()) == 2.0**59
    for name in before.keys() - {"scale_value", "counter"}:
        np.testing.assert_array_equal(after[name].asnumpy(), before[name])
    log = StageLog(tmp_path / "fine.csv")
    log.add_step(loss, 0.1, applied)
    assert log.end_epoch()[1] == 1


def test_bad_samples_are_counted_over_all_ranks(nyu, tmp_path):
    """Each rank is under the limit, both together are not."""

    class OfTwoRanks(Trainer):
        def launch(self, *arrays, votes):
            """A step in which the other rank votes as this one does."""
            return lambda: super(OfTwoRanks, self).launch(*arrays, votes=[2 * vote for vote in votes])()

    data = TrainingData(PlainPairs(nyu), Schedule(8, 2, 0), skip_bad=True)
    data.bad.add(0)
    run, settings = run_folder.Folder(tmp_path), Stage("coarse", 1, 4, None, 3, {})
    loop = StageLoop(settings, OfTwoRanks(TinyCoarse(), "composite", 1e-4), data, run, StageLog(None), NOBODY_STOPS)
    with pytest.raises(run_folder.TrainingError, match="2 of 8 samples are bad on all ranks together"):
        loop.run()


def test_a_log_of_another_kind_is_named(nyu, forked, tmp_path):
    line = f"train_tiny --data_url {nyu} --stage coarse --batch_size 8 --max_steps"
    assert forked(f"{line} 1", cwd=tmp_path).returncode == 0
    (tmp_path / "Model" / "Log" / "coarse.csv").write_text("a,b\n1,2\n")
    assert "coarse.csv: not a training log" in one_line(forked(f"{line} 2 --resume", cwd=tmp_path))
