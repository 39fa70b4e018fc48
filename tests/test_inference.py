"""The C++ program on the real MindSpore Lite, under AddressSanitizer and UndefinedBehaviorSanitizer.

LeakSanitizer is on for the units and off for the whole program: what it finds there are MindSpore Lite's own
allocations at load time, from modules that are unloaded by then and so cannot be named in a suppression.
"""

import os
import re
import shutil
import subprocess

import mindspore as ms
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mindspore import nn, ops

from src.net import PaperCoarseNet
from src.nets import checkpoint, exporting
from src.nets.nets import Nets
from tests.conftest import NEEDS_CPP, SOURCE, shell
from tests.fuzz import files, fresh, mutations, slow
from tests.test_commands import FINAL_LINE, one_line
from tests.tiny import TinyCoarse

pytestmark = NEEDS_CPP


@pytest.fixture(scope="module")
def sanitized(lite, tmp_path_factory):
    """The build folder of the sanitized program and its units."""
    build = tmp_path_factory.mktemp("build")
    options = "-DSANITIZE=ON -DBUILD_TESTS=ON -DCMAKE_BUILD_TYPE=Debug"
    line = f"bash $ROOT/ascend310_infer/build.sh {options}"
    result = shell(line, build, BUILD_DIR=str(build), MS_LITE_HOME=lite)
    assert result.returncode == 0, result.stdout + result.stderr
    return build


@pytest.fixture(scope="module")
def infer(sanitized):
    def run_program(coarse, fine, data, cwd, *arguments):
        models = ["--coarse_mindir", coarse, "--fine_mindir", fine]
        command = [sanitized / "depthnet_infer", *models, "--dataset_path", data, "--device_type", "CPU", *arguments]
        return subprocess.run(
            list(map(str, command)),
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
            env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0"},
        )

    return run_program


@pytest.fixture(scope="module")
def models(exported):
    """CoarseNet's and FineNet's MindIR of the small training."""
    return [exported / "MindIR" / f"Final{name}Net.mindir" for name in ("Coarse", "Fine")]


class TinyFine(TinyCoarse):
    def __init__(self):
        super().__init__()
        self.blend = nn.Conv2d(2, 1, 1)

    def construct(self, rgb, coarse_log_depth):
        return self.blend(ops.concat((self.conv(rgb), coarse_log_depth), 1))


def write_mindir(net, path, batch=1):
    inputs = [ms.Tensor(np.zeros(shape, np.float32)) for shape in ((batch, 3, 228, 304), (batch, 1, 55, 74))]
    ms.export(net, *inputs[: 1 + isinstance(net, TinyFine)], file_name=str(path), file_format="MINDIR")
    path.chmod(0o644)
    path.write_bytes(exporting.to_version_1(path.read_bytes()))
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    nets = TinyCoarse(), TinyFine()
    return nets, [write_mindir(net, folder / f"{type(net).__name__}.mindir") for net in nets]


def write_images(folder, names):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    images = {name: rng.random((1, 3, 228, 304), np.float32) for name in names}
    for name, image in images.items():
        image.tofile(folder / f"{name}.bin")
    return images


