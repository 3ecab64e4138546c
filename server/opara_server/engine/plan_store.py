"""Saved plans, with the programs that they run: one file per whole key.

A plan is found only under exactly the conditions it was measured in. The file is in the safetensors format: the plan
and the programs are JSON in its metadata, what they need besides the model's weights are its tensors. Digests stand
beside both: a launch with one number changed could harm the whole device.
"""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from opara_server.engine.plan import BucketPlan, Plan
from opara_server.engine.program_json import Json, content_digest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SavedPlan:
    """``choices``: by batch size what ``choice.write_choice`` wrote; ``tensors``: what these programs need."""

    plan: Plan
    choices: Json
    tensors: Mapping[str, Tensor]


def as_it_runs(found: SavedPlan, plan: Plan) -> SavedPlan:
    """Of what a search has ``found`` the programs that run by the ``plan``, which came of it, and what these need."""
    choices = {str(b.batch_size): _as_it_runs(found, b) for b in plan.buckets}
    needed = set(re.findall("[0-9a-f]{64}", json.dumps(choices)))  # tensors are called by their digests
    return SavedPlan(plan, choices, {name: tensor for name, tensor in found.tensors.items() if name in needed})


def _as_it_runs(found: SavedPlan, bucket: BucketPlan) -> Json:
    choice = found.choices[str(bucket.batch_size)]
    numbers = {candidate.key: number for number, candidate in enumerate(bucket.candidates)}
    programs = {number: choice["best"] | other for number, other in choice["others"]}
    programs |= {numbers[found.plan.bucket(bucket.batch_size).key]: choice["best"], 0: None}
    return {"simplest": choice["simplest"], "best": programs[numbers[bucket.key]], "others": []}


def write(path: Path, key: Mapping[str, Any], saved: SavedPlan) -> None:
    """Raises OSError, SafetensorError or ValueError."""
    said = {"key": key, "plan": saved.plan.to_json(), "choices": saved.choices}
    metadata = {name: json.dumps(value, allow_nan=False) for name, value in said.items()}
    save_file(dict(saved.tensors), path, sealed(metadata))


def sealed(metadata: Mapping[str, str]) -> dict[str, str]:
    """With the digest of all of it."""
    said = {name: text for name, text in metadata.items() if name != "digest"}
    return said | {"digest": sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()}


def read(path: Path, key: Mapping[str, Any]) -> SavedPlan:
    """Raises FileNotFoundError, OSError, SafetensorError, KeyError, TypeError, ValueError or RecursionError."""
    with safe_open(path, framework="pt") as file:
        said = file.metadata()
        if json.loads(said["key"]) != json.loads(json.dumps(key)):
            raise ValueError("the key inside does not match")
        if sealed(said) != said:
            raise ValueError("it is damaged")
        plan = Plan.from_json(json.loads(said["plan"]))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if damaged := [name for name, tensor in tensors.items() if content_digest(tensor) != name]:
            raise ValueError(f"{len(damaged)} damaged tensors")
        return SavedPlan(plan, json.loads(said["choices"]), tensors)


class PlanStore:
    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def path(self, model: str, key: Mapping[str, Any]) -> Path:
        digest = sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return self._directory / f"{model}-{digest[:24]}.safetensors"

    def load(self, model: str, key: Mapping[str, Any]) -> SavedPlan | None:
        """The plan saved under ``key``; None where there is none. A damaged file is ignored with a warning."""
        path = self.path(model, key)
        try:
            return read(path, key)
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
            log.warning("ignoring the saved plan %s: %s", path.name, error)
            return None

    def check(self, model: str) -> None:
        """Says before a search, which may take minutes, that its plan cannot be saved."""
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._directory):
                pass
        except OSError as error:
            log.warning("the plan of %s cannot be saved, so every start searches for it: %s", model, error)

    def save(self, key: Mapping[str, Any], saved: SavedPlan) -> None:
        """Atomic, so that a server that starts meanwhile reads a whole file or none. A full disk is only a warning."""
        path = self.path(saved.plan.model, key)
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._directory) as folder:
                whole = Path(folder) / path.name
                write(whole, key, saved)
                whole.replace(path)
        except (OSError, SafetensorError, ValueError) as error:
            log.warning("the plan of %s is not saved: %s", saved.plan.model, error)
