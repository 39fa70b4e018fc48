"""What a search through a folder takes, what it names, and what it passes over: the search, and the commands."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.base import folders
from src.base.folders import search
from tests.conftest import ROOT, onnx_nets, paint
from tests.fuzz import PICTURES, bounded, files, fresh, judge
from tests.test_commands import one_line

LITTER = ["._a.jpg", ".DS_Store", "Thumbs.db", "desktop.ini", ".a.jpg.Xy12Zw", ".nfs000001", "Icon\r"]


LITTER_FOLDERS = ["@eaDir", ".ipynb_checkpoints", "__MACOSX", ".Trash-1000", "#recycle", "$RECYCLE.BIN", ".~tmp~"]


def add_litter(folder):
    for name in LITTER:
        (folder / name).write_bytes(b"x")
    for name in LITTER_FOLDERS:
        paint(folder / name / "a.jpg")


@pytest.fixture
def denied(tmp_path):
    """Start the repo's programs as one who may not look into folders of mode 0: root, if root runs the tests, may."""
    prefix = []
    if os.geteuid() == 0:
        prefix = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
        if not shutil.which("setpriv") or subprocess.run([*prefix, "true"], check=False).returncode:
            pytest.skip("root, and no setpriv to give its rights up")

    def run(line, *arguments, cwd):
        program, *options = line.split()
        command = [*prefix, sys.executable, ROOT / program, *options, *map(str, arguments)]
        return subprocess.run(command, cwd=cwd, text=True, capture_output=True, check=False)

    closed = []

    def close(folder):
        folder.chmod(0)
        closed.append(folder)

    yield run, close
    for folder in closed:
        folder.chmod(0o755)


def predicted(folder):
    return {path.relative_to(folder).as_posix().removesuffix("_depth.npy") for path in folder.rglob("*.npy")}


def test_predict_takes_what_it_reads_and_names_the_rest(predict, tmp_path):
    pics = tmp_path / "pics"
    for name in ("a.jpg", "b.jfif", "c.JPE", "h.tif", "sub/i.png", "g.gif", "g.ppm", "g.jp2"):
        paint(pics / name)
    add_litter(pics)
    (pics / "photo.avif").write_bytes(b"x")
    (pics / "notes").write_text("mine")
    os.mkfifo(pics / "pipe.jpg")
    result = predict("--input pics --save npy")
    assert result.returncode == 0, result.stdout + result.stderr
    assert predicted(tmp_path / "predictions") == {"a", "b", "c", "h", "sub/i"}
    lines = result.stdout.splitlines()
    (endings,) = (line for line in lines if "another ending" in line)
    assert all(f"pics/{name}" in endings for name in ("g.gif", "g.ppm", "g.jp2", "photo.avif", "notes"))
    assert "left out, neither a file nor a folder: pics/pipe.jpg" in lines
    assert not [line for line in lines for name in (*LITTER, *LITTER_FOLDERS) if name in line]


def test_a_picture_that_is_called_like_an_output_is_predicted(predict, tmp_path):
    for name in ("chair.jpg", "chair_side.png", "desk.jpg", "desk_depth.png"):
        paint(tmp_path / "pics" / name)
    assert predict("--input pics/desk.jpg --save side --output_dir other").returncode == 0
    shutil.copy(tmp_path / "other" / "desk_side.png", tmp_path / "pics")  # this one is made of desk.jpg
    result = predict("--input pics --save npy")
    assert result.returncode == 0, result.stderr
    assert predicted(tmp_path / "predictions") == {"chair", "chair_side", "desk", "desk_depth"}
    line = "left out, what this program has made of a picture or video beside it: pics/desk_side.png"
    assert line in result.stdout.splitlines()
    assert predict("--input pics/desk_side.png --save npy --output_dir o").returncode == 0
    assert predicted(tmp_path / "o") == {"desk_side"}  # who names it means it


def test_depth_maps_and_the_output_folder_are_named(predict, tmp_path):
    for name in ("x_out/1.jpg", "x_out/1.png", "Test/0_colors.png", "Test/0_depth.png", "out/mine.jpg"):
        paint(tmp_path / "in" / name)
    result = predict("--input in --save npy --output_dir in/out")
    assert result.returncode == 0, result.stderr
    assert "the depth map of a picture beside it: in/Test/0_depth.png, in/x_out/1.png" in result.stdout
    assert "left out, in the output folder: in/out/mine.jpg" in result.stdout


def link_tree(folder):
    """Pictures behind links: to a folder outside, to itself, to its parent, in a circle, to nothing."""
    paint(folder / "pics" / "a.jpg")
    paint(folder / "pics" / "sub" / "b.jpg")
    paint(folder / "elsewhere" / "c.jpg")
    for name, target in (
        ("outside", "../elsewhere"),
        ("sub/up", ".."),
        ("here", "."),
        ("again", "sub"),
        ("x", "y"),
        ("y", "x"),
        ("nowhere", "unmounted"),
        ("gone.jpg", "unmounted/gone.jpg"),
    ):
        (folder / "pics" / name).symlink_to(target)


