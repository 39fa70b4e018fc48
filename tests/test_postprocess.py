"""postprocess.py: known results get known scores, without MindSpore."""

import json
import shutil

import numpy as np
import pytest

from src import metrics
from tests.test_commands import FINAL_LINE, one_line


def write_results(preprocessed, folder, factor):
    folder.mkdir()
    for label in sorted((preprocessed / "label").iterdir()):
        np.log(np.fromfile(label, np.float32) * np.float32(factor)).tofile(folder / f"{label.stem}_0.bin")
    return folder


def test_known_results_get_known_scores(preprocessed, run, bare, tmp_path):
    results = write_results(preprocessed, tmp_path / "results", 1.2)
    result = run(
        f"postprocess.py --result_path {results} --label_file {preprocessed}/label --output_dir {tmp_path}/report",
        cwd=tmp_path,
        PYTHONPATH=bare,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    values = [float(value) for value in FINAL_LINE.search(result.stdout).groups()[1:]]
    assert values[:4] == pytest.approx([1, 1, 1, 0.2], abs=1e-5) and values[6] == pytest.approx(np.log(1.2), abs=1e-5)
    report = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert report["images"] == 4 and set(metrics.METRICS) <= report["metrics"]["FineNet"].keys()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda folder: (folder / "00002_0.bin").unlink(), "1 missing: 00002_0.bin"),
        (lambda folder: (folder / "7_0.bin").write_bytes(b"x"), "1 without a label: 7_0.bin"),
        (lambda folder: (folder / "00001_0.bin").write_bytes(b"12345"), "00001_0.bin: 5 bytes, expected 16280"),
        (lambda folder: np.full(4070, np.nan, "f4").tofile(folder / "00003_0.bin"), "00003_0.bin: not finite"),
        (shutil.rmtree, "results: no such folder"),
    ],
)
def test_missing_short_surplus_and_broken_results_are_named(preprocessed, forked, tmp_path, change, text):
    change(write_results(preprocessed, tmp_path / "results", 1))
    line = f"postprocess.py --result_path results --label_file {preprocessed}/label"
    assert text in one_line(forked(line, cwd=tmp_path))
