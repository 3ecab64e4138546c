"""The search for what runs best: in a child process on a GPU, here on a CPU.

On a GPU the search captures graphs and destroys the losers, which can corrupt graphs that live
(pytorch/pytorch#193402), and compiles for minutes. A child does both: it is given the exported programs and gives back
a saved plan. Several children compile at once, a share of the batch sizes each; then they measure in turn.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from opara_server.engine.errors import EngineError, LoweringError
from opara_server.engine.options import BuildOptions
from opara_server.engine.plan import Plan
from opara_server.engine.plan_store import SavedPlan, read
from opara_server.engine.spec import TensorSpec
from opara_server.engine.tensors import float32_precision

log = logging.getLogger(__name__)

CORES_PER_CHILD = 4  # Triton compiles in processes of its own
MEASURE = "measure\n"  # what a child waits for once it has compiled
RESULT = "result.safetensors"

Progress = Callable[[str, float], None]


class TuningError(EngineError):
    """The search did not end as it should."""


@dataclass(frozen=True)
class Request:
    """What one child is told, besides the exported programs. ``imports``: modules that may define operators."""

    name: str
    device: str
    inputs: tuple[TensorSpec, ...]
    options: BuildOptions
    buckets: tuple[int, ...]
    exports: Mapping[int, str]  # by batch size the file
    imports: tuple[str, ...]
    float32: tuple[str, str]

    def dumps(self) -> str:
        return json.dumps(asdict(self) | {"options": asdict(self.options) | {"cache_dir": None}})

    @classmethod
    def loads(cls, text: str) -> Request:
        data: dict[str, Any] = json.loads(text)
        options = data["options"] | {"batch_sizes": tuple(data["options"]["batch_sizes"])}
        return cls(
            data["name"],
            data["device"],
            tuple(TensorSpec(**{**spec, "shape": tuple(spec["shape"])}) for spec in data["inputs"]),
            BuildOptions(**options),
            tuple(data["buckets"]),
            {int(bucket): file for bucket, file in data["exports"].items()},
            tuple(data["imports"]),
            (data["float32"][0], data["float32"][1]),
        )


def tune_in_children(
    name: str,
    device: str,
    inputs: Sequence[TensorSpec],
    exports: Mapping[int, ExportedProgram],
    options: BuildOptions,
    imports: Sequence[str],
    progress: Progress,
) -> SavedPlan:
    """The plan for all batch sizes of ``exports``, as if it had been saved.

    Raises LoweringError where a child could not even have the simplest programs, TuningError where one fails.
    """
    with tempfile.TemporaryDirectory(prefix="opara-tuning-") as folder:
        files = _save(exports, Path(folder))
        count = max(1, min(len(exports), (os.cpu_count() or 1) // CORES_PER_CHILD))
        shares = [tuple(sorted(exports, reverse=True)[first::count]) for first in range(count)]
        requests = [
            Request(name, device, tuple(inputs), options, share, files, tuple(imports), float32_precision())
            for share in shares
        ]
        with _children(requests, Path(folder)) as children:
            for number, child in enumerate(children):
                child.wait_until("compiled", progress, 0.6 * number / count)
            for number, child in enumerate(children):
                child.measure()
                child.wait_until("measured", progress, 0.6 + 0.4 * number / count)
            return _joined([read(child.folder / RESULT, {}) for child in children])


def _save(exports: Mapping[int, ExportedProgram], folder: Path) -> dict[int, str]:
    files: dict[int, str] = {}
    saved: dict[int, str] = {}
    for bucket, exported in exports.items():
        if id(exported) not in saved:
            saved[id(exported)] = str(folder / f"{bucket}.pt2")
            torch.export.save(exported, saved[id(exported)])
        files[bucket] = saved[id(exported)]
    return files


def _joined(parts: Sequence[SavedPlan]) -> SavedPlan:
    first = parts[0].plan
    buckets = sorted((bucket for part in parts for bucket in part.plan.buckets), key=lambda b: b.batch_size)
    choices = {size: choice for part in parts for size, choice in part.choices.items()}
    tensors = {digest: tensor for part in parts for digest, tensor in part.tensors.items()}
    return SavedPlan(Plan(first.model, first.device, first.device_name, tuple(buckets)), choices, tensors)


class _Child:
    """Its words come on stdout, a JSON object a line; what it logs goes where this process logs."""

    def __init__(self, request: Request, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "request.json").write_text(request.dumps())
        path = os.pathsep.join(entry for entry in sys.path if entry)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "opara_server.engine.tuning_child", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )

    def measure(self) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(MEASURE)
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise TuningError("the search ended before it measured") from error

    def wait_until(self, state: str, progress: Progress, share: float) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            said = json.loads(line)
            if "refused" in said:
                raise LoweringError(said["refused"])
            if "failed" in said:
                raise TuningError(said["failed"])
            if said.get("state") == state:
                return
            progress(said["doing"], share)
        raise TuningError(f"the search ended with exit code {self.process.wait()}")


@contextmanager
def _children(requests: Sequence[Request], folder: Path) -> Iterator[list[_Child]]:
    children: list[_Child] = []
    try:
        for number, request in enumerate(requests):
            children.append(_Child(request, folder / str(number)))
        yield children
    finally:
        for child in children:
            with child.process as process:  # waits, and closes the pipes
                process.kill()
