"""Which programs a model can run as, per batch size: the simplest first, then those of fused kernels."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor
from torch.export import ExportedProgram

from opara_server.engine.device import Device
from opara_server.engine.errors import LoweringError
from opara_server.engine.export import export_dynamic, export_static
from opara_server.engine.flat_module import FlatModule
from opara_server.engine.lower_aten import lower
from opara_server.engine.lower_fused import lower_fused
from opara_server.engine.lower_whole import lower_whole
from opara_server.engine.options import ATEN, AUTO, FUSED, OPT_IN, BuildOptions
from opara_server.engine.program import Program
from opara_server.engine.rewrites import Weights
from opara_server.engine.tensors import static_inputs

log = logging.getLogger(__name__)


class Lowerings:
    """One model's exports and what can be made of them. ``fallback_reason``: why it runs as a whole, or empty.
    ``refused``: by lowering, why it is not to be had."""

    def __init__(self, name: str, flat: FlatModule, device: Device, options: BuildOptions) -> None:
        self.fallback_reason = ""
        self.refused: dict[str, str] = {}
        self._name = name
        self._flat = flat
        self._device = device
        self._options = options
        self._weights = Weights()
        self._exports: dict[int, ExportedProgram] = {}  # by the batch size it was made for; the largest may be dynamic

    def inputs(self, bucket: int) -> tuple[Tensor, ...]:
        return static_inputs(self._flat.inputs, bucket, self._device.torch_device(), self._options.channels_last)

    def exports(self, buckets: Sequence[int]) -> list[ExportedProgram]:
        """Those that the simplest programs of ``buckets`` are made of, largest first; empty where there is none, and
        the model runs as a whole."""
        dynamic = export_dynamic(self._flat.module, self.inputs(max(buckets)))
        try:
            for bucket in sorted(buckets, reverse=True):
                fits = dynamic if bucket > 1 else None
                self._exports[bucket] = fits or export_static(self._flat.module, self.inputs(bucket))
        except LoweringError as error:
            self._runs_as_a_whole(error)
            return []
        return list({id(exported): exported for exported in self._exports.values()}.values())

    def simplest(self, buckets: Sequence[int]) -> dict[int, Program]:
        """All batch sizes by their ATen operators, or, where that fails for one, all as a whole. After ``exports``."""
        if not self.fallback_reason:
            try:
                return {bucket: lower(self._exports[bucket], self.inputs(bucket)) for bucket in buckets}
            except LoweringError as error:
                self._runs_as_a_whole(error)
        weights = [*self._flat.module.parameters(), *self._flat.module.buffers()]
        return {bucket: lower_whole(self._flat, weights, self.inputs(bucket)) for bucket in buckets}

    def _runs_as_a_whole(self, error: LoweringError) -> None:
        self.fallback_reason = str(error)
        log.warning("%s runs as one sequential graph: %s", self._name, error)

    def wanted(self) -> Sequence[str]:
        """The names of the fused lowerings that the options ask for."""
        if self._options.lowering == AUTO:
            return [name for name in FUSED if name not in OPT_IN] if self._device.kind == "cuda" else []
        return [] if self._options.lowering == ATEN else [self._options.lowering]

    def fused(self, bucket: int, names: Iterable[str]) -> Iterator[Program]:
        """Each is made when it is asked for. What cannot be had is said once."""
        for lowering in names:
            if self.fallback_reason or lowering in self.refused:
                continue
            try:
                inputs = self.inputs(bucket)
                yield lower_fused(export_static(self._flat.module, inputs), inputs, lowering, self._weights)
            except LoweringError as error:
                self.refused[lowering] = str(error)
                log.warning("%s: no %s lowering: %s", self._name, lowering, error)
