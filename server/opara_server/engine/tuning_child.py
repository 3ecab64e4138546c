"""The child process of a search: ``python -m opara_server.engine.tuning_child FOLDER`` (tuning.py)."""

from __future__ import annotations

import importlib
import json
import logging
import os
import shutil
import sys
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch.export import ExportedProgram

from opara_server.engine import torch_logs
from opara_server.engine.choose import Search, saved_plan
from opara_server.engine.compiled import MEASURING
from opara_server.engine.device import open_device
from opara_server.engine.errors import EngineError, LoweringError, first_line
from opara_server.engine.lowerings import Lowerings
from opara_server.engine.plan_store import write
from opara_server.engine.program import Program
from opara_server.engine.program_json import ProgramWriter
from opara_server.engine.tensors import set_float32_precision, static_inputs
from opara_server.engine.tuning import FOLDER, MEASURE, RESULT, Request

log = logging.getLogger(__name__)


def run(folder: Path) -> int:
    """The exit code. An error is said to the parent, which goes on without the search."""
    parent = _Parent(folder)
    try:
        _search(folder, parent.wants_measured)
    except Exception as error:  # noqa: BLE001 - whatever it is
        if parent.gone.is_set() or isinstance(error, BrokenPipeError) or not folder.exists():
            parent.end()
        _say(**_told(error))
        return 1
    return 0


def _told(error: Exception) -> dict[str, str]:
    if isinstance(error, LoweringError):
        return {"refused": str(error)}
    if isinstance(error, EngineError):
        return {"failed": str(error)}
    log.error("the search failed", exc_info=error)
    return {"failed": f"{type(error).__name__}: {first_line(error)}"}


def _search(folder: Path, wants_measured: threading.Event) -> None:
    request = Request.loads((folder / "request.json").read_text())
    _import(request.imports)
    set_float32_precision(request.float32)
    exports = _load(request)
    if request.gpu is not None:
        torch.cuda.set_device(request.gpu)
    device = open_device(request.device)
    with device.bind(), device.tuning():
        search = Search(Lowerings(request.name, exports), device, request.options, len(request.buckets))
        programs: dict[int, list[Program]] = {}
        where, channels_last = device.torch_device(), request.options.channels_last
        for place, bucket in enumerate(request.buckets):
            _say(doing=f"compiling batch size {bucket}", share=place / len(request.buckets))
            programs[bucket] = search.lower(bucket, static_inputs(request.inputs, bucket, where, channels_last))
        _say(state="compiled")
        wants_measured.wait()
        choices = {}
        for place, bucket in enumerate(request.buckets):
            _say(doing=f"{MEASURING} batch size {bucket}", share=place / len(request.buckets))
            choices[bucket] = search.choose(programs.pop(bucket))
        weights = [pair for exported in exports.values() for pair in exported.state_dict.items()]
        write(folder / RESULT, {}, saved_plan(request.name, device, choices, ProgramWriter(weights)))
    _say(state="measured")


class _Parent:
    """Who wants the result. Once it is ``gone`` nobody does, whatever is being done, and nobody else tidies up."""

    def __init__(self, folder: Path) -> None:
        self.wants_measured = threading.Event()
        self.gone = threading.Event()
        self._shared = folder.parent
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def end(self) -> NoReturn:
        """With the process."""
        self._thread.join()
        raise AssertionError

    def _listen(self) -> NoReturn:
        for line in sys.stdin:
            if line == MEASURE:
                self.wants_measured.set()
        self.gone.set()
        if self._shared.name.startswith(FOLDER):
            shutil.rmtree(self._shared, ignore_errors=True)
        os._exit(1)


def _load(request: Request) -> dict[int, ExportedProgram]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of buffers that cannot be written to, which nobody does
        loaded: dict[str, Any] = {file: torch.export.load(file) for file in set(request.exports.values())}
    return {bucket: loaded[file] for bucket, file in request.exports.items()}


def _import(names: Sequence[str]) -> None:
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001 - a module of the user's may raise anything; most define no operator
            log.debug("%s cannot be imported here: %s", name, first_line(error))


class _Warnings(logging.Handler):
    """To the parent, which knows what other children have said."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        _say(warned=record.getMessage() + (f": {type(error).__name__}: {first_line(error)}" if error else ""))


_channel = sys.stdout


def _say(**words: str | float) -> None:
    print(json.dumps(words), file=_channel, flush=True)


if __name__ == "__main__":
    _channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not for the parent
    logging.getLogger().addHandler(_Warnings(logging.WARNING))
    logging.captureWarnings(True)
    torch_logs.join_others()
    sys.exit(run(Path(sys.argv[1])))