def test_the_units(sanitized):
    result = subprocess.run([sanitized / "utils_test"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    passed, of = map(int, re.search(r"(\d+) of (\d+) units passed", result.stdout).groups())
    assert passed == of == (SOURCE / "test" / "utils_test.cc").read_text().count("\nTEST(")


def test_run_infer_310_gives_eval_s_accuracy_and_mindspore_s_numbers(models, trained, nyu, run, forked, tmp_path):
    for name, of_before in (("result_Files", "before"), ("result_Files.1", "long before")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "99999_0.bin").write_text(of_before)
    (tmp_path / "acc.log").write_text("before")
    relative = [os.path.relpath(path, tmp_path) for path in models]
    result = run("scripts/run_infer_310.sh", *relative, nyu / "Test", 0, cwd=tmp_path, DEVICE_TARGET="CPU")
    assert result.returncode == 0, result.stdout + result.stderr
    for name, of_before in (("result_Files.1", "long before"), ("result_Files.2", "before")):  # moved aside, and whole
        assert (tmp_path / name / "99999_0.bin").read_text() == of_before
    assert (tmp_path / "acc.log.1").read_text() == "before" and len(list((tmp_path / "result_Files").iterdir())) == 4
    assert re.search(r"^NN inference cost average time: [\d.]+ ms of infer_count 3$", result.stdout, re.M)
    printed = [float(value) for value in FINAL_LINE.findall((tmp_path / "acc.log").read_text())[0][1:]]
    evaluated = forked(f"eval.py --test_data {nyu}", cwd=trained).stdout
    expected = {line[0]: [float(value) for value in line[1:]] for line in FINAL_LINE.findall(evaluated)}
    assert printed == pytest.approx(expected["FineNet"], abs=1e-4)

    checkpoints = trained / "Model" / "Ckpt"
    predict = Nets(checkpoints / "FinalCoarseNet.ckpt", checkpoints / "FinalFineNet.ckpt")
    for number in range(4):
        rgb = np.fromfile(tmp_path / f"preprocess_Result/img_data/{number:05d}.bin", np.float32)
        log_depth = np.fromfile(tmp_path / f"result_Files/{number:05d}_0.bin", np.float32)
        expected = predict(rgb.reshape(1, 3, 228, 304))["FineNet"]
        np.testing.assert_allclose(log_depth.reshape(1, 1, 55, 74), expected, atol=1e-4)


def test_the_paper_net_goes_the_same_way(infer, models, trained, tmp_path):
    ms.set_seed(1)
    net = PaperCoarseNet()
    path = exporting.export(net, "MINDIR", tmp_path)
    images = write_images(tmp_path / "images", ["a", "b"])
    result = infer(path, models[1], tmp_path / "images", tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    fine = checkpoint.load_fine(trained / "Model" / "Ckpt" / "FinalFineNet.ckpt")
    for name, rgb in images.items():
        got = np.fromfile(tmp_path / "result_Files" / f"{name}_0.bin", np.float32).reshape(1, 1, 55, 74)
        expected = fine(ms.Tensor(rgb), net(ms.Tensor(rgb))).asnumpy()
        np.testing.assert_allclose(got, expected, atol=1e-4)


def test_more_files_than_may_be_open_and_any_name(infer, tiny, tmp_path):
    nets, paths = tiny
    images = write_images(tmp_path / "in put", ["with space", "ünïcode-深度"])
    for number in range(1100):  # more than the 1,024 files that a process may have open
        os.link(tmp_path / "in put" / "with space.bin", tmp_path / "in put" / f"{number:05d}.bin")
    result = infer(*paths, tmp_path / "in put", tmp_path)
    assert result.returncode == 0, result.stderr
    assert "1102 of 1102 images" in result.stdout and "of infer_count 1101" in result.stdout
    assert len(list((tmp_path / "result_Files").iterdir())) == 1102
    for name, rgb in images.items():
        got = np.fromfile(tmp_path / "result_Files" / f"{name}_0.bin", np.float32).reshape(1, 1, 55, 74)
        expected = nets[1](ms.Tensor(rgb), nets[0](ms.Tensor(rgb))).asnumpy()
        np.testing.assert_allclose(got, expected, atol=1e-5)
    report = (tmp_path / "time_Result" / "test_perform_static.txt").read_text()
    assert report in result.stdout and "95th percentile" in report and "images/s" in report


def test_one_bad_file_is_named_and_the_others_are_done(infer, tiny, tmp_path):
    images = write_images(tmp_path / "images", ["a", "b", "c"])
    (tmp_path / "images" / "b.bin").write_bytes(b"x")
    result = infer(*tiny[1], tmp_path / "images", tmp_path)
    assert result.returncode == 1
    assert "b.bin: 1 bytes, expected 831744" in result.stderr
    assert {path.name for path in (tmp_path / "result_Files").iterdir()} == {"a_0.bin", "c_0.bin"}
    assert len(images) == 3


def test_a_prediction_that_is_not_finite_is_refused(infer, tiny, tmp_path):
    net = TinyCoarse()
    net.conv.bias.set_data(ms.Tensor(np.array([np.nan], np.float32)))
    broken = write_mindir(net, tmp_path / "nan.mindir")
    write_images(tmp_path / "images", ["a"])
    result = infer(broken, tiny[1][1], tmp_path / "images", tmp_path)
    assert result.returncode == 1 and "a.bin: the prediction is not finite" in result.stderr
    assert list((tmp_path / "result_Files").iterdir()) == []


def test_bad_models_and_folders_get_one_error(infer, tiny, models, tmp_path):
    write_images(tmp_path / "images", ["a"])
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "text.mindir").write_text("hello\n" * 100)
    content = models[0].read_bytes()
    (tmp_path / "half.mindir").write_bytes(content[: len(content) // 2])
    three = write_mindir(TinyCoarse(), tmp_path / "three.mindir", batch=3)
    coarse, fine = tiny[1]
    images = tmp_path / "images"
    for arguments, message in [
        ((fine, coarse, images), "2 inputs, expected 1: is it another net's MindIR?"),
        ((coarse, coarse, images), "1 inputs, expected 2"),
        ((three, fine, images), "input rgb is 3x3x228x304, expected 1x3x228x304"),
        ((tmp_path / "text.mindir", fine, images), "text.mindir: cannot be loaded"),
        ((tmp_path / "half.mindir", fine, images), "half.mindir: cannot be loaded"),
        ((tmp_path / "absent.mindir", fine, images), "absent.mindir: no such file"),
        ((coarse, fine, tmp_path / "empty"), "empty: no .bin file"),
        ((coarse, fine, tmp_path / "absent"), "absent: No such file or directory"),
        ((coarse, fine, images, tmp_path, "--result_path", tmp_path / "file" / "x"), "cannot be made"),
        ((coarse, fine, images, tmp_path, "--precision", "int8"), "expected fp32 or fp16"),
        ((coarse, fine, images, tmp_path, "--device_type", "GPU"), "expected Ascend or CPU"),
        (("", fine, images), "are required"),
    ]:
        where = arguments if len(arguments) > 3 else (*arguments, tmp_path)
        result = infer(*where)
        assert result.returncode == 2, (message, result.stdout, result.stderr)
        errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and message in errors[0], (message, result.stderr)
        assert "AddressSanitizer" not in result.stderr and "runtime error" not in result.stderr


def test_run_infer_310_stops_at_the_first_failure(models, tiny, nyu, run, tmp_path):
    coarse, fine = models
    result = run(f"scripts/run_infer_310.sh {fine} {coarse} {nyu}/Test 0", cwd=tmp_path, DEVICE_TARGET="CPU")
    assert result.returncode == 2
    assert "2 inputs, expected 1" in result.stderr and "infer failed with exit code 2: infer.log" in result.stderr
    assert not (tmp_path / "acc.log").exists()
    line = one_line(run(f"scripts/run_infer_310.sh absent.mindir {fine} {nyu}/Test 0", cwd=tmp_path))
    assert "absent.mindir: no such file" in line
    result = run(f"scripts/run_infer_310.sh {coarse} {fine}", cwd=tmp_path)
    assert result.returncode == 2 and "MINDIR1_PATH MINDIR2_PATH DATA_PATH DEVICE_ID" in result.stderr


def test_build_names_what_is_missing(tmp_path):
    def build(**environment):
        command, variables = ["/bin/bash", SOURCE / "build.sh"], {"BUILD_DIR": str(tmp_path), **environment}
        result = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
        return result.returncode, result.stderr.strip()

    (tmp_path / "bin").mkdir()
    for tool in ("dirname", "make", "mkdir", "rm"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    assert build(PATH=str(tmp_path / "bin"), CXX="c++")[1].startswith("build.sh: error: a C++17 compiler is missing")
    message = "build.sh: error: cmake is missing, and cannot be fetched (on Debian: apt install cmake)"
    assert build(PATH=str(tmp_path / "bin"), CXX=shutil.which("c++"), PYTHON="absent") == (2, message)
    code, message = build(PATH=os.environ["PATH"], MS_LITE_HOME=str(tmp_path / "absent"))
    assert code == 2 and "absent: no such folder" in message


def test_what_could_not_be_written_is_not_counted_and_unknown_options_are_named(infer, tiny, tmp_path):
    _, (coarse, fine) = tiny
    write_images(tmp_path / "images", ["a", "b"])
    (tmp_path / "result_Files" / "a_0.bin").mkdir(parents=True)  # in the way of a result
    (tmp_path / "result_Files" / "a_0.bin" / "mine").touch()
    (tmp_path / "result_Files" / ".write-test").write_text("mine")
    result = infer(coarse, fine, tmp_path / "images", tmp_path)
    assert result.returncode == 1 and "1 of 2 images" in result.stdout and "a_0.bin" in result.stderr
    assert (tmp_path / "result_Files" / ".write-test").read_text() == "mine"
    for arguments, text in (
        (["--treads", "2"], "unknown option"),
        (["--threads"], "expected a value"),
        (["--threads", "two"], "--threads two: expected a whole number"),
    ):
        result = infer(coarse, fine, tmp_path / "images", tmp_path, *arguments)
        assert result.returncode == 2 and text in result.stderr, result.stderr


@pytest.mark.long
def test_the_units_hold_with_the_filesystem_library_of_gcc_7(tmp_path):
    cmake = shutil.which("cmake") or next(SOURCE.glob("build/cmake-wheel/cmake/data/bin/cmake"), None)
    if cmake is None:
        pytest.skip("no cmake, and build.sh has fetched none yet")
    options = "-DBUILD_TESTS=ON -DEXPERIMENTAL_FILESYSTEM=ON -DCMAKE_BUILD_TYPE=Debug"
    result = shell(f"{cmake} -S {SOURCE} -B b {options} && {cmake} --build b && b/utils_test", tmp_path)
    passed, of = re.search(r"(\d+) of (\d+) units passed", result.stdout + result.stderr).groups()
    assert result.returncode == 0 and passed == of
    assert b"experimental10filesystem" in (tmp_path / "b" / "utils_test").read_bytes()


def test_the_c_program(infer, tiny, tmp_path):
    """Damaged .bin files, under AddressSanitizer and UndefinedBehaviorSanitizer."""
    _, (coarse, fine) = tiny
    good = np.random.default_rng(0).random((1, 3, 228, 304), np.float32)
    not_finite = good.copy()
    not_finite[0, 0, 0] = np.nan

    @slow
    @given(
        content=mutations(good.tobytes(), not_finite.tobytes()), name=st.sampled_from(["a.bin", "b c$.bin", ".x.bin"])
    )
    def one(content, name):
        folder = fresh(tmp_path / "run")
        (folder / "in").mkdir()
        (folder / "in" / name).write_bytes(content)
        good.tofile(folder / "in" / "good.bin")
        result = infer(coarse, fine, folder / "in", folder)
        assert result.returncode in (0, 1), result.stderr
        assert "Sanitizer" not in result.stderr and "runtime error" not in result.stderr
        assert (folder / "result_Files" / "good_0.bin").stat().st_size == 4 * 4070
        assert {path.split("/")[0] for path in files(folder)} == {"in", "result_Files", "time_Result"}

    one()


def test_mindir_files(infer, tiny, tmp_path):
    """Damaged models: refused by name, or run."""
    _, (coarse, fine) = tiny
    (tmp_path / "in").mkdir()
    np.random.default_rng(0).random((1, 3, 228, 304), np.float32).tofile(tmp_path / "in" / "a.bin")

    @slow
    @given(content=mutations(coarse.read_bytes()))
    def one(content):
        (tmp_path / "damaged.mindir").write_bytes(content)
        result = infer(tmp_path / "damaged.mindir", fine, tmp_path / "in", tmp_path)
        assert result.returncode in (0, 1, 2), result.stderr[-3000:]
        assert result.returncode != 2 or "damaged.mindir" in result.stderr

    one()
