"""``opara-client`` from its arguments to what it prints and its exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from opara_client.cli import main
from opara_client.inputs import make_inputs
from opara_client.models import TensorSpec
from opara_protos.v1 import inference_pb2 as pb
from tests.client.fake_server import NOT_SERVING, FakeServer, Model

Output = pytest.CaptureFixture[str]
Cli = Callable[..., tuple[int | str | None, str, str]]


@pytest.fixture
def cli(server: FakeServer, capsys: Output) -> Cli:
    """Runs a command against the server: exit code, what it printed, and its errors."""

    def run(command: str, *args: str) -> tuple[int | str | None, str, str]:
        code: int | str | None
        try:
            code = main([command, "--target", server.target, "--timeout", "30", *args])
        except SystemExit as error:
            code = error.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_infer_from_json_prints_the_outputs(cli: Cli) -> None:
    code, out, err = cli("infer", "double", "--input", "x=[[1, 2.5]]")
    assert (code, err) == (0, "")
    assert out == "x  float32 [1, 2]\n[[2. 5.]]\n"


def test_infer_as_json(cli: Cli) -> None:
    code, out, _ = cli("infer", "echo-int64", "--input", "x=[[1, 2]]", "--json")
    assert code == 0
    assert json.loads(out) == {
        "model": "echo-int64",
        "outputs": {"x": {"dtype": "int64", "shape": [1, 2], "data": [[1, 2]]}},
    }


def test_infer_from_a_file_into_a_file(cli: Cli, tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(3, 2)
    np.save(tmp_path / "x.npy", array)
    target = tmp_path / "out.npz"
    code, out, _ = cli("infer", "double", "--input", f"x=@{tmp_path}/x.npy", "--output", str(target))
    assert (code, out) == (0, f"{target}: x\n")
    with np.load(target) as saved:
        np.testing.assert_array_equal(saved["x"], array * 2)


def test_an_output_may_have_any_name(server: FakeServer, cli: Cli, tmp_path: Path) -> None:
    server.models["odd"] = Model({"file": pb.DATA_TYPE_INT8})
    assert cli("infer", "odd", "--input", "file=[3]", "--output", str(tmp_path / "out"))[0] == 0
    with np.load(tmp_path / "out") as saved:
        assert saved["file"].tolist() == [3]


@pytest.mark.parametrize(("model", "dtype"), [("double", "float32"), ("echo-bool", "bool"), ("echo-int16", "int16")])
def test_random_inputs_have_the_declared_dtype_and_shape(cli: Cli, model: str, dtype: str) -> None:
    first = cli("infer", model, "--input", "x=random", "--rows", "5", "--json")
    answer = json.loads(first[1])["outputs"]["x"]
    assert (answer["dtype"], answer["shape"]) == (dtype, [5, 2])
    assert len({json.dumps(row) for row in answer["data"]}) > 1
    assert cli("infer", model, "--input", "x=random", "--rows", "5", "--json") == first


@pytest.mark.parametrize(
    ("given", "rows", "expected"), [("[[1], [2], [3]]", None, 3), ("[[1]]", 2, 2), ("random", None, 1)]
)
def test_random_inputs_have_the_rows_of_the_others(given: str, rows: int | None, expected: int) -> None:
    specs = [TensorSpec("x", "float32", (-1, 4)), TensorSpec("y", "float32", (-1, 1))]
    assert make_inputs({"x": "random", "y": given}, specs, rows)["x"].shape == (expected, 4)


@pytest.mark.parametrize(
    ("data_type", "limits"),
    [
        (pb.DATA_TYPE_FLOAT32, (10.0, 12.0)),
        (pb.DATA_TYPE_FLOAT64, (-1.5e308, 1.5e308)),
        (pb.DATA_TYPE_INT32, (-3.0, -1.0)),
        (pb.DATA_TYPE_UINT8, (254.0, 256.0)),
        (pb.DATA_TYPE_INT64, (2.0**62, 2.0**63)),
    ],
)
def test_random_inputs_lie_in_the_declared_range(
    server: FakeServer, cli: Cli, tmp_path: Path, data_type: pb.DataType.ValueType, limits: tuple[float, float]
) -> None:
    server.models["ranged"] = Model({"x": data_type}, limits=limits)
    target = tmp_path / "out.npz"
    assert cli("infer", "ranged", "--input", "x=random", "--rows", "50", "--output", str(target))[0] == 0
    with np.load(target) as saved:
        values = (saved["x"] / (2 if data_type == pb.DATA_TYPE_FLOAT32 else 1)).ravel().tolist()
    assert len(set(values)) > 1
    assert all(limits[0] <= value <= limits[1] for value in values)
    assert f"in [{limits[0]:.15g}, {limits[1]:.15g})" in cli("models", "ranged")[1]


@pytest.mark.parametrize(
    ("value", "model", "message"),
    [
        ("x", "double", "expected NAME=@FILE.npy, NAME=JSON or NAME=random"),
        ("=1", "double", "expected NAME="),
        ("y=[1]", "double", "the model has no input 'y'; it has x"),
        (
            "x=[1",
            "double",
            "input 'x': not a JSON literal, @FILE.npy or random: Expecting ',' delimiter: line 1 column 3",
        ),
        ("x=hello", "double", "input 'x': not a JSON literal, @FILE.npy or random"),
        ("x=[1,hello]", "double", "random: Expecting value: line 1 column 4"),
        ("x=" + 50_000 * "[", "double", "input 'x': not a JSON literal, @FILE.npy or random"),
        ("x=[[1], [1, 2]]", "double", "input 'x': the literal's rows are not all of one shape"),
        ('x=["a"]', "double", "input 'x': the literal does not fit float32"),
        ("x=[1.5]", "echo-int32", "input 'x': the literal does not fit int32"),
        ("x=[300]", "echo-uint8", "input 'x': the literal does not fit uint8"),
        ("x=[true]", "echo-int8", "input 'x': the literal does not fit int8"),
        ("x=[1]", "echo-bool", "input 'x': the literal does not fit bool"),
        ("x=@nowhere.npy", "double", ": nowhere.npy: No such file or directory\n"),
        ("x=@/dev/null", "double", "/dev/null: neither a .npy nor a .npz file\n"),
        (f"x=@{__file__}", "double", f"{__file__}: neither a .npy nor a .npz file\n"),
    ],
)
def test_inputs_that_cannot_be_are_wrong_usage(cli: Cli, value: str, model: str, message: str) -> None:
    code, out, err = cli("infer", model, "--input", value)
    assert (code, out) == (2, "")
    assert err.startswith("opara-client: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "args",
    [
        ["--input", "x=[1]", "--input", "x=[2]"],
        ["--input", "x=random", "--rows", "-1"],
        ["--input", "x=random", "--output", "/nowhere/at/all"],
        ["--colour"],
    ],
)
def test_other_wrong_usage(cli: Cli, args: list[str]) -> None:
    assert cli("infer", "double", *args)[0] == 2


def test_a_file_of_several_arrays_is_wrong_usage(cli: Cli, tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", a=np.zeros(1), b=np.zeros(1))
    code, _, err = cli("infer", "double", "--input", f"x=@{tmp_path}/two.npz")
    assert code == 2
    assert "several arrays" in err


def test_a_server_error_is_one_line_with_its_code(cli: Cli) -> None:
    assert cli("infer", "nobody", "--input", "x=[1]") == (1, "", "opara-client: NOT_FOUND: no model 'nobody'\n")


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        (pb.MODEL_STATE_FAILED, "FAILED: the server's log says more"),
        (pb.MODEL_STATE_LOADING, "LOADING: the server's log says more"),
        (pb.MODEL_STATE_UNLOADED, "UNLOADED: until it is loaded again"),
    ],
)
def test_a_model_that_is_not_ready_says_so_before_its_inputs_are_looked_at(
    server: FakeServer, cli: Cli, state: pb.ModelState.ValueType, shown: str
) -> None:
    server.models["bad"] = Model({}, state)
    said = f"opara-client: UNAVAILABLE: model 'bad' is {shown}\n"
    assert cli("infer", "bad", "--input", "x=random") == (1, "", said)


def test_a_file_of_another_dtype_is_refused_and_not_cast(cli: Cli, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 2)))
    code, _, err = cli("infer", "double", "--input", f"x=@{tmp_path}/x.npy")
    assert (code, err) == (1, "opara-client: INVALID_ARGUMENT: input 'x': expected float32, got float64\n")


def test_models_is_a_table(server: FakeServer, cli: Cli) -> None:
    code, out, _ = cli("models")
    rows = dict(line.split() for line in out.splitlines()[1:])
    assert code == 0
    assert rows.keys() == server.models.keys()
    assert (rows["double"], rows["loading"]) == ("READY", "LOADING")


def test_models_tells_why_one_failed(server: FakeServer, cli: Cli) -> None:
    server.models["bad"] = Model({}, pb.MODEL_STATE_FAILED, reason="its code fails")
    table = [line.split(maxsplit=2) for line in cli("models")[1].splitlines()]
    assert table[0] == ["MODEL", "STATE", "REASON"]
    assert [row for row in table[1:] if len(row) > 2] == [["bad", "FAILED", "its code fails"]]
    assert cli("models", "bad") == (0, "bad  FAILED  its code fails: the server's log says more\n", "")
    said = "opara-client: UNAVAILABLE: model 'bad' is FAILED: its code fails: the server's log says more\n"
    assert cli("infer", "bad", "--input", "x=random") == (1, "", said)
    assert {"name": "bad", "state": "FAILED", "reason": "its code fails"} in json.loads(cli("models", "--json")[1])
    assert json.loads(cli("models", "bad", "--json")[1])["reason"] == "its code fails"


def test_one_model_with_its_plan(cli: Cli) -> None:
    code, out, _ = cli("models", "fallback")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert code == 0
    assert lines == [
        "fallback READY on cpu (a processor), 64 rows a request at most",
        "input x float32 [rows, 2]",
        "output x float32 [rows, 2]",
        "one sequential graph, because sin is missing",
        "batch 8: opara, compacted on 4 streams, 42 aten operators, 1.50x over sequential, 1.0 MiB of activations, "
        "keeps 0.5 MiB, plan from the cache",
        "operators policy streams syncs predicted us measured us again us peak MiB",
        "aten sequential 1 0 160.0 150.0 0.5",
        "aten opara, compacted 4 7 90.0 100.0 101.5 0.0",
        "aten nimble 9 0 0.0 90.0 0.0 refused: wrong in 1 of 100 replays",
        "aten wavefront 1 0 80.0 0.0 not measured: beyond the tuning budget",
    ]


def test_one_stream_is_one(server: FakeServer, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = pb.Bucket(batch_size=1, policy="sequential", lowering="aten", operators=3, streams=1)
    monkeypatch.setattr("tests.client.fake_server.PLAN", alone)
    assert "batch 1: sequential on 1 stream, 3 aten operators" in cli("models", "double")[1]


def test_a_model_that_is_not_ready_has_no_empty_fields(cli: Cli) -> None:
    code, out, _ = cli("models", "loading")
    assert code == 0
    assert out == "loading  LOADING  the server's log says more\n  input   x  float32 [rows, 2]\n"


def test_models_as_json(cli: Cli) -> None:
    statuses = json.loads(cli("models", "--json")[1])
    assert {"name": "double", "state": "READY", "reason": ""} in statuses
    model = json.loads(cli("models", "double", "--json")[1])
    assert model["buckets"][0]["candidates"][1]["policy"] == "opara"


def test_health_is_0_only_when_serving(server: FakeServer, cli: Cli) -> None:
    server.health.set("double", NOT_SERVING)
    assert cli("health") == (0, "SERVING\n", "")
    assert cli("health", "double") == (1, "NOT_SERVING\n", "")
    code, out, err = cli("health", "nobody")
    assert (code, out) == (1, "")
    assert err.startswith("opara-client: NOT_FOUND")


def test_nobody_listens(capsys: Output) -> None:
    assert main(["health", "--target", "127.0.0.1:1"]) == 1
    assert capsys.readouterr().err.startswith("opara-client: UNAVAILABLE: ")


def test_version_and_usage(capsys: Output) -> None:
    with pytest.raises(SystemExit) as version:
        main(["--version"])
    assert version.value.code == 0
    assert capsys.readouterr().out.startswith("opara-client ")
    with pytest.raises(SystemExit) as usage:
        main([])
    assert usage.value.code == 2


def test_a_reader_that_has_seen_enough_is_no_error_of_python(server: FakeServer) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    arguments = [sys.executable, "-c", "from opara_client.cli import main; raise SystemExit(main())"]
    ended = subprocess.run(
        [*arguments, "models", "--target", server.target],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        timeout=280,
        check=False,
    )
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (1, "")


def test_a_profile_is_a_table_or_json(cli: Cli) -> None:
    code, out, _ = cli("profile", "double")
    assert code == 0
    assert out.splitlines()[1:] == [
        "1      10       100.0    1.50         12.3          100% 50%",
        "8      10       100.0    1.50         12.3          100% 50%",
    ]
    code, out, _ = cli("profile", "double", "--batch-size", "8", "--json")
    (profile,) = json.loads(out)
    assert (profile["batch_size"], profile["busy_us"]["2"]) == (8, 50.0)
    assert profile["timeline"] == [{"name": "conv", "stream": 1, "start_us": 50.0, "end_us": 100.0}]
    assert cli("profile", "nobody")[0] == 1
