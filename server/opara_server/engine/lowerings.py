"""Which programs a model can run as, per batch size: the simplest first, then those of fused kernels."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence

from torch import SymInt, Tensor
from torch.export import ExportedProgram

from opara_server.engine.errors import LoweringError
from opara_server.engine.export import export_static
from opara_server.engine.lower_aten import lower
from opara_server.engine.lower_fused import NoVariantError, lower_fused
from opara_server.engine.options import COMPANY_OF
from opara_server.engine.program import Program
from opara_server.engine.rewrites import Weights
from opara_server.engine.rewrites.convolution_operator import CONVOLUTION

log = logging.getLogger(__name__)


class Lowerings:
    """What can be made of one model's ``exports``, by batch size."""

    def __init__(self, name: str, exports: Mapping[int, ExportedProgram]) -> None:
        self.name = name
        self._told: set[str] = set()  # why lowerings could not be had
        self._no_variant = False
        self._exports = exports
        self._weights = Weights()

    def simplest(self, bucket: int, inputs: Sequence[Tensor]) -> Program:
        """Of ATen operators. Raises LoweringError."""
        return lower(self._exports[bucket], inputs)

    def fused(self, bucket: int, inputs: Sequence[Tensor], names: Sequence[str]) -> Iterator[Program]:
        """Each is made when it is asked for, unless it would be another over again. Why others cannot be had is said
        once per reason."""
        exported = self._exports[bucket]
        choosing: dict[str, bool] = {}  # whether there are convolutions in it that choose plans
        for lowering in names:
            if self._no_variant:
                return
            if not choosing.get(COMPANY_OF.get(lowering, ""), True):
                continue
            try:
                if _is_dynamic(exported):
                    exported = export_static(exported.module(), inputs)
                program = lower_fused(exported, inputs, lowering, self._weights)
                choosing[lowering] = any(one.target == str(CONVOLUTION) for one in program.graph.operators)
                yield program
            except LoweringError as error:
                reason = str(error)
                if reason not in self._told:
                    log.warning("%s: no %s lowering: %s", self.name, lowering, reason)
                self._told.add(reason)
                self._no_variant = isinstance(error, NoVariantError)


def _is_dynamic(exported: ExportedProgram) -> bool:
    """Whether it is for several batch sizes."""
    values = [node.meta.get("val") for node in exported.graph.find_nodes(op="placeholder")]
    return any(isinstance(size, SymInt) for value in values if isinstance(value, Tensor) for size in value.shape)
