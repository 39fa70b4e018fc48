"""A whole run: CoarseNet's stage, then FineNet's on top of the frozen CoarseNet."""

import contextlib
import hashlib
import json
import logging
from functools import partial
from pathlib import Path

import mindspore as ms
import numpy as np

from src import checkpoint, cli, evaluation
from src.data_loader import Schedule, TrainingData, list_test
from src.device import amp_level
from src.files import remove_partial, write_text
from src.metrics import METRICS
from src.net import COARSE_NETS, FineNet
from src.packed import open_training
from src.training import Folder, Stage, StageLog, Trainer, TrainingError, check_same_options, newest_state, train_stage

logger = logging.getLogger(__name__)


def train(options, device, stop):
    """Run the stages that `options` (train.py's arguments) ask for, until `stop` (a StopRequest) says otherwise.

    Raises:
        UserError: a folder, a file or an option that cannot be used.
        stopping.Stopped: a signal came; the state is saved.
    """
    folder = Folder(Path(options.train_url), "_rank0" if device.ranks > 1 else "")
    source = open_training(options.data_url)
    logger.info("training data: %s, %s form, %d pairs", options.data_url, source.form, len(source.names))
    test_pairs = list_test(options.val_data) if options.val_data else None
    workers = options.num_parallel_workers or cli.default_workers()
    validate = partial(_validate, test_pairs, options.batch_size, workers, device) if test_pairs else None
    names = ("coarse", "fine") if options.stage == "all" else (options.stage,)
    stages = [_stage(name, options, device, source.names) for name in names]
    if device.is_first:
        if not options.resume:
            for stage in stages:
                _make_room(stage, folder, options.overwrite)
        _save_options(options, folder)
    for stage in stages:
        schedule = Schedule(len(source.names), options.batch_size, options.seed, device.rank, device.ranks)
        trainer = _trainer(stage, options, folder, device)
        data = TrainingData(source, schedule, workers, getattr(trainer.net, "dropout_units", 0),
                            getattr(trainer.net, "dropout_rate", 0), skip_bad=options.bad_samples == "skip")
        log = StageLog(folder.log / f"{stage.name}.csv" if device.is_first else None)
        if device.is_first:
            _resume(stage, trainer, log, folder)
            if stage.name == "coarse" and options.mean_depth_start and trainer.step == 0:
                trainer.net.start_at(evaluation.mean_training_depth(source, workers, options.bad_samples == "skip"))
            log.board = _board(stage, trainer.step, folder, test_pairs) if options.tensorboard else None
        trainer.synchronise()
        logger.info("%s net: %d pairs, %d epochs of %d steps of %d, starting at step %d", stage.name,
                    len(source.names), stage.epochs, schedule.steps_per_epoch, options.batch_size, trainer.step)
        with contextlib.closing(log.board) if log.board else contextlib.nullcontext():
            train_stage(stage, trainer, data, folder, log, stop, validate)


def _board(stage, step, folder, test_pairs):
    from src.tensorboard import Board  # tensorboardX is needed for this only

    board = Board(folder.log / "tensorboard", stage.name, step, test_pairs)
    board.add(step, {"learning_rate": stage.options["learning_rate"]})
    return board


def _save_options(options, folder):
    remove_partial(cli.writable_folder(folder.checkpoints))
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    write_text(cli.writable_folder(folder.log) / "options.json",
               json.dumps({**settings, "mindspore": ms.__version__}, indent=2) + "\n")


def _stage(name, options, device, pair_names):
    learning_rate = getattr(options, f"learning_rate_{name}") * (device.ranks if options.scale_lr else 1)
    decisive = {
        "batch_size": options.batch_size, "ranks": device.ranks, "learning_rate": learning_rate,
        "loss": options.loss, "amp_level": amp_level(options.amp_level, device.target), "seed": options.seed,
        "pairs": hashlib.sha256("\n".join(pair_names).encode()).hexdigest()[:16],
        "coarse_net": options.coarse_net, "mean_depth_start": options.mean_depth_start,
    }
    return Stage(name, getattr(options, f"epochs_{name}"), options.save_checkpoint_steps,
                 options.keep_checkpoint_max, options.max_steps, decisive)


def _trainer(stage, options, folder, device):
    ms.set_seed(options.seed)
    build = partial(Trainer, loss=options.loss, learning_rate=stage.options["learning_rate"],
                    amp_level=stage.options["amp_level"], device=device)
    if stage.name == "coarse":
        net = COARSE_NETS[options.coarse_net]()
        if options.pre_trained:
            checkpoint.assign(net, checkpoint.load(options.pre_trained))
        return build(net)
    path = options.pre_trained if options.stage == "fine" and options.pre_trained else folder.final("coarse")
    coarse = _frozen_coarse(path, device)
    stage.options["coarse_sha256"] = checkpoint.digest(coarse)
    logger.info("FineNet is trained on %s of %s", type(coarse).__name__, path)
    ms.set_seed(options.seed)
    return build(FineNet(), inputs=lambda rgb: (rgb, coarse(rgb)))


def _frozen_coarse(path, device):
    """Rank 0's coarse net of `path` on every rank: the file need not be on the other servers."""
    coarse = checkpoint.load_coarse(path) if device.is_first else None
    kinds = list(COARSE_NETS.values())
    kind = kinds[device.broadcast_int(kinds.index(type(coarse)) if device.is_first else 0)]
    coarse = coarse or kind()
    coarse.set_train(False)
    device.broadcast(coarse.get_parameters())
    return coarse


def _make_room(stage, folder, overwrite):
    """Refuse a folder that holds a run of this stage, or with `overwrite` remove that run's checkpoints."""
    earlier = [path for _, path in folder.states(stage)]
    earlier += [path for path in (folder.final(stage.name), folder.best(stage.name)) if path.exists()]
    if earlier and not overwrite:
        raise TrainingError(f"{earlier[0]}: {folder.root} already holds a run of the {stage.name} net: "
                            "--resume continues it, --overwrite replaces it, --train_url names another folder")
    for path in earlier:
        path.unlink()


def _resume(stage, trainer, log, folder):
    saved = newest_state(stage, folder)
    if saved is None:
        return
    check_same_options(stage, saved)
    trainer.restore(saved)
    log.resume(saved)
    logger.info("resuming from %s", saved.path)


def _validate(pairs, batch_size, workers, device, predict):
    """Each rank scores its share of the pairs; the sums make the mean over all. A dict of metrics."""
    share = pairs[device.rank::device.ranks]
    scores = evaluation.score(share, lambda rgb: {"net": predict(rgb)}, "depthnet", batch_size, workers)
    per_image = scores["net"].per_image if scores else {name: [] for name in METRICS}
    sums = device.sum([value for name in METRICS for value in
                       (np.nansum(per_image[name]), np.count_nonzero(~np.isnan(per_image[name])))])
    return dict(zip(METRICS, (sums[::2] / np.maximum(sums[1::2], 1)).tolist(), strict=True))


def predictors(coarse, fine):
    """The function of RGB that `evaluation.score` takes: both nets' log depth by name."""
    def predict(rgb):
        tensor = ms.Tensor(rgb)
        coarse_log_depth = coarse(tensor)
        return {"CoarseNet": coarse_log_depth.asnumpy(), "FineNet": fine(tensor, coarse_log_depth).asnumpy()}

    return predict
