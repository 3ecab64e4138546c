"""Configuration: what is accepted, and what a person is told about the rest."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from opara_server.config import ServerConfig
from opara_server.engine.spec import TensorSpec
from opara_server.engine.tensors import static_inputs
from opara_server.model_config import ModelConfig, may_use_a_gpu
from opara_server.settings import ConfigError

MODEL = """
source = "python:package.module:factory"
batch_sizes = [8, 1]

[[inputs]]
name = "ids"
dtype = "int64"
shape = [128]
range = [0, 1000]

[[inputs]]
name = "x"
dtype = "float32"
shape = []
"""


def load(folder: Path, text: str) -> ModelConfig:
    (folder / "model.toml").write_text(text)
    return ModelConfig.load(folder / "model.toml")


@pytest.mark.parametrize(
    ("host", "kept"), [("[::1]", "::1"), ("::1", "::1"), ("0.0.0.0", "0.0.0.0"), ("fe80::1%eth0", "fe80::1%eth0")]
)
def test_an_address_may_have_brackets(tmp_path: Path, host: str, kept: str) -> None:
    config = ServerConfig.of(models=tmp_path, host=host, metrics_host=host)
    assert (config.host, config.metrics_host) == (kept, kept)


@pytest.mark.parametrize("host", ["", "127.0.0.1:80", "[::1]:80", "[localhost]", "local host", "unix:/tmp/x", "a/b"])
def test_what_is_no_host_is_told_at_once(tmp_path: Path, host: str) -> None:
    for option in ("host", "metrics_host"):
        with pytest.raises(ConfigError, match=f"^--{option.replace('_', '-')}: '.*' is not a host's name or address"):
            ServerConfig.of(models=tmp_path, **{option: host})


def test_a_model_file_with_defaults(tmp_path: Path) -> None:
    config = load(tmp_path, MODEL)
    assert config.batch_sizes == (1, 8)
    assert [i.spec for i in config.inputs] == [
        TensorSpec("ids", "int64", (128,), 0, 1000),
        TensorSpec("x", "float32", ()),
    ]
    assert (config.max_rows, config.max_queue_rows, config.batching.max_queue_delay_us) == (64, 512, 0)
    assert (config.dtype, config.device, config.policy, config.weights) == ("float32", "auto", "auto", None)


def test_batching_can_be_set(tmp_path: Path) -> None:
    config = load(tmp_path, MODEL + "[batching]\nmax_queue_delay_us = 500\nmax_rows = 1000\n")
    assert (config.max_rows, config.max_queue_rows, config.batching.max_queue_delay_us) == (1000, 1000, 500)


def test_a_gpu_has_three_lanes_and_a_cpu_one_unless_their_number_is_set(tmp_path: Path) -> None:
    for line, on_a_gpu, on_a_cpu in (
        ("", 3, 1),
        ('lanes = "auto"\n', 3, 1),
        ("lanes = 1\n", 1, 1),
        ("lanes = 8\n", 8, 8),
    ):
        config = load(tmp_path, f"{MODEL}[batching]\n{line}")
        assert (config.lanes_on("cuda"), config.lanes_on("cpu")) == (on_a_gpu, on_a_cpu)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "int64"])
def test_integers_need_a_range(tmp_path: Path, dtype: str) -> None:
    with pytest.raises(ConfigError, match=rf"an {dtype} input needs a range = \[low, high\]"):
        load(tmp_path, MODEL.replace("range = [0, 1000]\n", "").replace("int64", dtype))


@pytest.mark.parametrize(
    ("dtype", "low", "end"),
    [("uint8", 0, 2**8), ("int8", -(2**7), 2**7), ("int16", -(2**15), 2**15), ("int64", -(2**63), 2**63)],
)
def test_a_range_of_integers_is_within_their_type(tmp_path: Path, dtype: str, low: int, end: int) -> None:
    text = MODEL.replace("int64", dtype).replace("[0, 1000]", "[{}, {}]")
    spec = load(tmp_path, text.format(float(low), float(end))).inputs[0].spec
    assert (spec.low, spec.high) == (low, end)
    (drawn,) = static_inputs([spec], 1000, torch.device("cpu"), channels_last=False)
    assert len(drawn.unique()) > 200
    for bad in ((low - 2**12, end), (low, end + 2**12), (0.5, end)):
        with pytest.raises(ConfigError, match=rf"must be whole numbers within \[{low}, {end}\] for {dtype}"):
            load(tmp_path, text.format(*map(float, bad)))


@pytest.mark.parametrize("policy", ["auto", "opara", "critical_path", "critical_path:4", "search(packed:4)"])
def test_known_policies(tmp_path: Path, policy: str) -> None:
    assert load(tmp_path, f'policy = "{policy}"\n{MODEL}').policy == policy


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'colour = "red"\n' + MODEL,
            "unknown key 'colour'; known keys: source, weights, inputs, batch_sizes, dtype, device",
        ),
        (
            MODEL + "[batching]\nmax_delay = 3\n",
            "unknown key 'batching.max_delay'; known keys: max_queue_delay_us, max_queue_rows",
        ),
        (MODEL + "unit = 1\n", "unknown key 'inputs.x.unit'; known keys: name, dtype, shape, range"),
        (MODEL.replace("batch_sizes", "# "), "'batch_sizes' is missing"),
        (MODEL.replace("[8, 1]", "[8, 8]"), "batch_sizes: the same size twice"),
        (MODEL.replace("[8, 1]", "[0]"), "batch_sizes.0: input should be greater than 0, not 0"),
        (MODEL.replace("[8, 1]", "[]"), "batch_sizes: list should have at least 1 item"),
        (MODEL.replace("python:", "onnx:"), "source: expected python:package.module:factory, not 'onnx:"),
        (MODEL.replace('"float32"', '"float31"'), "inputs.x.dtype: input should be 'bool', 'uint8'"),
        (MODEL.replace("[128]", "[-1]"), "inputs.ids.shape.0: input should be greater than or equal to 0, not -1"),
        (MODEL.replace("[0, 1000]", "[5, 5]"), "inputs.ids: range [5.0, 5.0] is empty"),
        (MODEL.replace("[0, 1000]", "[0, inf]"), "inputs.ids.range.1: input should be a finite number, not inf"),
        (MODEL.replace("[0, 1000]", "[nan, 5]"), "inputs.ids.range.0: input should be a finite number, not nan"),
        (MODEL.replace('name = "ids"', ""), "'inputs.0.name' is missing"),
        (MODEL.replace("[8, 1]", "4"), "batch_sizes: input should be a list, not 4"),
        (MODEL.replace("[8, 1]", '["4"]'), "batch_sizes.0: input should be a valid integer, not '4'"),
        (MODEL.replace("[8, 1]", "[true]"), "batch_sizes.0: input should be a valid integer, not True"),
        ('tune_behind = "yes"\n' + MODEL, "tune_behind: input should be a valid boolean, not 'yes'"),
        ('tuning_budget_s = "5"\n' + MODEL, "tuning_budget_s: input should be a valid number, not '5'"),
        ("tuning_budget_s = 2026-11-21\n" + MODEL, "tuning_budget_s: input should be a valid number"),
        (MODEL.replace('"ids"', '"x"'), "two inputs of the same name"),
        (MODEL + "[batching]\nmax_rows = 9\nmax_queue_rows = 8\n", "max_queue_rows 8 is less than max_rows 9"),
        (MODEL + "[batching]\nlanes = 0\n", "batching.lanes: 0 is not auto or a whole number from 1 to 8"),
        (MODEL + "[batching]\nlanes = true\n", "batching.lanes: True is not auto"),
        (MODEL + '[batching]\nlanes = "2"\n', "batching.lanes: '2' is not auto"),
        (
            'policy = "fastest"\n' + MODEL,
            "policy: 'fastest' is not auto or one of sequential, opara, nimble, wavefront",
        ),
        ('policy = "opara:4"\n' + MODEL, "policy: 'opara:4' is not auto"),
        ('policy = "critical_path:0"\n' + MODEL, "policy: 'critical_path:0' is not auto"),
        ("= 3", "Invalid"),
    ],
)
def test_a_wrong_model_file_is_explained(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'model.toml'}: ")
    assert message in str(caught.value)
    assert "pydantic" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MODEL[: MODEL.rindex("[[")].replace("range = [0, 1000]\n", ""), "inputs.ids: an int64 input needs a range"),
        (MODEL.replace("[8, 1]", "[0]"), "batch_sizes.0: input should be greater than 0, not 0"),
    ],
)
def test_what_only_follows_from_a_problem_is_not_told(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert message in str(caught.value)
    assert "at least 1 item" not in str(caught.value)


def test_every_problem_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)unknown key 'a'.*unknown key 'b'"):
        load(tmp_path, "a = 1\nb = 2\n" + MODEL)


def test_a_missing_model_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        ModelConfig.load(tmp_path / "model.toml")
    assert str(caught.value) == f"{tmp_path / 'model.toml'}: No such file or directory"


def test_the_server_has_defaults_for_all_but_the_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = ServerConfig.of(models="somewhere")
    assert (config.models, config.host, config.port, config.metrics_port) == (
        Path("somewhere"),
        "127.0.0.1",
        50051,
        9464,
    )
    assert config.cache_dir == tmp_path / "opara-serve"


def test_server_options_come_as_text() -> None:
    config = ServerConfig.of(models="m", port="0", grace_s="2.5")
    assert (config.port, config.grace_s) == (0, 2.5)


def test_every_server_option_is_described() -> None:
    assert all(field.description and field.description.endswith(".") for field in ServerConfig.model_fields.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "'models' is missing"),
        ({"models": "m", "port": 70000}, "--port: input should be less than or equal to 65535, not 70000"),
        ({"models": "m", "grace_s": "-1"}, "--grace: input should be greater than or equal to 0"),
        ({"models": "m", "prot": 1}, "unknown key 'prot'; known keys: models, host, port"),
        ({"models": "m", "policy": "x"}, "--policy: 'x' is not auto or one of"),
        ({"models": "m", "tls_key": "k"}, "--tls-certificate and --tls-key are only of use together"),
        ({"models": "m", "tls_certificate": "c"}, "--tls-certificate and --tls-key are only of use together"),
        ({"models": "m", "tls_client_ca": "c"}, "--tls-client-ca needs a --tls-certificate and its --tls-key"),
        ({"models": "m", "transport": "aio", "busy_poll_us": 1}, "--busy-poll-us is only of use with --transport cq"),
        ({"models": "m", "admin_token_file": "t"}, "--admin-token-file is only of use with --admin"),
        ({"models": "m", "keepalive_timeout_s": "0"}, "--keepalive-timeout: input should be greater than 0"),
        ({"models": "m", "max_connection_age_s": "1e9"}, "--max-connection-age: input should be less than or equal"),
        ({"models": "m", "max_message_bytes": 2**31}, "--max-message-bytes: input should be less than or equal"),
    ],
)
def test_a_wrong_server_option_is_explained(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ServerConfig.of(**options)
    assert str(caught.value).startswith(message)


def test_a_gpu_may_be_used_where_any_model_says_so(tmp_path: Path) -> None:
    assert not may_use_a_gpu(tmp_path)
    for name, text, expected in (
        ("a", MODEL.replace("batch", 'device = "cpu"\nbatch', 1), False),
        ("b", "not a setting", False),
        ("c", MODEL, True),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.toml").write_text(text)
        assert may_use_a_gpu(tmp_path) == expected
