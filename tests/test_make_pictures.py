"""tools/make_pictures.py, which makes the README's pictures."""

import cv2


def test_the_pictures_of_the_readme_are_made(nyu, trained, run, tmp_path):
    checkpoints = [trained / "Model" / "Ckpt" / f"Final{net}Net.ckpt" for net in ("Coarse", "Fine")]
    result = run(
        f"tools/make_pictures.py {nyu}",
        "--coarse_ckpt_model",
        checkpoints[0],
        "--fine_ckpt_model",
        checkpoints[1],
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    for name in ("predictions.png", "pointcloud.png"):
        picture = cv2.imread(str(tmp_path / "docs" / name))
        assert picture.shape[1] > 600 and picture.std() > 10
