"""EngineError
├── LoweringError       the module's operators cannot be had (it may still run as one sequential graph)
├── CaptureError        the device refused to capture or replay
├── VerificationError   the captured graph's numbers are wrong
├── TuningError         the search for what runs fastest did not end as it should (the model still runs)
├── ModelError          the module itself cannot be served: its forward fails, or its outputs have no batch dimension
└── DeviceError         the device asked for is not there

The texts are for logs and for the person who loads the model, never for the wire.
"""

import sys
import traceback

NOT_THE_MODELS = {"torch", "opara_server", *sys.stdlib_module_names}  # packages


def first_line(error: BaseException) -> str:
    """Of an error's text, which for PyTorch's may run to pages; its type where there is no text."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def explained(error: BaseException) -> str:
    """What the model's own code raised, and where, in one line."""
    kind, text, line = type(error).__name__, first_line(error), model_line(error)
    return f"{kind}{'' if text == kind else f': {text}'}{f' (at {line})' if line else ''}"


def model_line(error: BaseException) -> str:
    """Where in the model's own code the error arose: the innermost frame outside PyTorch, Python and this package."""
    frames = [
        summary
        for (frame, _), summary in zip(
            traceback.walk_tb(error.__traceback__), traceback.extract_tb(error.__traceback__), strict=True
        )
        if str(frame.f_globals.get("__name__")).partition(".")[0] not in NOT_THE_MODELS
        and not summary.filename.startswith("<")
    ]
    return f"{frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name}: {frames[-1].line}" if frames else ""


class EngineError(Exception):
    """Anything that keeps the engine from making a module ready to run."""


class LoweringError(EngineError):
    """The module's operators cannot be had one by one. ``line``: the model's own source line, where known."""

    def __init__(self, reason: str, line: str = "") -> None:
        super().__init__(f"{reason} (at {line})" if line else reason)


class CaptureError(EngineError):
    """The device refused to capture a schedule, or to replay it."""


class VerificationError(EngineError):
    """A captured graph's outputs differ from eager PyTorch's by more than their bound."""


class TuningError(EngineError):
    """The search for what runs fastest did not end as it should."""


class ModelError(EngineError):
    """The module cannot be served whatever the engine does."""


class DeviceError(EngineError):
    """The device asked for is not on this machine."""