@pytest.mark.parametrize("given", ["pics", "pics/**", "pics/**/*", "pics/**/*.jpg"])
def test_links_are_followed_once_and_what_cannot_be_is_named(predict, tmp_path, given):
    link_tree(tmp_path)
    result = predict("--save npy --input", given)
    assert predicted(tmp_path / "predictions") == {"a", "sub/b", "outside/c"}
    assert result.returncode == 1 and "1 of 4 failed" in result.stderr and "gone.jpg: no such file" in result.stdout
    for name in ("pics/again", "pics/here", "pics/sub/up"):
        assert name in next(line for line in result.stdout.splitlines() if "searched already" in line)
    for name, why in (("nowhere", "No such file"), ("x", "Too many levels"), ("y", "Too many levels")):
        assert f"pics/{name}: a link that cannot be followed: {why}" in result.stdout


@pytest.mark.parametrize("given", ["pics", "pics/**/*.jpg", "pics/*/*.jpg"])
def test_a_folder_that_may_not_be_read_is_no_success(red_onnx, denied, tmp_path, given):
    run, close = denied
    for name in ("one/a.jpg", "two/b.jpg", "three/deep/c.jpg"):
        paint(tmp_path / "pics" / name)
    close(tmp_path / "pics" / "two")
    result = run("predict.py --save npy --input", given, *onnx_nets(red_onnx), cwd=tmp_path)
    assert result.returncode == 1 and "1 of the folders and links could not be read" in result.stderr
    assert "pics/two: cannot be read: Permission denied" in result.stdout
    deep = set() if given == "pics/*/*.jpg" else {"three/deep/c"}
    assert predicted(tmp_path / "predictions") == {"one/a", *deep}
    close(tmp_path / "pics" / "one")
    result = run("predict.py --input pics/one --save npy --output_dir o", *onnx_nets(red_onnx), cwd=tmp_path)
    assert "pics/one: no picture or video" in one_line(result)


def test_a_pattern_means_what_the_shell_s_means(tmp_path):
    names = ["a.jpg", "b.png", "sub/a.jpg", "sub/deep/a.jpg", "x[1].jpg", "q1.jpg", "q2.jpg", "sub.jpg/a.txt"]
    for name in names:
        paint(tmp_path / name) if not name.endswith("txt") else (tmp_path / name).parent.mkdir()
    patterns = "*.jpg **/*.jpg */*.jpg sub/**/*.jpg q[12].jpg q[!1].jpg ?.jpg **/deep/* sub/*/a.jpg x[[]1].jpg"
    for pattern in (*patterns.split(), "**/sub/**/a.*", "nothing*"):
        expected = sorted(path for path in tmp_path.glob(pattern) if path.is_file())
        assert search(tmp_path, Path(pattern).parts).files == expected, pattern
    assert search(tmp_path, ("*",)).left_out == {folders.FOLDER: [tmp_path / "sub", tmp_path / "sub.jpg"]}


@pytest.fixture
def data(nyu, tmp_path):
    folder = shutil.copytree(nyu, tmp_path / "NYU")
    for place in (folder, folder / "Train", folder / "Train" / "sample_0001_out", folder / "Test"):
        add_litter(place)
    return folder


