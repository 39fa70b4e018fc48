"""What eval.py writes: its figures, and the HTML report."""

import base64
import csv
import html.parser
import json
import re

import cv2
import mindspore as ms
import numpy as np
import pytest

from src.base import cli
from src.scoring import evaluation, report
from tests.test_commands import is_picture


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.pictures, self.cells, self.outside = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name == "src" and value.startswith("data:image/png;base64,"):
                self.pictures.append(base64.b64decode(value.partition(",")[2]))
            elif name in ("src", "href"):
                self.outside.append(value)

    def handle_data(self, data):
        self.cells.append(data.strip())


def test_the_files_of_an_evaluation_are_complete_and_agree(evaluated):
    folder = evaluated / "eigen"
    nets = {"constant depth", "mean training map", "CoarseNet", "FineNet"}
    assert nets <= {line.split("  ")[0] for line in (folder / "stdout.txt").read_text().splitlines()}
    facts = json.loads((folder / "metrics.json").read_text(), parse_constant=pytest.fail)  # NaN is no JSON
    assert facts["protocol"] == "eigen" and facts["images"] == 4 and facts["versions"]["mindspore"] == ms.__version__
    assert list(facts["checkpoints"].values()) == list(map(str, cli.SHIPPED.values()))
    one = facts["metrics"]["FineNet"]
    assert one["rmse_mean_over_images"] == one["rmse"] <= one["rmse_pooled_over_pixels"] + 1e-12
    with open(folder / "per_image.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["net"] == "FineNet"]
    assert [row["image"] for row in rows] == ["00000", "00001", "00002", "00003"]
    assert np.mean([float(row["abs_rel"]) for row in rows]) == pytest.approx(one["abs_rel"])
    assert is_picture(folder / "panels.png")


def test_the_report_is_one_file_with_the_numbers_and_pictures(evaluated):
    folder = evaluated / "eigen"
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert not page.outside and "http" not in re.sub(r"base64,[^\"]*", "", text)
    assert len(page.pictures) == 5
    for picture in page.pictures:
        decoded = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)
        assert min(decoded.shape[:2]) > 250 and decoded.std() > 10
    assert len({cv2.imdecode(np.frombuffer(one, np.uint8), 1).shape[1] for one in page.pictures[1:]}) == 1
    metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
    for net in ("constant depth", "mean training map", "CoarseNet", "FineNet"):
        row = page.cells.index(net) + 1
        assert page.cells[row : row + 8] == [
            f"{metrics[net][name]:.3f}"
            for name in ("delta1", "delta2", "delta3", "abs_rel", "sq_rel", "rmse", "rmse_log", "si")
        ]
    assert any("rows 45..471" in cell for cell in page.cells)


def test_published_figures_stand_beside_a_set_of_their_size_only(tmp_path):
    rng = np.random.default_rng(0)
    scores, details = evaluation.Scores("depthnet"), evaluation.Details()
    log_depth, depth_m = rng.normal(1, 0.1, (3, 1, 55, 74)), rng.uniform(1, 4, (3, 1, 55, 74)).astype(np.float32)
    scores.add(["a", "b", "c"], log_depth, depth_m)
    details.add(log_depth, depth_m)
    for pairs in (60, 654):
        data = {"pairs": pairs, "fingerprint": "0123"}
        report.write(tmp_path / "r.html", {"FineNet": scores}, {"FineNet": details}, b"", {}, {}, data)
        text = (tmp_path / "r.html").read_text()
        assert ("model zoo, Ascend 910" in text) == (pairs == 654)
        assert f"{pairs} pairs, fingerprint 0123" in text
