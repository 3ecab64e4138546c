"""The search for what runs best: in a child process on a GPU, here on a CPU.

On a GPU the search compiles for minutes, and captures dozens of graphs of which one is kept. A child does both, and
takes with it what it loaded: it is given the exported programs and gives back a saved plan. Several children compile at
once, a share of the batch sizes each; then they measure in turn.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from opara_server.engine.child_process import Child
from opara_server.engine.compiled import MEASURING, Progress
from opara_server.engine.errors import LoweringError, TuningError, first_line
from opara_server.engine.options import BuildOptions
from opara_server.engine.plan import Plan
from opara_server.engine.plan_store import SavedPlan, read
from opara_server.engine.spec import TensorSpec
from opara_server.engine.tensors import float32_precision

log = logging.getLogger(__name__)

CORES_PER_CHILD = 4  # Triton compiles in processes of its own
CHILD_BYTES = 2 << 30  # of GPU memory: CUDA's context, libraries' workspaces, activations
WEIGHTS_PER_CHILD = 6  # copies of the weights: the module's, and what each lowering makes of them
SLACK_S = 600.0  # beyond twice the tuning budget: one variant may take minutes, and the budget ends none
FORGOTTEN_S = 86_400.0  # no search takes as long
MEASURE = "measure\n"  # what a child waits for once it has compiled
RESULT = "result.safetensors"
FOLDER = "opara-tuning-"  # what the names of the folders begin with that are shared with children


@dataclass(frozen=True)
class Request:
    """What one child is told, besides the exported programs. ``imports``: modules that may define operators."""

    name: str
    device: str
    gpu: int | None  # its number
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
            data["gpu"],
            tuple(TensorSpec(**{**spec, "shape": tuple(spec["shape"])}) for spec in data["inputs"]),
            BuildOptions(**options),
            tuple(data["buckets"]),
            {int(bucket): file for bucket, file in data["exports"].items()},
            tuple(data["imports"]),
            (data["float32"][0], data["float32"][1]),
        )


def tune_in_children(
    name: str,
    device: torch.device,
    inputs: Sequence[TensorSpec],
    exports: Mapping[int, ExportedProgram],
    options: BuildOptions,
    imports: Sequence[str],
    progress: Progress,
) -> SavedPlan:
    """The plan for all batch sizes of ``exports``, as if it had been saved.

    ``progress`` is called every second at least; what it raises ends the search. It may wait when first told of
    MEASURING: all children have compiled then, and none measures. Raises LoweringError where a child could not even
    have the simplest programs, TuningError where anything else goes wrong.
    """
    with _failures_told():
        _sweep(Path(tempfile.gettempdir()))
        shared = tempfile.TemporaryDirectory(prefix=f"{FOLDER}{os.getpid()}-", ignore_cleanup_errors=True)
    with shared as name_of_folder:
        folder = Path(name_of_folder)
        with _failures_told():
            files = _save(exports, folder)
        count = _children_at_once(exports, device)
        shares = [tuple(sorted(exports, reverse=True)[first::count]) for first in range(count)]
        first = Request(
            name, device.type, device.index, tuple(inputs), options, (), files, tuple(imports), float32_precision()
        )
        requests = [replace(first, buckets=share) for share in shares]
        with _children(requests, folder) as children:
            conversation = _Conversation(progress, SLACK_S + 2 * options.tuning_budget_s)
            for number, child in enumerate(children):
                conversation.until(child, "compiled", 0.6 * number / count, 0.6 / count)
            conversation.pause(f"{MEASURING} batch size {shares[0][0]}", 0.6)
            for number, child in enumerate(children):
                child.tell(MEASURE)
                conversation.until(child, "measured", 0.6 + 0.4 * number / count, 0.4 / count)
            with _failures_told():
                return _joined([read(child.folder / RESULT, {}) for child in children])


@contextmanager
def _failures_told() -> Iterator[None]:
    """Whatever it is (a full disk, no folder for temporary files, a module that cannot be saved): the model can run all
    the same."""
    try:
        yield
    except Exception as error:
        raise TuningError(f"{type(error).__name__}: {first_line(error)}") from error


def _children_at_once(exports: Mapping[int, ExportedProgram], device: torch.device) -> int:
    """As many as the cores this process may use and the GPU's free memory have room for."""
    count = min(len(exports), len(os.sched_getaffinity(0)) // CORES_PER_CHILD)
    if device.type == "cuda":
        weights = max(sum(t.nbytes for t in exported.state_dict.values()) for exported in exports.values())
        free, _ = torch.cuda.mem_get_info(device)
        count = min(count, int(free // (CHILD_BYTES + WEIGHTS_PER_CHILD * weights)))
    return max(1, count)


def _sweep(parent: Path) -> None:
    """Remove old folders of processes that ended so hard that they could not: there are a model's weights in them.
    Old, because a process that is not seen here may live in another container."""
    for folder in parent.glob(f"{FOLDER}*-*"):
        owner = folder.name.removeprefix(FOLDER).split("-")[0]
        with suppress(FileNotFoundError):
            old = time.time() - folder.stat().st_mtime > FORGOTTEN_S
            if old and owner.isdigit() and not Path("/proc", owner).exists():
                shutil.rmtree(folder, ignore_errors=True)


def _save(exports: Mapping[int, ExportedProgram], folder: Path) -> dict[int, str]:
    files: dict[int, str] = {}
    saved: dict[int, str] = {}
    for bucket, exported in exports.items():
        if id(exported) not in saved:
            saved[id(exported)] = str(folder / f"{bucket}.pt2")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of weights in channels_last, which are saved whole all the same
                torch.export.save(exported, saved[id(exported)])
        files[bucket] = saved[id(exported)]
    return files


def _joined(parts: Sequence[SavedPlan]) -> SavedPlan:
    first = parts[0].plan
    buckets = sorted((bucket for part in parts for bucket in part.plan.buckets), key=lambda b: b.batch_size)
    choices = {size: choice for part in parts for size, choice in part.choices.items()}
    tensors = {digest: tensor for part in parts for digest, tensor in part.tensors.items()}
    return SavedPlan(Plan(first.model, first.device, first.device_name, tuple(buckets)), choices, tensors)


class _Conversation:
    """With all children of one search, for ``seconds``, pauses aside."""

    def __init__(self, progress: Progress, seconds: float) -> None:
        self._progress = progress
        self._end = time.monotonic() + seconds
        self._warned: set[str] = set()

    def pause(self, what: str, share: float) -> None:
        """For as long as ``progress`` wants."""
        begin = time.monotonic()
        self._progress(what, share)
        self._end += time.monotonic() - begin

    def until(self, child: Child, state: str, begin: float, width: float) -> None:
        """Returns once it is in that state; ``begin`` and ``width``: of the whole, the share that this is."""
        doing, share = "searching", begin
        while True:
            self._progress(doing, share)
            said = child.hear(1.0)
            if said is None and time.monotonic() > self._end:
                raise TuningError("the search takes too long")
            said = said or {}
            if "refused" in said:
                raise LoweringError(said["refused"])
            if "failed" in said:
                raise TuningError(said["failed"])
            if said.get("state") == state:
                return
            if "warned" in said and said["warned"] not in self._warned:
                self._warned.add(said["warned"])
                log.warning("%s", said["warned"])
            if "doing" in said:
                doing, share = said["doing"], begin + width * said["share"]


@contextmanager
def _children(requests: Sequence[Request], folder: Path) -> Iterator[list[Child]]:
    children: list[Child] = []
    try:
        with _failures_told():
            for number, request in enumerate(requests):
                own = folder / str(number)
                own.mkdir()
                (own / "request.json").write_text(request.dumps())
                children.append(Child("opara_server.engine.tuning_child", own))
        yield children
    finally:
        for child in children:
            child.kill()
        for child in children:
            child.forget()
