"""Fixtures: a small NYU folder that the tests make themselves, and the real commands as subprocesses."""

import contextlib
import fcntl
import gc
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# Several of these run side by side (pytest-xdist): each has its share of the processors.
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if WORKERS > 1:
    os.environ["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // WORKERS))
os.environ.pop("MASTER_PORT", None)  # each run of several workers takes one that is free

# Ignored in the background of a script, or under nohup: the commands that the tests start would ignore them, too.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

import cv2  # noqa: E402
import mindspore as ms  # noqa: E402
import numpy as np  # noqa: E402
from PIL import ExifTags, Image  # noqa: E402

import src  # noqa: E402, F401
from src.data import image  # noqa: E402
from src.net import FineNet, PaperCoarseNet  # noqa: E402
from src.nets import checkpoint  # noqa: E402
from tools import make_sample_nyu  # noqa: E402

SOURCE = ROOT / "ascend310_infer"
BIN = Path(sys.executable).parent
REAL_NYU = os.environ.get("DEPTHNET_NYU")
NEEDS_NYU = pytest.mark.skipif(not REAL_NYU, reason="no folder of the real NYU set (DEPTHNET_NYU=FOLDER)")
NEEDS_CPP = pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler (on Debian: apt install g++ make)")

ms.set_context(mode=ms.GRAPH_MODE)
ms.set_device("CPU")


# What needs one of these starts programs or builds the C++ one; so does what is marked `long`, or trains for minutes.
PROCESSES = {"run", "forked", "lite"}  # what the other fixtures of that kind are made with
# The files that take longest, first: each is one processor's work, and the short ones fill what is left at the end.
LONGEST = """
graphs programs commands overwrite interruption validation options zoo app resume start recipe distributed inference
nets training gate export style prepare_nyu predict compress_weights tensorboard video report docs environment
folders checkpoint check_nyu data_loader scripts files visual packed preprocess benchmarks
"""


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="only what starts no program and trains no net for long")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """One more than there are processors: a test may wait for a browser, or for two workers to find each other."""
    return min(len(os.sched_getaffinity(0)) + 1, 4)


