"""EngineError
├── LoweringError       the module's operators cannot be had (it may still run as one sequential graph)
├── CaptureError        the device refused to capture or replay
├── VerificationError   the captured graph's numbers are wrong
├── TuningError         the search for what runs fastest did not end as it should (the model still runs)
├── ModelError          the module itself cannot be served: its forward fails, or its outputs have no batch dimension
└── DeviceError         the device asked for is not there

The texts are for logs and for the person who loads the model, never for the wire.
"""


def first_line(error: BaseException) -> str:
    """Of an error's text, which for PyTorch's may run to pages; its type where there is no text."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


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
