"""tools/make_pictures.py, which makes the README's pictures."""

import cv2


def test_the_pictures_of_the_readme_are_made(nyu, forked, tmp_path):
    result = forked(f"tools/make_pictures.py {nyu}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for name in ("predictions.png", "pointcloud.png"):
        picture = cv2.imread(str(tmp_path / "docs" / name))
        assert picture.shape[1] > 600 and picture.std() > 10
