"""What a machine does to the commands: streams that are closed, what other programs export, folders that refuse."""

import itertools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib import font_manager

from src.scoring import visual
from tests.conftest import NEEDS_CPP, ROOT, SOURCE
from tests.test_commands import one_line
from tests.test_distributed import fake
from tests.test_hostile import onnx_nets

BIN = Path(sys.executable).parent
CLOSED = ("0<&-", "1>&-", "2>&-")


def shell(text, cwd, **environment):
    """What bash does with a line; the variables that are None are unset."""
    merged = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "ROOT": str(ROOT), **environment}
    return subprocess.run(
        ["/bin/bash", "-c", text],
        cwd=cwd,
        text=True,
        capture_output=True,
        check=False,
        timeout=300,
        env={name: value for name, value in merged.items() if value is not None},
    )


def path_without(folder, *names):
    """A folder for PATH with all programs of this machine but some."""
    folder.mkdir()
    for program in itertools.chain(BIN.iterdir(), *(Path(name).iterdir() for name in ("/usr/bin", "/bin"))):
        if program.name not in names and not (folder / program.name).is_symlink():
            (folder / program.name).symlink_to(program)
    return folder


@pytest.mark.parametrize("closed", [*CLOSED, " ".join(CLOSED)])
def test_a_prediction_without_standard_streams_is_whole(nyu, red_onnx, tmp_path, closed):
    nets = " ".join(map(str, onnx_nets(red_onnx)))
    result = shell(f"python $ROOT/predict.py --input {nyu}/Test --save color npy {nets} {closed}", tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    names = {path.name for path in (tmp_path / "predictions").iterdir()}
    assert names == {f"{n:05d}_colors{ending}" for n in range(4) for ending in ("_depth.png", "_depth.npy")}
    np.load(tmp_path / "predictions" / "00000_colors_depth.npy")  # nothing else has been written into it
    result = shell(f"python $ROOT/predict.py --input absent {nets} {closed}", tmp_path)
    assert result.returncode == 2 and "Traceback" not in result.stderr


@pytest.mark.parametrize("closed", CLOSED)
def test_a_script_without_standard_streams_writes_its_log(nyu, tmp_path, closed):
    result = shell(f"bash $ROOT/scripts/run_eval.sh {nyu} absent.ckpt {closed}", tmp_path, DEVICE_TARGET="CPU")
    assert result.returncode == 2
    assert "absent.ckpt: no such checkpoint" in (tmp_path / "eval.log").read_text().splitlines()[-1]


def test_neither_a_notebook_nor_a_matplotlibrc_changes_a_picture(nyu, run, tmp_path):
    def check(name, rc="", **environment):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "matplotlibrc").write_text(rc)
        result = run("tools/check_nyu.py", nyu, "--output_dir", "check", cwd=folder, **environment)
        assert (result.returncode, result.stderr) == (0, ""), result.stderr
        return (folder / "check" / "check.png").read_bytes()

    plain = check("plain")
    assert check("notebook", MPLBACKEND="module://a_module_that_is_not_here") == plain
    assert check("latex", "text.usetex: True\nfont.size: 30\naxes.facecolor: red\nfigure.dpi: many\n") == plain


def test_what_is_exported_for_opencv_or_python_changes_nothing(nyu, red_onnx, tmp_path):
    nets = " ".join(map(str, onnx_nets(red_onnx)))
    line = f"python $ROOT/predict.py --input {nyu}/Train/sample_0001_out/1.jpg --save npy --output_dir out {nets}"
    result = shell(line, tmp_path, OPENCV_IO_MAX_IMAGE_PIXELS="10", OPENCV_IO_MAX_IMAGE_WIDTH="none")
    assert result.returncode == 0 and "1 predicted" in result.stdout, result.stdout + result.stderr
    for tool in sorted((ROOT / "tools").glob("*.py")):
        if "__main__" in tool.read_text():
            result = shell(f"python {tool} --help", tmp_path, OPENCV_IO_MAX_IMAGE_WIDTH="none")
            assert result.returncode == 0, result.stdout + result.stderr
    result = shell(
        f"python $ROOT/tools/check_nyu.py {nyu} --output_dir check", tmp_path, OPENCV_IO_MAX_IMAGE_PIXELS="10"
    )
    assert result.returncode == 0, result.stdout + result.stderr
    result = shell(f"bash $ROOT/scripts/run_eval.sh {nyu}/absent", tmp_path, PYTHONSAFEPATH="1")
    assert result.returncode == 2 and "absent: no such folder" in result.stdout + result.stderr


