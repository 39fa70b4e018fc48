"""tools/compress_weights.py: small weights predict what the whole ones do."""

import mindspore as ms
import numpy as np

from src.data.plain import PlainPairs
from src.data.sampling import Schedule
from src.data_loader import TrainingData
from src.net import PaperCoarseNet
from src.nets import checkpoint
from tests.test_commands import one_line


def test_compressed_weights_predict_what_the_whole_ones_do(nyu, forked, tmp_path):
    """On the pictures that the directions were taken of: there are no others in so small a set."""
    data = TrainingData(PlainPairs(nyu), Schedule(8, 8, seed=0), augmentation="paper")
    net, whole = PaperCoarseNet(), tmp_path / "FinalCoarseNet.ckpt"
    for layer in (net.fc6, net.fc7):  # as after a training: outputs that differ from picture to picture
        layer.weight.set_data(layer.weight * 3)
    ms.save_checkpoint(net, str(whole))
    refused = forked(f"tools/compress_weights.py {whole} small.ckpt", cwd=tmp_path)
    assert "PaperCoarseNet: expected --data_url" in one_line(refused)
    done = forked(f"tools/compress_weights.py {whole} small.ckpt --data_url {nyu} --rank_fc6 40", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "small.ckpt").stat().st_size < whole.stat().st_size / 10
    rgb = ms.Tensor(next(data.batches(0, 1))[0].astype(np.float32) / 255)
    ours, theirs = (checkpoint.load_coarse(path)(rgb).asnumpy() for path in (tmp_path / "small.ckpt", whole))
    assert theirs.std() > 0.1 and np.abs(ours - theirs).max() < 0.05 * theirs.std()
    assert "already there" in one_line(forked(f"tools/compress_weights.py {whole} small.ckpt", cwd=tmp_path))
