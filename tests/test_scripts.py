"""The shell scripts under odd shells, paths and clones."""

import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT, shell
from tests.test_commands import one_line
from tests.test_distributed import fake
from tests.test_environment import CLOSED, path_without

pytestmark = pytest.mark.long


def test_scripts_do_not_mind_cdpath_or_a_relative_python(run, tmp_path):
    for folder in ("scripts", "bin"):
        (tmp_path / folder).mkdir()
    (tmp_path / "bin" / "py").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (tmp_path / "bin" / "py").chmod(0o755)
    result = run("scripts/run_eval.sh absent", cwd=tmp_path, CDPATH=str(ROOT), PYTHON="bin/py")
    assert result.returncode == 2 and "absent: no such folder" in result.stdout, result.stdout + result.stderr


def test_the_demo_says_what_it_leaves_out_without_a_compiler(tmp_path):
    text = (ROOT / "scripts" / "run_demo.sh").read_text()
    check = text[text.index("missing=\n") : text.index("demo=$ROOT/demo")]
    for present in (["c++", "make"], ["c++", "ninja"], ["c++"], ["make"], []):
        folder = tmp_path / "-".join(["bin", *present])
        folder.mkdir()
        for name in present:
            (folder / name).symlink_to("/bin/true")
        output = subprocess.check_output(["/bin/bash", "-c", check], env={"PATH": str(folder)}, text=True)
        assert ("will be left out" in output) == (len(present) < 2), present


@pytest.mark.parametrize("closed", CLOSED)
def test_a_script_without_standard_streams_writes_its_log(tmp_path, closed):
    result = shell(f"bash $ROOT/scripts/run_eval.sh absent {closed}", tmp_path)
    assert result.returncode == 2
    assert "absent: no such folder" in (tmp_path / "eval.log").read_text().splitlines()[-1]


def test_the_scripts_run_under_sh(tmp_path):
    for script in sorted((ROOT / "scripts").glob("run_*_*.sh")):
        arguments = "--file_format none" if "export" in script.name else "1 2 3 4 5" if "demo" in script.name else ""
        if "benchmarks" not in script.name and "tests" not in script.name:
            line = shell(f"sh {script} {arguments}", tmp_path).stderr.splitlines()[0]
            assert line.startswith("usage: "), (script, line)
    result = shell("cd $ROOT/scripts && sh run_eval.sh /absent 2>&1; rm -f eval.log", tmp_path)
    assert "absent: no such folder" in result.stdout
    result = shell("bash --posix $ROOT/scripts/run_eval.sh absent", tmp_path, PYTHONSAFEPATH="1")
    assert result.returncode == 2 and "absent: no such folder" in result.stdout  # sh is bash in places
    unset = dict.fromkeys(("MS_LITE_HOME", "LITE_HOME"))
    result = shell("sh $ROOT/ascend310_infer/build.sh", tmp_path, DEVICE_TARGET="Ascend", **unset)
    assert "set MS_LITE_HOME" in one_line(result)


def test_a_clone_with_autocrlf_runs(nyu, tmp_path):
    repo, clone = tmp_path / "repo", tmp_path / "clone"
    for pattern in (".gitattributes", "scripts/*.sh", "src/**/*.py", "tools/*.py", "weights/FineNet.ckpt", "eval.py"):
        for path in ROOT.glob(pattern):
            (repo / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, repo / path.relative_to(ROOT))
    (repo / "text.png").write_bytes(b"no NUL byte\n")
    commit = "git -c user.name=a -c user.email=a@b commit -qm all"
    line = f"cd repo && git init -q && git add -A && {commit} && git clone -q -c core.autocrlf=true . ../clone"
    result = shell(line, tmp_path)
    assert result.returncode == 0, result.stderr
    result = shell(f"bash clone/scripts/run_eval.sh {nyu}", tmp_path, DEVICE_TARGET="CPU")
    assert result.returncode == 2 and "FinalCoarseNet.ckpt: no such checkpoint" in result.stdout, result.stderr
    for name in ("weights/FineNet.ckpt", "text.png"):
        assert (clone / name).read_bytes() == (repo / name).read_bytes()


def test_a_build_that_cannot_be_says_so_before_it_fetches_anything(tmp_path):
    programs = path_without(tmp_path / "bin", "make", "gmake", "ninja")
    unset = dict.fromkeys(("MS_LITE_HOME", "LITE_HOME"))
    result = shell("bash $ROOT/ascend310_infer/build.sh", tmp_path, PATH=str(programs), BUILD_DIR="build", **unset)
    assert "make is missing (on Debian: apt install make)" in one_line(result)
    assert not (tmp_path / "build").exists()
    result = shell("bash $ROOT/ascend310_infer/build.sh", tmp_path, BUILD_DIR="/proc/build", MS_LITE_HOME=".")
    assert "/proc/build: cannot write there: set BUILD_DIR" in one_line(result)


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