def test_litter_in_a_nyu_folder_is_nothing_wrong(data, forked, tmp_path):
    result = forked("tools/check_nyu.py NYU", cwd=tmp_path)
    assert result.returncode == 0 and "nothing is wrong" in result.stdout, result.stdout


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("Train/sample_0001_out/9.gif", "Train"),
        ("Train/sample_0001_out/more/9.jpg", "Train"),
        ("Train/9.jpg", "Train"),
        ("Test/9_colors.jpg", "Test"),
        ("Test/more/9_colors.png", "Test"),
    ],
)
def test_what_is_left_out_of_a_nyu_folder_is_named(data, forked, tmp_path, name, split):
    paint(data / name)
    named = f"NYU/{name.replace('more/9.jpg', 'more').replace('more/9_colors.png', 'more')}"
    result = forked("tools/check_nyu.py NYU", cwd=tmp_path)
    assert result.returncode == 1 and "1 problems" in result.stdout and f"wrong: {named}: left out, " in result.stdout
    command = ["tools/pack_nyu.py", "NYU", "out"] if split == "Train" else ["preprocess.py", "--dataset_path", "NYU"]
    result = forked(*command, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert [line for line in result.stdout.splitlines() if line.startswith("left out, ") and line.endswith(named)]


def test_other_names_of_jpeg_train_as_well(nyu, data, tmp_path):
    from src.data import listing

    scene = data / "Train" / "sample_0001_out"
    (scene / "1.jpg").rename(scene / "1.jfif")
    (scene / "2.jpg").rename(scene / "2.JPE")
    (data / "Test" / "00000_colors.png").rename(data / "Test" / "00000_colors.PNG")
    assert [pair.name for pair in listing.list_train(data)] == [pair.name for pair in listing.list_train(nyu)]
    assert [pair.name for pair in listing.list_test(data)] == [pair.name for pair in listing.list_test(nyu)]


def test_a_scene_that_may_not_be_read_stops_training_and_scoring(data, denied, tmp_path):
    run, close = denied
    close(data / "Train" / "sample_0002_out")
    sentence = "NYU/Train/sample_0002_out: cannot be read: Permission denied"
    result = run("tools/check_nyu.py NYU", cwd=tmp_path)
    assert result.returncode == 1 and f"wrong: {sentence}" in result.stdout, result.stdout + result.stderr
    for line in ("tools/pack_nyu.py NYU out", "train.py --data_url NYU --batch_size 2"):
        assert sentence in one_line(run(line, cwd=tmp_path))
    close(data / "Test")
    result = run("preprocess.py --dataset_path NYU", cwd=tmp_path)
    assert "NYU/Test: cannot be read: Permission denied" in one_line(result)


def test_a_scene_behind_a_link_that_leads_nowhere_is_named(data, forked, tmp_path):
    (data / "Train" / "kitchen_0001_out").symlink_to("/unmounted/kitchen_0001_out")
    sentence = "NYU/Train/kitchen_0001_out: a link that cannot be followed: No such file or directory"
    assert sentence in one_line(forked("tools/pack_nyu.py NYU out", cwd=tmp_path))
    result = forked("tools/check_nyu.py NYU", cwd=tmp_path)
    assert result.returncode == 1 and f"wrong: {sentence}" in result.stdout


TREE_NAMES = ["a.jpg", "b.JPG", "c.gif", "d", "e_out", ".f.jpg", "@eaDir", "Thumbs.db", "a_side.png", "g\n[1].png"]
TREE_KINDS = ["file", "file", "folder", "folder", "link", "link", "nowhere", "pipe", "closed"]
tree_entries = st.lists(
    st.tuples(
        st.sampled_from(TREE_KINDS), st.integers(0, 9), st.sampled_from([*TREE_NAMES, "h\udcff.bmp"]), st.integers(0, 9)
    ),
    max_size=14,
)


def plant(root, entries):
    """A folder tree of (kind, where, name, where a link leads). The folders that may not be read."""
    places, everything, closed = [root], [root], []
    for kind, parent, name, target in entries:
        path = places[parent % len(places)] / name
        if os.path.lexists(path):
            continue
        if kind == "file":
            path.write_bytes(PICTURES[0])
        elif kind in ("folder", "closed"):
            path.mkdir()
            places.append(path)
            closed += [path] * (kind == "closed")
        elif kind == "pipe":
            os.mkfifo(path)
        else:
            leads = everything[target % len(everything)]
            path.symlink_to("nowhere" if kind == "nowhere" else os.path.relpath(leads, path.parent))
        everything.append(path)
    return closed


@bounded
@given(entries=tree_entries)
def test_folder_trees(forked, tmp_path_factory, entries):
    """Whatever links to what, and whoever may look: it ends, and each thing is taken, named, or litter."""
    folder = fresh(tmp_path_factory.getbasetemp() / "trees")
    (folder / "tree").mkdir()
    closed = plant(folder / "tree", entries)
    answer = forked("predict tree out", cwd=folder)
    judge(answer, ["tree"])
    assert {name.split("/")[0] for name in files(folder)} <= {"tree", "out"}
    before = os.getcwd()
    for path in closed:
        path.chmod(0)
    os.chdir(folder)
    folder.chmod(0o755)
    if os.geteuid() == 0:
        os.seteuid(65534)
    try:
        found = folders.search("tree", endings=(".jpg", ".png", ".bmp"))
        named = {str(path) for paths in found.left_out.values() for path in paths}
        for place, inner, names in os.walk("tree"):
            inner[:] = [name for name in inner if not folders.is_litter(name)]
            for path in (os.path.join(place, name) for name in names if not folders.is_litter(name)):
                assert path in named | set(map(str, found.files)) or any(text.startswith(path) for text in found.unread)
            for path in (os.path.join(place, name) for name in inner):
                if not os.access(path, os.R_OK | os.X_OK):
                    assert path in named or any(text.startswith(f"{path}: ") for text in found.unread)
        assert len({os.path.realpath(path.parent) + "/" + path.name for path in found.files}) == len(found.files)
    finally:
        os.seteuid(os.getuid())
        os.chdir(before)
        for path in reversed(closed):
            path.chmod(0o755)
