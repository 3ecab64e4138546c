"""From a folder to a module, strictly."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from opara_server.serving.repository import Entry, RepositoryError, no_models, scan
from opara_server.settings import ConfigError

MODEL = """
source = "python:tests.serving.models:Scale"
batch_sizes = [1]
[[inputs]]
name = "x"
dtype = "float32"
shape = [2]
"""


def folder_of(directory: Path, name: str = "scale", text: str = MODEL) -> Path:
    folder = directory / name
    folder.mkdir()
    (folder / "model.toml").write_text(text)
    return folder


def load(directory: Path) -> torch.nn.Module:
    (entry,) = scan(directory)
    return entry.module(entry.config())


def test_models_are_found_by_name(tmp_path: Path) -> None:
    for name in ("b-2", "a.1", "C_3"):
        folder_of(tmp_path, name)
    (tmp_path / "notes").mkdir()
    (tmp_path / "README.md").touch()
    assert [entry.name for entry in scan(tmp_path)] == ["C_3", "a.1", "b-2"]
    assert no_models(tmp_path) == (tmp_path / "notes",)


@pytest.mark.parametrize("name", [".git", "..2026_11_22", "lost+found", "__pycache__"])
def test_what_a_file_system_or_a_tool_keeps_for_itself_is_passed_over(tmp_path: Path, name: str) -> None:
    folder_of(tmp_path)
    folder_of(tmp_path, name)
    assert [entry.name for entry in scan(tmp_path)] == ["scale"]
    assert no_models(tmp_path) == ()


@pytest.mark.parametrize(
    ("name", "shown"), [("a model", "a model"), ("modèle", "modèle"), ("a(b)", "a(b)"), (os.fsdecode(b"\xff"), "?")]
)
def test_a_name_that_cannot_be_a_label(tmp_path: Path, name: str, shown: str) -> None:
    folder_of(tmp_path, name)
    (entry,) = scan(tmp_path)
    assert entry.name == shown
    with pytest.raises(ConfigError, match="a model's name may have"):
        entry.config()


def test_settings_that_are_nowhere_are_the_models_own_failure(tmp_path: Path) -> None:
    (folder_of(tmp_path) / "model.toml").unlink()
    (tmp_path / "scale" / "model.toml").symlink_to("elsewhere.toml")
    (entry,) = scan(tmp_path)
    with pytest.raises(ConfigError, match=r"model\.toml: No such file or directory"):
        entry.config()


def test_no_models_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no model in it"):
        scan(tmp_path)
    with pytest.raises(ConfigError, match="no such folder"):
        scan(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="Not a directory"):
        scan(tmp_path / "file")


def test_a_model_is_not_a_folder_of_models(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    with pytest.raises(ConfigError, match="this is a model; what is wanted is the folder that it is in"):
        scan(folder)


def test_a_module_comes_ready_for_inference(tmp_path: Path) -> None:
    folder_of(tmp_path, text='dtype = "bfloat16"\n' + MODEL)
    module = load(tmp_path)
    assert not module.training
    assert [(p.dtype, p.requires_grad) for p in module.parameters()] == [(torch.bfloat16, False)]


@pytest.mark.parametrize("key", ["", 'weights = "other.safetensors"\n'])
def test_weights_are_loaded(tmp_path: Path, key: str) -> None:
    folder = folder_of(tmp_path, text=key + MODEL)
    save_file({"scale": torch.tensor([5.0, 7.0])}, folder / ("other.safetensors" if key else "weights.safetensors"))
    assert load(tmp_path)(torch.ones(1, 2)).tolist() == [[5.0, 7.0]]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "no weight 'scale'"),
        ({"scale": torch.ones(2), "bias": torch.ones(2)}, "unexpected weight 'bias'"),
        ({"scale": torch.ones(3)}, r"weight 'scale' has shape \[3\], not \[2\]"),
    ],
)
def test_weights_that_do_not_fit(tmp_path: Path, state: dict[str, torch.Tensor], message: str) -> None:
    save_file(state, folder_of(tmp_path) / "weights.safetensors")
    with pytest.raises(RepositoryError, match=rf"weights\.safetensors: .*{message}"):
        load(tmp_path)


def test_weights_that_are_no_weights(tmp_path: Path) -> None:
    (folder_of(tmp_path) / "weights.safetensors").write_bytes(b"PK\x03\x04")
    with pytest.raises(RepositoryError, match="not a readable safetensors file"):
        load(tmp_path)


def test_a_model_without_weights_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    entry = Entry("scaled", folder_of(tmp_path))
    entry.module(entry.config())
    assert "no weights.safetensors: the weights are as python:" in caplog.text
    assert "a saved plan is found again only where they are the same at every start" in caplog.text


@pytest.mark.parametrize("weights", ["missing.safetensors", "../outside.safetensors", "link.safetensors"])
def test_weights_are_never_outside_the_folder(tmp_path: Path, weights: str) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    folder = folder_of(repository, text=f'weights = "{weights}"\n{MODEL}')
    save_file({"scale": torch.ones(2)}, repository / "outside.safetensors")
    (folder / "link.safetensors").symlink_to(repository / "outside.safetensors")
    outside = (
        f"{folder / weights}: weights must be inside the model's folder, and this is {repository.resolve()}/outside."
    )
    said = "no such file" if weights.startswith("missing") else re.escape(outside)
    with pytest.raises(RepositoryError, match=said):
        load(repository)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no_such_package.module:make", "no module named 'no_such_package'"),
        ("tests.serving.models:missing", "has no function 'missing'"),
        ("tests.serving.models:NUMBER", "has no function 'NUMBER'"),
        ("tests.serving.models:not_a_module", r"made an object of type int, not a torch\.nn\.Module"),
    ],
)
def test_a_source_that_makes_no_module(tmp_path: Path, source: str, message: str) -> None:
    folder_of(tmp_path, text=MODEL.replace("tests.serving.models:Scale", source))
    with pytest.raises(RepositoryError, match=message):
        load(tmp_path)


def test_a_source_that_fails_is_told_with_the_models_own_line(tmp_path: Path) -> None:
    folder_of(tmp_path, text=MODEL.replace("tests.serving.models:Scale", "tests.serving.models:broken"))
    with pytest.raises(RepositoryError) as caught:
        load(tmp_path)
    assert "source python:tests.serving.models:broken fails: OSError: no such disk (at " in str(caught.value)
    assert re.search(r"models\.py:\d+ in broken: ", str(caught.value))
    assert "\n" not in str(caught.value)