def pytest_collection_modifyitems(config, items):
    places = {f"test_{name}": place for place, name in enumerate(LONGEST.split())}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))
    if config.getoption("--quick"):
        long = [item for item in items if PROCESSES & set(item.fixturenames) or item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


def pytest_collection_finish():
    gc.freeze()  # MindSpore collects garbage before each compilation: what is imported by now need not be looked at


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """once(name, make): the folder that make(folder) has filled, in the first of the workers that needs it."""

    def make_once(name, make):
        if WORKERS == 1:
            make(folder := tmp_path_factory.mktemp("once") / name)
            return folder
        folder = tmp_path_factory.getbasetemp().parent / name
        with open(folder.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                making = folder.with_suffix(".making")
                shutil.rmtree(making, ignore_errors=True)  # left by one that failed
                make(making)
                making.rename(folder)
        return folder

    return make_once


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(once):
    """What programs keep in the user's cache goes elsewhere."""
    os.environ["XDG_CACHE_HOME"] = str(once("cache", Path.mkdir))


@pytest.fixture(scope="session")
def nyu(once):
    """A NYU folder of rendered rooms: 2 scenes of 4 training pairs, 4 test pairs. Not to be changed."""
    return once("NYU", lambda folder: make_sample_nyu.make(folder, 2, 4, 4, seed=1))


# A program of the repo as it is typed, behind code that takes something from it.
AS_TYPED = """
import os, runpy, sys
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# What OpenCV 4.6 and Pillow 9.4 lack, which Debian 12 has.
DEBIAN_12 = """
import sys
sys.modules["mindspore"] = None
import cv2
from PIL import ImageOps
del cv2.IMREAD_COLOR_RGB
whole = ImageOps.exif_transpose
ImageOps.exif_transpose = lambda image: whole(image)
"""


def split(line):
    """The program and its first arguments, which hold no space; a Path is a program."""
    return line.split() if isinstance(line, str) else [line]


@pytest.fixture(scope="session")
def run():
    """Run a command of the repo in a folder: run("eval.py --test_data x", *more, cwd=folder) -> CompletedProcess with
    text. What follows the first string is taken as it is; `before` is Python that runs first."""

    def run_command(line, *arguments, cwd, before=None, **environment):
        program, *options = split(line)
        launcher = ["bash"] if str(program).endswith(".sh") else [sys.executable]
        if before:
            launcher += ["-c", before + AS_TYPED]
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            [*launcher, str(ROOT / program), *options, *map(str, arguments)],
            cwd=cwd,
            text=True,
            timeout=900,
            capture_output=True,
            env={**os.environ, "PATH": path, **environment},
            check=False,
        )

    return run_command


@pytest.fixture(scope="session")
def forked():
    """As `run`, for the programs in Python, but in forks of a process that has loaded MindSpore already (forks.py): the
    same files and lines in half the time."""
    server = subprocess.Popen(
        [sys.executable, ROOT / "tests" / "forks.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def run_forked(line, *arguments, cwd, megabytes=None, killed_at=None, **environment):
        target, *options = split(line)
        request = {
            "target": str(target),
            "arguments": [*options, *map(str, arguments)],
            "cwd": str(cwd),
            "megabytes": megabytes,
            "killed_at": killed_at,
            "environment": environment,
        }
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        answer = json.loads(server.stdout.readline())
        return subprocess.CompletedProcess([line, *arguments], answer["code"], answer["output"], answer["errors"])

    yield run_forked
    server.stdin.close()
    server.wait()


@pytest.fixture(scope="session")
def untrained(once):
    """A folder with coarse.ckpt and fine.ckpt, untrained, and nan.ckpt, a CoarseNet that predicts no number."""

    def make(folder):
        rng = np.random.default_rng(0)
        ms.set_seed(0)
        arrays = {parameter.name: parameter.asnumpy() for parameter in PaperCoarseNet().get_parameters()}
        for name in ("fc6.weight", "fc7.weight"):  # of rank one, as factors: 15 MB instead of 283
            rows, columns = arrays.pop(name).shape
            arrays |= {
                name + checkpoint.LEFT: rng.normal(0, 0.01, (rows, 1)).astype(np.float32),
                name + checkpoint.RIGHT: rng.normal(0, 0.01, (1, columns)).astype(np.float32),
            }
        info = {"stage": "coarse", "coarse_net": "paper"}
        checkpoint.save(folder / "coarse.ckpt", arrays, info)
        checkpoint.save(folder / "nan.ckpt", arrays | {"fc7.bias": np.full(4070, np.nan, np.float32)}, info)
        checkpoint.save(folder / "fine.ckpt", {one.name: one for one in FineNet().get_parameters()}, {"stage": "fine"})

    return once("untrained", make)


@pytest.fixture(scope="session")
def fine_stage(untrained):
    """train.py's arguments for the training that costs least: FineNet's, on an untrained CoarseNet."""
    return ["--stage", "fine", "--pre_trained", str(untrained / "coarse.ckpt")]


@pytest.fixture(scope="session")
def trained(nyu, run, once):
    """The folder in which `train.py` has trained both nets for a few steps, and what it printed."""

    def train(folder):
        folder.mkdir()
        result = run(
            f"train.py --data_url {nyu} --val_data {nyu} --batch_size 1 --epochs_coarse 2 --epochs_fine 1",
            *("--learning_rate_fine", 1e-3, "--save_checkpoint_steps", 6),
            cwd=folder,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        folder.joinpath("stdout.txt").write_text(result.stdout)

    return once("trained", train)


@pytest.fixture(scope="session")
def lite():
    """The MindSpore Lite that build.sh takes: the user's, or the one it fetches."""
    result = subprocess.run(["bash", SOURCE / "build.sh"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    given = os.environ.get("MS_LITE_HOME") or os.environ.get("LITE_HOME")
    return given or str(SOURCE / "build" / "mindspore_lite-wheel" / "mindspore_lite")


@pytest.fixture(scope="session")
def exported(trained, run, once):
    """The Model folder of the small training with both nets exported in both formats."""

    def export(folder):
        (folder / "Model").mkdir(parents=True)
        (folder / "Model" / "Ckpt").symlink_to(trained / "Model" / "Ckpt")
        for net in ("coarse", "fine"):
            result = run(f"scripts/run_export_{net}_model.sh", "--file_format", "MINDIR", "ONNX", cwd=folder)
            assert result.returncode == 0, result.stdout + result.stderr
            assert result.stdout.count("verified to") == 2

    return once("exported", export) / "Model"


@pytest.fixture(scope="session")
def red_onnx(tmp_path_factory):
    """Two ONNX files whose prediction one can tell: log depth is 2 x how red the picture is there, from 0 to 1."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    folder, paths = tmp_path_factory.mktemp("red"), []
    weight = np.zeros((1, 3, 12, 12), np.float32)
    weight[:, 0] = 2 / 144
    rgb, coarse = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *shape])
        for name, shape in (("rgb", (3, 228, 304)), ("coarse_log_depth", (1, 55, 74)))
    )
    out = helper.make_tensor_value_info("log_depth", TensorProto.FLOAT, ["n", 1, 55, 74])
    conv = helper.make_node("Conv", ["rgb", "weight"], ["log_depth"], strides=[4, 4])
    same = helper.make_node("Identity", ["coarse_log_depth"], ["log_depth"])
    for name, nodes, inputs, constants in (
        ("coarse", [conv], [rgb], [numpy_helper.from_array(weight, "weight")]),
        ("fine", [same], [rgb, coarse], []),
    ):
        graph = helper.make_graph(nodes, name, inputs, [out], constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        onnx.checker.check_model(model)
        paths.append(folder / f"{name}.onnx")
        onnx.save(model, paths[-1])
    return paths


@contextlib.contextmanager
def serving(onnx, *arguments, **environment):
    """`python app.py` as a process; its address, and the process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, ROOT / "app.py", *onnx_nets(onnx), "--port", str(port), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=onnx[0].parent,
        env={**os.environ, **environment},
    )
    try:
        for line in process.stdout:
            if "Ctrl-C" in line:
                break
        assert process.poll() is None, "it did not begin"
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.terminate()
        process.wait(20)


def paint(path, level=90, size=(48, 64), **options):
    """A picture of one grey level or colour, or of these pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = level if isinstance(level, np.ndarray) else np.full((*size, 3), level, np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def taken_by(focal_mm):
    """The EXIF of a photograph by a lens of this focal length, in 35-mm terms."""
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FocalLengthIn35mmFilm] = focal_mm
    return exif


def write_video(path, frames, size=(160, 120), codec="MJPG", rate=12):
    """A video of noise, or with these frames, each of one grey level."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), rate, size)
    rng = np.random.default_rng(0)
    for frame in range(frames) if isinstance(frames, int) else frames:
        shape = (size[1], size[0], 3)
        noise = isinstance(frames, int)
        writer.write(rng.integers(0, 256, shape, np.uint8) if noise else np.full(shape, frame, np.uint8))
    writer.release()
    return path


ODD = os.fsdecode(b"a$_$ \xff\xfe caf\xc3\xa9")  # mathematics for matplotlib, and not UTF-8


@pytest.fixture
def tiny_disk(tmp_path):
    """A folder on a disk of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
    if subprocess.run(mounting, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", folder], check=True)


def ckpt_nets(folder, coarse="coarse.ckpt"):
    """The arguments that name two checkpoints of a folder such as `untrained`."""
    return ["--coarse_ckpt_model", folder / coarse, "--fine_ckpt_model", folder / "fine.ckpt"]


def onnx_nets(red_onnx):
    """The arguments that name the nets of red_onnx: without MindSpore a process starts in a fifth of the time."""
    return ["--coarse_onnx", red_onnx[0], "--fine_onnx", red_onnx[1]]


@pytest.fixture
def predict(forked, red_onnx, tmp_path):
    """predict("--input a.png", *more): predict.py in the test's folder on the nets of red_onnx."""

    def run_predict(line, *more, **named):
        return forked(f"predict.py {line}", *more, *onnx_nets(red_onnx), cwd=tmp_path, **named)

    return run_predict


def red_is_depth(rgb):
    """A coarse net whose depth is what one can check: 1 m to 9 m by how red the picture is there."""
    red = [image.resize(one[0], image.DEPTH_SIZE) for one in rgb]
    return np.log(1 + 8 * np.stack(red)[:, None]).astype(np.float32)


def as_it_is(rgb, coarse_log_depth):
    """A fine net that changes nothing."""
    return coarse_log_depth


def shell(text, cwd, **environment):
    """What bash does with a line; the variables that are None are unset."""
    merged = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "ROOT": str(ROOT), **environment}
    return subprocess.run(
        ["/bin/bash", "-c", text],
        cwd=cwd,
        text=True,
        capture_output=True,
        check=False,
        timeout=900,
        env={name: value for name, value in merged.items() if value is not None},
    )


@pytest.fixture(scope="session")
def bare(tmp_path_factory):
    """A PYTHONPATH on which a 310 host's missing modules cannot be imported."""
    folder = tmp_path_factory.mktemp("bare")
    for name in ("mindspore", "matplotlib", "tqdm", "tabulate", "scipy"):
        (folder / f"{name}.py").write_text(f"raise ModuleNotFoundError('No module named {name}', name='{name}')")
    return str(folder)


@pytest.fixture(scope="session")
def preprocessed(nyu, run, bare, tmp_path_factory):
    """What preprocess.py writes of the test pairs."""
    folder = tmp_path_factory.mktemp("preprocessed")
    result = run(f"preprocess.py --dataset_path {nyu}/Test --output_path {folder}", cwd=folder, PYTHONPATH=bare)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


@pytest.fixture(scope="session")
def evaluated(nyu, forked, once):
    """Evaluations of the weights of this repo: plain, "a flipped" and eigen, with what each printed in stdout.txt."""

    def evaluate(folder):
        folder.mkdir()
        for name, more in (("plain", []), ("a flipped", ["--flip_average"]), ("eigen", ["--protocol", "eigen"])):
            line = f"eval.py --baselines --test_data {nyu}{'/Test' * (name == 'eigen')} --output_dir"
            result = forked(line, name, *more, cwd=folder)
            assert result.returncode == 0, result.stdout + result.stderr
            (folder / name / "stdout.txt").write_text(result.stdout)

    return once("evaluated", evaluate)
