"""What can be known of the fused lowering without a GPU; the rest is in tests/gpu/test_fused.py."""

from __future__ import annotations

import pytest
import torch

from opara_server.engine.errors import LoweringError
from opara_server.engine.export import export_static
from opara_server.engine.lower_fused import VARIANTS, lower_fused
from opara_server.engine.options import FUSED
from opara_server.engine.rewrites import PASSES, Weights
from opara_server.engine.tensors import static_inputs
from tests.engine.models import ZOO


def test_every_lowering_of_the_options_has_its_variant_of_passes_that_exist_in_their_order() -> None:
    assert tuple(VARIANTS) == FUSED
    places = {name: place for place, name in enumerate(PASSES)}
    for variant in VARIANTS.values():
        order = [places[name] for name in variant.rewrites]
        assert order == sorted(set(order))


def test_on_a_cpu_it_is_refused() -> None:
    case = ZOO["chain"]
    inputs = static_inputs(case.inputs, 2, torch.device("cpu"), channels_last=False)
    exported = export_static(case.build().eval(), inputs)
    with pytest.raises(LoweringError, match="for GPUs only"):
        lower_fused(exported, inputs, "fused", Weights())