def test_ids_of_any_script_are_drawn_or_escaped(nyu, run, tmp_path):
    """No warning, and so no box: matplotlib warns of each letter that it draws as one."""
    data = shutil.copytree(nyu, tmp_path / "NYU")
    (data / "Train" / "sample_0001_out").rename(data / "Train" / "厨房 кухня مطبخ_out")
    for part in ("colors", "depth"):
        (data / "Test" / f"00000_{part}.png").rename(data / "Test" / f"台所🛋_{part}.png")
    result = run("tools/check_nyu.py", data, "--output_dir", "check", cwd=tmp_path, PYTHONWARNINGS="always")
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


FSYNC = """
import os, runpy, sys
flush, answer, of_folders = os.fsync, int(sys.argv[1]), sys.argv[2] == "folders"
def fsync(descriptor):
    if os.path.isdir(f"/proc/self/fd/{descriptor}") == of_folders:
        raise OSError(answer, os.strerror(answer))
    flush(descriptor)
os.fsync = fsync
sys.argv = sys.argv[3:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    ("answer", "of", "code"),
    [
        ("EINVAL", "folders", 0),
        ("ENOTSUP", "folders", 0),
        ("EACCES", "folders", 0),
        ("EIO", "folders", 1),
        ("EIO", "files", 1),
        ("EINVAL", "files", 1),
    ],
)
def test_a_folder_that_cannot_be_flushed_is_no_failure(nyu, red_onnx, tmp_path, answer, of, code):
    import errno

    command = [
        sys.executable,
        "-c",
        FSYNC,
        getattr(errno, answer),
        of,
        ROOT / "predict.py",
        "--input",
        nyu / "Test" / "00000_colors.png",
        "--save",
        "npy",
        *onnx_nets(red_onnx),
    ]
    result = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == code and ("1 predicted" in result.stdout) == (code == 0), result.stdout + result.stderr


def test_a_current_folder_that_is_gone_is_said(nyu, tmp_path):
    result = shell(f"mkdir gone && cd gone && rmdir ../gone && python $ROOT/eval.py --test_data {nyu}", tmp_path)
    assert "the current folder is gone" in one_line(result)


def test_the_scripts_run_under_sh(nyu, tmp_path):
    for script in sorted((ROOT / "scripts").glob("run_*_*.sh")):
        arguments = "--file_format none" if "export" in script.name else "1 2 3 4 5" if "demo" in script.name else ""
        if "benchmarks" not in script.name and "tests" not in script.name:
            line = shell(f"sh {script} {arguments}", tmp_path).stderr.splitlines()[0]
            assert line.startswith("usage: "), (script, line)
    result = shell(f"cd $ROOT/scripts && sh run_eval.sh {nyu}/absent 2>&1; rm -f eval.log", tmp_path)
    assert "absent: no such folder" in result.stdout
    result = shell("bash --posix $ROOT/scripts/run_eval.sh absent", tmp_path)  # what sh is where it is bash
    assert result.returncode == 2 and "absent: no such folder" in result.stdout
    result = shell(
        "sh $ROOT/ascend310_infer/build.sh", tmp_path, MS_LITE_HOME=None, LITE_HOME=None, DEVICE_TARGET="Ascend"
    )
    assert "set MS_LITE_HOME" in one_line(result)


def test_a_clone_with_autocrlf_runs(nyu, tmp_path):
    copied = [
        ".gitattributes",
        *(f"scripts/{path.name}" for path in (ROOT / "scripts").glob("*.sh")),
        *(str(path.relative_to(ROOT)) for name in ("src", "tools") for path in (ROOT / name).rglob("*.py")),
        "weights/FineNet.ckpt",
        "docs/curves.png",
        "eval.py",
    ]
    for name in filter(lambda name: (ROOT / name).is_file(), copied):
        (tmp_path / "repo" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "repo" / name)
    (tmp_path / "repo" / "docs").mkdir(exist_ok=True)
    (tmp_path / "repo" / "docs" / "text.png").write_bytes(b"no NUL byte\n")
    result = shell(
        "cd repo && git init -q && git add -A && git -c user.name=a -c user.email=a@b commit -qm all && "
        "cd .. && git clone -q -c core.autocrlf=true repo clone",
        tmp_path,
    )
    assert result.returncode == 0, result.stderr
    result = shell(f"bash clone/scripts/run_eval.sh {nyu}", tmp_path, DEVICE_TARGET="CPU")
    assert result.returncode == 2 and "FinalCoarseNet.ckpt: no such checkpoint" in result.stdout, result.stderr
    for name in ("weights/FineNet.ckpt", "docs/text.png"):
        assert (tmp_path / "clone" / name).read_bytes() == (tmp_path / "repo" / name).read_bytes()


def test_a_build_without_make_says_so_before_it_fetches_anything(tmp_path):
    programs = path_without(tmp_path / "bin", "make", "gmake", "ninja")
    result = shell(
        "bash $ROOT/ascend310_infer/build.sh",
        tmp_path,
        PATH=str(programs),
        MS_LITE_HOME=None,
        LITE_HOME=None,
        BUILD_DIR="build",
    )
    assert "make is missing (on Debian: apt install make)" in one_line(result)
    assert not (tmp_path / "build").exists()


def test_a_build_folder_that_refuses_is_named(tmp_path):
    result = shell("bash $ROOT/ascend310_infer/build.sh", tmp_path, BUILD_DIR="/proc/build", MS_LITE_HOME=".")
    assert "/proc/build: cannot write there: set BUILD_DIR" in one_line(result)


@NEEDS_CPP
@pytest.mark.long
def test_the_units_hold_with_the_filesystem_library_of_gcc_7(tmp_path):
    cmake = shutil.which("cmake") or next(SOURCE.glob("build/cmake-wheel/cmake/data/bin/cmake"), None)
    if cmake is None:
        pytest.skip("no cmake before build.sh has fetched it")
    result = shell(
        f"{cmake} -S {SOURCE} -B build -DBUILD_TESTS=ON -DEXPERIMENTAL_FILESYSTEM=ON "
        f"-DCMAKE_BUILD_TYPE=Debug && {cmake} --build build && build/utils_test",
        tmp_path,
    )
    passed, of = re.search(r"(\d+) of (\d+) units passed", result.stdout + result.stderr).groups()
    assert result.returncode == 0 and passed == of
    assert b"experimental10filesystem" in (tmp_path / "build" / "utils_test").read_bytes()


def test_scripts_take_python3_where_there_is_no_python(tmp_path):
    programs = path_without(tmp_path / "bin", "python")
    (programs / "python3").unlink()
    (programs / "python3").symlink_to(shutil.which("true"))
    result = shell("bash $ROOT/scripts/run_eval.sh NYU", tmp_path, PATH=str(programs), PYTHON=None, VIRTUAL_ENV="/none")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("script", ["run_standalone_train_ascend.sh", "run_eval.sh"])
def test_a_rank_table_that_was_exported_is_not_handed_on(tmp_path, script):
    fake(tmp_path, "python")
    result = shell(f"bash $ROOT/scripts/{script} NYU 0", tmp_path, PYTHON="./python", RANK_TABLE_FILE="/a/table.json")
    assert result.returncode == 0 and "RANK_TABLE_FILE= " in (tmp_path / "calls").read_text()


# Any of these at once

HOSTILE = [
    {"HOME": None},
    {"HOME": "/proc"},
    {"XDG_CACHE_HOME": "/proc/x", "XDG_CONFIG_HOME": "/proc/x"},
    {"LANG": "C", "LC_ALL": "C"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"LC_ALL": "xx_YY.no-such"},
    {"TMPDIR": "/nonexistent"},
    {"TERM": None},
    {"TZ": "No/Where"},
    {"COLUMNS": "1"},
    {"http_proxy": "http://127.0.0.1:9", "ALL_PROXY": "socks5://127.0.0.1:9"},
    {"MPLBACKEND": "nonsense"},
    {"MATPLOTLIBRC": "/proc/version", "MPLCONFIGDIR": "/proc/x"},
    {"PYTHONDONTWRITEBYTECODE": "1"},
    {"PYTHONWARNINGS": "always"},
    {"OMP_NUM_THREADS": "0"},
    {"CDPATH": "/"},
    {"IFS": "/"},
    {"PYTHONIOENCODING": "ascii"},
    {"OPENCV_IO_MAX_IMAGE_PIXELS": "10"},
    {"OPENCV_IO_MAX_IMAGE_WIDTH": "none"},
]
HELPS = ("train.py", "eval.py", "export.py", "predict.py", "app.py", "postprocess.py", "tools/make_sample_nyu.py")
COMMANDS = ["predict", "check", *(f"{name} --help" for name in HELPS)]


@pytest.mark.long
@settings(
    max_examples=max(12, int(os.environ.get("DEPTHNET_FUZZ", "60")) // 4),
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    variables=st.lists(st.sampled_from(HOSTILE), max_size=4),
    closed=st.sets(st.sampled_from(CLOSED)),
    command=st.sampled_from(COMMANDS),
)
def test_environments(nyu, red_onnx, tmp_path_factory, variables, closed, command):
    folder = tmp_path_factory.mktemp("environment")
    nets = " ".join(map(str, onnx_nets(red_onnx)))
    line = {
        "predict": f"predict.py --input {nyu}/Test --save npy side --output_dir out {nets}",
        "check": f"tools/check_nyu.py {nyu} --output_dir out",
    }.get(command, command)
    merged = dict(item for one in variables for item in one.items())
    result = shell(f"python $ROOT/{line} {' '.join(sorted(closed))}", folder, **merged)
    assert result.returncode == 0 and "Traceback" not in result.stdout + result.stderr, result.stdout + result.stderr
    made = {path.name for path in folder.glob("out/*")}
    assert len(made) == {"predict": 8, "check": 2}.get(command, 0)
    shutil.rmtree(folder)
