"""preprocess.py and postprocess.py: what they write, what they score, and that they need no MindSpore."""

import json

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
        "postprocess.py",
        "--result_path",
        results,
        "--label_file",
        preprocessed / "label",
        "--output_dir",
        tmp_path / "report",
        cwd=tmp_path,
        PYTHONPATH=bare,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    values = [float(value) for value in FINAL_LINE.search(result.stdout).groups()[1:]]
    assert values[:4] == pytest.approx([1, 1, 1, 0.2], abs=1e-5) and values[6] == pytest.approx(np.log(1.2), abs=1e-5)
    report = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert report["images"] == 4 and set(metrics.METRICS) <= report["metrics"]["FineNet"].keys()


def test_missing_short_surplus_and_broken_results_are_named(preprocessed, run, tmp_path):
    def complain(change):
        results = write_results(preprocessed, tmp_path / f"results{len(list(tmp_path.iterdir()))}", 1)
        change(results)
        return one_line(
            run("postprocess.py", "--result_path", results, "--label_file", preprocessed / "label", cwd=tmp_path)
        )

    assert "1 missing: 00002_0.bin" in complain(lambda folder: (folder / "00002_0.bin").unlink())
    assert "1 without a label: 7_0.bin" in complain(lambda folder: (folder / "7_0.bin").write_bytes(b"x"))
    line = complain(lambda folder: (folder / "00001_0.bin").write_bytes(b"12345"))
    assert "00001_0.bin: 5 bytes, expected 16280" in line
    line = complain(lambda folder: np.full(4070, np.nan, np.float32).tofile(folder / "00003_0.bin"))
    assert "00003_0.bin: not finite" in line


def test_mistakes_get_one_line(preprocessed, run, tmp_path):
    assert "absent: no such folder" in one_line(run("preprocess.py", "--dataset_path", "absent", cwd=tmp_path))
    assert "absent: no such folder" in one_line(
        run("postprocess.py", "--result_path", "absent", "--label_file", preprocessed / "label", cwd=tmp_path)
    )
