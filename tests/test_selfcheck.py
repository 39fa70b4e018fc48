"""tools/ascend_selfcheck.py: what goes wrong is said, and hides nothing. That all is right takes minutes: run it."""

import json

import mindspore as ms
import numpy as np
import pytest

from src.base.errors import CheckFailed
from tools import ascend_selfcheck as selfcheck
from tools import selfcheck_calls, selfcheck_nets

ROWS = 14


@pytest.mark.long
def test_programs_that_take_too_long_are_rows_of_the_table(run, tmp_path):
    result = run("tools/ascend_selfcheck.py", "--device_target", "CPU", "--limit", 1, cwd=tmp_path)
    table = (tmp_path / "ascend_selfcheck.txt").read_text().splitlines()[-ROWS:]
    assert result.returncode == 1, result.stdout + result.stderr
    assert [line.split()[0] for line in table] == ["right"] + 11 * ["WRONG"] + 2 * ["not"], table
    assert any("not done in 1 s" in line for line in table)
    assert "Traceback" not in result.stderr


def host_on(target, report, folder):
    options = selfcheck.parse_args(["--device_target", target, "--limit", "120"])
    return selfcheck.Host(options, report, folder)


@pytest.fixture
def host(tmp_path):
    with open(tmp_path / "report.txt", "w") as report:
        yield host_on("CPU", report, tmp_path)


def write_outputs(host, name, factors):
    """Write the outputs of the first calls as the program that runs them does; a factor may be an error."""
    folder = host.folder / name
    folder.mkdir()
    for number, factor in enumerate(factors):
        outputs = {"error": np.array(factor)} if isinstance(factor, str) else {"output 0": factor * np.arange(9.0)}
        np.savez(folder / f"{number}.npz", **outputs)


@pytest.mark.parametrize(
    ("factor", "state"),
    [(1.0, "right"), (1.002, "right"), (1.1, "WRONG"), (np.nan, "WRONG"), ("RuntimeError: no kernel", "WRONG")],
)
def test_a_call_that_differs_from_the_cpu_is_wrong(host, monkeypatch, factor, state):
    monkeypatch.setattr(selfcheck, "LISTED", [["Abs", ["float32[9]"]], ["Conv2D", ["float32[9]"], {}]])
    write_outputs(host, "calls_CPU_--in_float32", [1.0, 1.0])
    write_outputs(host, "calls_CPU", [1.0, factor])
    row = selfcheck.run_check(host, "calls", True, lambda: selfcheck.check_calls(host, False))
    assert row.state == state and (state == "right" or ("1 of 2 calls" in row.remark and "Conv2D" in row.remark))


def test_a_call_that_ends_its_program_hides_no_other(host, monkeypatch):
    program = host.folder / "program.py"
    program.write_text(
        "import os, pathlib, sys\n"
        "for number in range(5):\n"
        "    path = pathlib.Path(sys.argv[-1], f'{number}.npz')\n"
        "    if not path.exists():\n"
        "        if number == 2: os.abort()\n"
        "        import numpy; numpy.savez(path, output=numpy.arange(number))\n"
    )
    monkeypatch.setattr(selfcheck, "CALLS", program)
    outputs = selfcheck.outputs_of_calls(host, "CPU")
    assert sorted(outputs) == [0, 1, 2, 3, 4]
    assert [number for number, arrays in outputs.items() if "error" in arrays] == [2]
    assert "exit code -6" in str(outputs[2]["error"])


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (["MatMul", ["float32[3,5]", "float32[4,5]"], True], lambda a, b: a @ b.T),
        (["MatMul", ["float16[3,5]", "float16[4,5]"], True], lambda a, b: a.astype("f4") @ b.astype("f4").T),
        (["Sub", ["float32[2,3]", {"float32": 1}], False], lambda a: a - 1),
        (["Log1p", ["float32[7]"], False], np.log1p),
        (["Concat", [{"tuple": ["float32[2,1]", "float32[2,3]"]}, 1], False], lambda a, b: np.concatenate([a, b], 1)),
        (["AssignAdd", ["&int32[1]", "int32[1]"], False], lambda a, b: a + b),
        (["Cast", ["float32[4]", {"type": "float16"}], False], lambda a: a),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_call_is_run_as_it_is_written(call, expected):
    name, arguments, transposes = call
    described = (
        arguments[0]["tuple"] if isinstance(arguments[0], dict) else [a for a in arguments if isinstance(a, str)]
    )
    rng = np.random.default_rng(0)
    inputs = [
        selfcheck_calls._argument(rng, text, name in selfcheck_calls.POSITIVE).asnumpy().copy() for text in described
    ]
    ours = [name, [*arguments, *([False, True] if transposes else [])]]
    for in_float32 in (False, True):
        [output] = selfcheck_calls.run_call(ours, in_float32)
        np.testing.assert_allclose(output, expected(*inputs).ravel(), rtol=2e-3, atol=2e-3)


