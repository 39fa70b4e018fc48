"""The rendered rooms: true geometry, true encodings, one seed one set."""

import numpy as np
import pytest
from PIL import Image

from src.base.errors import UserError
from tools import make_sample_nyu as sample


def test_encodings_are_those_of_nyu(nyu):
    train, test = nyu / "Train" / "sample_0001_out", nyu / "Test"
    assert Image.open(train / "1.jpg").format == "JPEG" and Image.open(train / "1.png").mode == "L"
    assert Image.open(test / "00000_colors.png").mode == "RGB" and Image.open(test / "00000_depth.png").mode == "I;16"
    millimetres = np.asarray(Image.open(test / "00000_depth.png"))
    assert millimetres.shape == (480, 640) and 300 < millimetres.min() < millimetres.max() < 10_000


def test_the_same_seed_gives_the_same_files(nyu, tmp_path):
    sample.make(tmp_path / "NYU", scenes=1, pairs_per_scene=1, test_pairs=1, seed=1)
    name = "Train/sample_0001_out/1.png"
    assert (tmp_path / "NYU" / name).read_bytes() == (nyu / name).read_bytes()


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UserError, match="not empty"):
        sample.make(tmp_path)
