"""A model repository: a folder with one folder per model, each with a model.toml."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from opara_server.engine.errors import explained
from opara_server.model_config import DEFAULT_WEIGHTS, MODEL_FILE, ModelConfig
from opara_server.settings import ConfigError

log = logging.getLogger(__name__)

_NOBODYS = {"lost+found", "__pycache__"}
_NAME = re.compile(r"[A-Za-z0-9_.-]+")


class RepositoryError(Exception):
    """A model folder that holds no usable model. str() is one message for the person who wrote it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One folder of the repository."""

    name: str
    folder: Path

    def config(self) -> ModelConfig:
        """Raises ConfigError, also where the folder's name cannot be a model's."""
        if not _NAME.fullmatch(self.name):
            raise ConfigError(f"{self.folder}: a model's name may have letters, digits and _ . - only")
        return ModelConfig.load(self.folder / MODEL_FILE)

    def module(self, config: ModelConfig) -> torch.nn.Module:
        """The model itself, on the CPU, with its weights, ready for inference. Raises RepositoryError, also for
        whatever the model's own code raises."""
        try:
            module = _factory(config.source, self.folder)()
        except RepositoryError:
            raise
        except (Exception, SystemExit) as error:
            log.debug("the source of %s fails", self.name, exc_info=error)
            raise RepositoryError(f"{self.folder}: source {config.source} fails: {explained(error)}") from error
        if not isinstance(module, torch.nn.Module):
            made = f"an object of type {type(module).__name__}"
            raise RepositoryError(f"{self.folder}: source {config.source} made {made}, not a torch.nn.Module")
        weights = self._weights(config)
        if weights is not None:
            _load_weights(module, weights)
        elif next(module.parameters(), None) is not None:
            log.warning(
                "%s: no %s: the weights are as %s makes them; a saved plan is found again only where they are the same "
                "at every start",
                self.name,
                DEFAULT_WEIGHTS,
                config.source,
            )
        return module.to(getattr(torch, config.dtype)).eval().requires_grad_(False)

    def _weights(self, config: ModelConfig) -> Path | None:
        path = self.folder / (config.weights or DEFAULT_WEIGHTS)
        real = path.resolve()
        if not real.is_relative_to(self.folder.resolve()):
            raise RepositoryError(f"{path}: weights must be inside the model's folder, and this is {real}")
        if path.is_file():
            return path
        if config.weights:
            raise RepositoryError(f"{path}: no such file")
        return None


def scan(directory: Path) -> tuple[Entry, ...]:
    """All models under ``directory``, by name, also those that cannot be loaded: their settings say why. Raises
    ConfigError when there are none."""
    if _has_settings(directory):
        raise ConfigError(f"{directory}: this is a model; what is wanted is the folder that it is in")
    folders = [folder for folder in _folders(directory) if _has_settings(folder)]
    if not folders:
        raise ConfigError(f"{directory}: no model in it; each model is a folder with a {MODEL_FILE}")
    return tuple(Entry(_as_text(folder.name), folder) for folder in folders)


def no_models(directory: Path) -> tuple[Path, ...]:
    """The folders beside the models that are none. Raises ConfigError."""
    return tuple(folder for folder in _folders(directory) if not _has_settings(folder))


def _folders(directory: Path) -> list[Path]:
    """But for those that a file system or a tool keeps for itself: hidden ones, which a ConfigMap's volume and git have
    too, Python's and ext4's."""
    try:
        inside = [folder for folder in directory.iterdir() if folder.is_dir()]
    except FileNotFoundError:
        raise ConfigError(f"{directory}: no such folder") from None
    except OSError as error:
        raise ConfigError(f"{directory}: {error.strerror or error}") from None
    return sorted(folder for folder in inside if not folder.name.startswith(".") and folder.name not in _NOBODYS)


def _has_settings(folder: Path) -> bool:
    """Also where that cannot be seen: to read them says why."""
    try:
        (folder / MODEL_FILE).lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def _as_text(name: str) -> str:
    """What of a folder's name is no text, as it goes over the wire, becomes question marks."""
    return name.encode(errors="replace").decode()


def _factory(source: str, folder: Path) -> Callable[[], object]:
    """``source``: "python:package.module:factory", as ModelConfig has checked it."""
    _, name, attribute = source.split(":")
    try:
        found = getattr(import_module(name), attribute, None)
    except ModuleNotFoundError as error:
        raise RepositoryError(
            f"{folder}: source {source}: no module named {error.name!r}, neither installed nor in the folder "
            "of --app-dir (default: the current one)"
        ) from error
    if not callable(found):
        raise RepositoryError(f"{folder}: source {source}: {name} has no function {attribute!r}")
    factory: Callable[[], object] = found
    return factory


def _load_weights(module: torch.nn.Module, path: Path) -> None:
    """Strictly: a weight too many or too few would be a model that answers, wrongly."""
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise RepositoryError(
            f"{path}: not a readable safetensors file, which safetensors.torch.save_file writes: {error}"
        ) from error
    expected = module.state_dict()
    wrong = [
        *(f"no weight {name!r}" for name in expected.keys() - state.keys()),
        *(f"unexpected weight {name!r}" for name in state.keys() - expected.keys()),
        *(
            f"weight {name!r} has shape {list(state[name].shape)}, not {list(expected[name].shape)}"
            for name in expected.keys() & state.keys()
            if state[name].shape != expected[name].shape
        ),
    ]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise RepositoryError(f"{path}: {'; '.join(sorted(wrong)[:5])}{more}")
    module.load_state_dict(state, strict=True)