def test_a_graph_s_calls_are_read_from_its_text():
    graph = """
  %0(a) = Load(%para1_w, UMonad[U]) cnode_attrs: {checkpoint: Bool(1)}
      : (<Ref[Tensor[Float32]], (6, 3, 2, 2), ref_key=w>, <UMonad, NoShape>) -> (<Tensor[Float32], (6, 3, 2, 2)>)
  %1(b) = PrimFunc_Cast(%0, I64(42)) primitive_attrs: {input_names: [x, dst_type]} cnode_attrs: {checkpoint: Bool(1)}
      : (<Tensor[Float32], (6, 3, 2, 2)>, <Int64, NoShape>) -> (<Tensor[Float16], (6, 3, 2, 2)>)
  %2(c) = Conv2D(%x, %1) {instance name: conv} primitive_attrs: {pad_mode: I64(2), stride: (1, 2), format: "NCHW", \
output_names: (output)} cnode_attrs: {checkpoint: Bool(1)}
      : (<Tensor[Float16], (2, 3, 8, 8)>, <Tensor[Float16], (6, 3, 2, 2)>) -> (<Tensor[Float16], (2, 6, 4, 4)>)
  %3(d) = PrimFunc_Reshape(%2, (I64(-1))) cnode_attrs: {checkpoint: Bool(1)}
      : (<Tensor[Float16], (2, 6, 4, 4)>, <Tuple[Int64], TupleShape(NoShape), elements_use_flags={[const vector]{1}}>) \
-> (<Tensor[Float16], (192)>)
  %4(e) = PrimFunc_Select(%3, Tensor(shape=[], dtype=Float32, value=0.5), Tensor(shape=[2], dtype=Float32, \
value=[ 1.00000000e+00  2.00000000e+00])) cnode_attrs: {checkpoint: Bool(1)}
      : (<Tensor[Bool], ()>, <Tensor[Float32], (), value=...>, <Tensor[Float32], (2), value=...>) \
-> (<Tensor[Float32], (2)>)
  %5(f) = PrimFunc_AssignAdd(%para2_n, %4, %u) primitive_attrs: {side_effect_mem: Bool(1)} cnode_attrs: {}
      : (<Ref[Tensor[Int32]], (1), ref_key=n>, <Tensor[Int32], (1)>, <UMonad, NoShape>) -> (<Tensor[Int32], (1)>)
  %6(g) = PrimFunc_AddN(%5) cnode_attrs: {}
      : (<Tuple[Tensor[Float32]*2], TupleShape((2), (2)), elements_use_flags={[const vector]{1, 1}}>) \
-> (<Tensor[Float32], (2)>)
"""
    convolution = {"pad_mode": 2, "stride": [1, 2], "format": "NCHW", "output_names": ["output"]}
    assert list(selfcheck_calls.calls_of(graph)) == [
        ["Cast", ["float32[6,3,2,2]", {"type": "float16"}]],
        ["Conv2D", ["float16[2,3,8,8]", "float16[6,3,2,2]"], convolution],
        ["Reshape", ["float16[2,6,4,4]", [-1]]],
        ["Select", ["bool[]", {"float32": 0.5}, "float32[2]"]],
        ["AssignAdd", ["&int32[1]", "int32[1]"]],
        ["AddN", [{"tuple": ["float32[2]", "float32[2]"]}]],
    ]


@pytest.mark.long
def test_losses_are_compared_with_the_stored_ones(host, monkeypatch, tmp_path):
    assert "s a step" in selfcheck.check_steps(host, "fine", "O0")
    losses = json.loads((selfcheck.STORED / "losses.json").read_text())
    losses["fine"][4] *= 1.1
    (tmp_path / "losses.json").write_text(json.dumps(losses))
    monkeypatch.setattr(selfcheck, "STORED", tmp_path)
    with pytest.raises(CheckFailed, match="from the CPU"):
        selfcheck.check_steps(host, "fine", "O0")


def test_the_stored_output_is_the_nets():
    coarse, fine = (selfcheck_nets.fixed_net(name).set_train(False) for name in ("coarse", "fine"))
    rgb = ms.Tensor(selfcheck_nets.image())
    expected = np.load(selfcheck.STORED / "output.npy")
    np.testing.assert_allclose(fine(rgb, coarse(rgb)).asnumpy(), expected, atol=1e-4)
    assert expected.std() > 0.01


def test_a_310_runs_the_program_only(tmp_path, monkeypatch):
    monkeypatch.delenv("MS_LITE_HOME", raising=False)
    monkeypatch.delenv("LITE_HOME", raising=False)
    with open(tmp_path / "report.txt", "w") as report:
        host = host_on("Ascend310", report, tmp_path)
        rows = [selfcheck.run_check(host, *check) for check in selfcheck.checks(host)]
    assert [row.state for row in rows] == ["right"] + (ROWS - 1) * ["not run"]
    assert sum("MS_LITE_HOME is not set" in row.remark for row in rows) == 2


def test_a_program_that_fails_says_its_last_line(host):
    with pytest.raises(CheckFailed, match="exit code 3: the last"):
        host.run("sh", "-c", "echo first; echo the last; exit 3")
