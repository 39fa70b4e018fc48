"""Figures, colours and their letters, whatever matplotlib is told by the machine."""

import shutil

import matplotlib
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

from src.scoring import visual


@pytest.mark.parametrize("name", ["tab10", "viridis", "Set1"])
def test_a_colour_map_of_any_length_is_drawn_as_matplotlib_does(name):
    depth_m = np.linspace(0.02, 9.98, 500)[None]
    expected = (matplotlib.colormaps[name](depth_m / 10)[..., :3] * 255).round()
    difference = np.abs(visual.colour(depth_m, 10, name).astype(int) - expected).max(-1)
    assert np.mean(difference > 4) < 0.05 and len(np.unique(visual.colour(depth_m, 10, name), axis=1)[0]) > 5


def test_neither_a_notebook_nor_a_matplotlibrc_changes_a_picture(nyu, run, tmp_path):
    def check(name, rc="", **environment):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "matplotlibrc").write_text(rc)
        result = run(f"tools/check_nyu.py {nyu} --output_dir check", cwd=folder, **environment)
        assert (result.returncode, result.stderr) == (0, ""), result.stderr
        return (folder / "check" / "check.png").read_bytes()

    plain = check("plain")
    settings = "text.usetex: True\nfont.size: 30\naxes.facecolor: red\nfigure.dpi: many\n"
    assert check("changed", settings, MPLBACKEND="module://a_module_that_is_not_here") == plain


def test_ids_of_any_script_are_drawn_or_escaped(nyu, run, tmp_path):
    """No warning, and so no box: matplotlib warns of each letter that it draws as one."""
    data = shutil.copytree(nyu, tmp_path / "NYU")
    (data / "Train" / "sample_0001_out").rename(data / "Train" / "厨房 кухня مطبخ_out")
    for part in ("colors", "depth"):
        (data / "Test" / f"00000_{part}.png").rename(data / "Test" / f"台所🛋_{part}.png")
    result = run(f"tools/check_nyu.py {data} --output_dir check", cwd=tmp_path, PYTHONWARNINGS="always")
    assert result.returncode == 0 and "Glyph" not in result.stdout + result.stderr, result.stderr
    assert visual.label("кухня $5") == r"кухня \$5"


def test_a_font_that_has_the_letters_is_used(tmp_path, monkeypatch):
    """A letter for private use, which no other font has, is drawn as that font's square."""
    letter, pen = "\U000f1234", TTGlyphPen(None)
    for move, point in ((pen.moveTo, (0, 0)), (pen.lineTo, (0, 900)), (pen.lineTo, (900, 900)), (pen.lineTo, (900, 0))):
        move(point)
    pen.closePath()
    builder = FontBuilder(1000)
    builder.setupGlyphOrder([".notdef", "square"])
    builder.setupCharacterMap({ord(letter): "square"})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "square": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (500, 0), "square": (1000, 0)})
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "Squares", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "squares.ttf")
    monkeypatch.setattr(visual, "printable", str)  # the letter is no printable one
    assert visual.label(letter) == r"\U000f1234"
    visual._font_with.cache_clear()
    monkeypatch.setattr(font_manager.fontManager, "ttflist", list(font_manager.fontManager.ttflist))
    font_manager.fontManager.addfont(tmp_path / "squares.ttf")
    try:
        assert visual.label(letter) == letter and matplotlib.rcParams["font.family"] == ["sans-serif", "Squares"]
    finally:
        visual._font_with.cache_clear()
        visual.new_figure(1, 1)
    assert matplotlib.rcParams["font.family"] == ["sans-serif"]
