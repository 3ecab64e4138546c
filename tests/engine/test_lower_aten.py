"""The ATen lowering against eager, against storages as they really change, and against modules it must refuse."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from opara_server.engine.errors import LoweringError, ModelError
from opara_server.engine.export import export_dynamic, export_static
from opara_server.engine.flat_module import FlatModule
from opara_server.engine.graph import Buffer, Kind
from opara_server.engine.lower_aten import lower
from opara_server.engine.program import Environment, Program, Ref
from opara_server.engine.spec import TensorSpec
from opara_server.engine.tensors import fill_random, static_inputs
from tests.engine.models import ROW, ZOO, Branches, Case, ConvBranches, Counter, Function, Weights, of

pytestmark = pytest.mark.filterwarnings("ignore:The tensor attributes self.lstm")  # torch.export about any LSTM
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def inputs_of(specs: tuple[TensorSpec, ...], rows: int) -> tuple[Tensor, ...]:
    return static_inputs(specs, rows, CPU, channels_last=False)


def lowered(case: Case, rows: int = 4) -> Program:
    inputs = inputs_of(case.inputs, rows)
    return lower(export_static(case.build().eval(), inputs), inputs)


def assert_same_as_eager(program: Program, flat: FlatModule) -> None:
    for _ in range(2):
        fill_random(program.inputs, flat.inputs)
        expected = flat(*[tensor.clone() for tensor in program.inputs])
        found = program.run_in_order()
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        for output in found:  # the next run's inputs must not show in it, and the caller may overwrite it
            assert not any(shares_storage(output, tensor) for tensor in program.fixed.values())
            output.copy_(output.clone())  # raises on a tensor that was expanded


def shares_storage(a: Tensor, b: Any) -> bool:
    return isinstance(b, Tensor) and a.untyped_storage()._cdata == b.untyped_storage()._cdata


@pytest.mark.parametrize("name", ZOO)
def test_one_program_per_batch_size_from_a_dynamic_export(name: str) -> None:
    case = ZOO[name]
    module = case.build().eval()
    exported = export_dynamic(module, inputs_of(case.inputs, 4))
    assert (exported is not None) == case.dynamic
    if exported is None:
        return
    for rows in (2, 3, 4):
        flat = FlatModule(module, case.inputs, rows, CPU, channels_last=False)
        assert_same_as_eager(lower(exported, inputs_of(case.inputs, rows)), flat)


@pytest.mark.parametrize("name", ZOO)
def test_static_export(name: str) -> None:
    case = ZOO[name]
    module = case.build().eval()
    for rows in (4,) if name == "batch size fixed" else (1, 4):
        inputs = inputs_of(case.inputs, rows)
        flat = FlatModule(module, case.inputs, rows, CPU, channels_last=False)
        assert_same_as_eager(lower(export_static(module, inputs), inputs), flat)


@pytest.mark.parametrize("name", ZOO)
def test_edges_are_those_of_storages_as_they_change(name: str) -> None:
    program = lowered(ZOO[name])
    accesses = observed_accesses(program)
    past = [0] * len(program.graph)
    for second, (after, touched_after) in enumerate(accesses):
        for first, (before, touched_before) in enumerate(accesses[:second]):
            if any(
                touched_before[s] & touched_after[s]
                for s in touched_before.keys() & touched_after.keys() & (before | after)
            ):
                past[second] |= past[first] | 1 << first
    closure = program.graph.descendants
    for first in range(len(program.graph)):
        assert closure[first] == sum(1 << second for second, p in enumerate(past) if p >> first & 1), first


def observed_accesses(program: Program) -> list[tuple[set[int], dict[int, set[int]]]]:
    """Per operator the storages that are new or have other bytes after it, and by storage the bytes that its arguments
    cover; of a new one all."""
    environment = program.new_environment()
    everything: dict[int, Tensor] = {}
    found = []
    for operator, body in enumerate(program.bodies):
        references_in = [ref for call in body for ref in references((call.args, dict(call.kwargs)))]
        touched: dict[int, set[int]] = {}
        for tensor in tensors_in([environment[ref.value] for ref in references_in]):
            touched.setdefault(storage_of(tensor), set()).update(places_of(tensor))
        collect(environment, everything)
        before = {storage: bytes_of(tensor) for storage, tensor in everything.items()}
        program.run(operator, environment)
        collect(environment, everything)
        new = everything.keys() - before
        changed = {s for s in before if not torch.equal(before[s], bytes_of(everything[s]))}
        touched.update({s: set(range(everything[s].untyped_storage().nbytes())) for s in new})
        found.append((changed | new, touched))
    return found


def places_of(tensor: Tensor) -> set[int]:
    """The bytes of its storage that hold its elements."""
    size = tensor.element_size()
    numbers = torch.arange(tensor.untyped_storage().nbytes() // size)
    elements = numbers.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).flatten().tolist()
    return {element * size + byte for element in elements for byte in range(size)}


def references(arguments: Any) -> Iterator[Ref]:
    if isinstance(arguments, Ref):
        yield arguments
    elif isinstance(arguments, (list, tuple)):
        for item in arguments:
            yield from references(item)
    elif isinstance(arguments, dict):
        yield from references(list(arguments.values()))


def tensors_in(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for item in values:
            yield from tensors_in(item)


def storage_of(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def collect(environment: Environment, everything: dict[int, Tensor]) -> None:
    for tensor in tensors_in(environment):
        everything.setdefault(storage_of(tensor), tensor)


def bytes_of(tensor: Tensor) -> Tensor:
    return torch.tensor(tensor.untyped_storage().tolist())


def operators(case: Case) -> list[tuple[str, tuple[int, ...]]]:
    graph = lowered(case).graph
    names = [operator.target.removeprefix("aten.").partition(".")[0] for operator in graph.operators]
    return list(zip(names, graph.predecessors, strict=True))


def write_after_read(x: Tensor) -> Tensor:
    y = x * 2
    left = y.sin()
    right = y[:, :2].cos()
    y.add_(1)
    return left + right.sum() + y


def two_halves(x: Tensor) -> Tensor:
    made = x.new_empty(x.shape)
    made[:, :4] = x[:, 4:]
    made[:, 4:] = x[:, :4]
    return made * 2


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (of(lambda x: x.sin().cos()), [("sin", ()), ("cos", (0,))]),
        (of(lambda x: x.sin() + x.cos()), [("sin", ()), ("cos", ()), ("add", (0, 1))]),
        (of(lambda x: x.view(-1, 2, 4)[:, 0].t().detach().sin()), [("sin", ())]),
        (of(lambda x: torch.relu_(x * 2).exp()), [("mul", ()), ("relu_", (0,)), ("exp", (1,))]),
        (
            of(write_after_read),
            [
                ("mul", ()),
                ("sin", (0,)),
                ("cos", (0,)),
                ("add_", (0, 1, 2)),
                ("sum", (2,)),
                ("add", (1, 4)),
                ("add", (5, 3)),
            ],
        ),
        (of(two_halves), [("copy_", ()), ("copy_", ()), ("mul", (0, 1))]),
        (of(lambda x: x + torch.arange(8) + torch.zeros(8).exp()), [("add", ()), ("add", (0,))]),
        (of(lambda x: x + torch.rand(8)), [("rand", ()), ("add", (0,))]),
        (of(lambda x: x + torch.zeros(8).add_(1)), [("zeros", ()), ("add_", (0,)), ("add", (1,))]),
        (of(lambda x: x), [("clone", ())]),
        (Case(Weights), [("mul", ()), ("clone", ())]),
    ],
)
def test_operators_and_predecessors(case: Case, expected: list[tuple[str, tuple[int, ...]]]) -> None:
    assert [(name, set(sources)) for name, sources in operators(case)] == [(n, set(s)) for n, s in expected]


def test_allocations_become_explicit_buffers_in_the_arena() -> None:
    program = lowered(of(two_halves))
    (placed,) = program.arena
    assert program.graph.buffers[placed.buffer] == Buffer(4 * 8 * 4, Kind.ARENA)
    assert [placed.buffer in operator.writes for operator in program.graph.operators] == [True, True, False]
    assert program.graph.operators[2].reads == (placed.buffer,)


def test_outputs_are_never_in_the_arena() -> None:
    """The caller reads them after the run, when a graph of another batch size may have replayed."""
    program = lowered(ZOO["copied into empty"])
    assert program.arena == ()
    assert program.allocations[0].target is torch.ops.aten.empty_strided.default
    assert Kind.ARENA not in {buffer.kind for buffer in program.graph.buffers}
    assert not shares_storage(*program.run_in_order(), *program.run_in_order())


@pytest.mark.parametrize("name", ZOO)
def test_released_buffers_leave_nothing_behind(name: str) -> None:
    program = lowered(ZOO[name])
    environment = program.new_environment()
    for operator in range(len(program.graph)):
        program.run(operator, environment)
    for buffer, properties in enumerate(program.graph.buffers):
        if properties.kind is Kind.ACTIVATION:
            program.release(buffer, environment)
    keep = {storage_of(tensor) for tensor in [*tensors_in(list(program.fixed.values())), *program.results(environment)]}
    assert {storage_of(tensor) for tensor in tensors_in(environment)} <= keep


def test_the_program_keeps_the_weights_alive() -> None:
    inputs = inputs_of(ROW, 4)
    module = Branches().eval()
    expected = module(*inputs)
    program = lower(export_static(module, inputs), inputs)
    del module
    gc.collect()
    torch.testing.assert_close(program.run_in_order(), (expected,))


def test_the_trial_run_keeps_no_activations() -> None:
    program = lowered(Case(ConvBranches, ZOO["conv branches"].inputs))
    kinds = {
        program.graph.buffers[b].kind
        for b, values in enumerate(program.buffer_values)
        if program.fixed.keys() & {*values}
    }
    assert kinds <= {Kind.INPUT, Kind.CONSTANT}


def test_a_written_buffer_is_a_model_error() -> None:
    with pytest.raises(ModelError, match=r"writes to 'calls' while it runs .*models\.py"):
        lowered(Case(Counter))


def branch_on_data(x: Tensor) -> Tensor:
    if x.sum() > 0:
        return x
    return -x


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (branch_on_data, r"torch\.export: Could not guard .* in branch_on_data: if x\.sum\(\) > 0:"),
        (
            lambda x: x * x.sum().item(),
            r"aten\.item\.default makes a number or a shape of data \(at .*models\.py.* in forward",
        ),
        (lambda x: x + x[x > 0].sum(), r"aten\.index\.Tensor makes a number or a shape of data"),
        (lambda x: x + x.nonzero().shape[0], r"aten\.nonzero\.default makes a number or a shape of data"),
        (
            lambda x: torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,)),
            r"cond cannot be taken apart into operators \(at [^<]*models\.py[^<]* in forward",
        ),
    ],
)
def test_what_depends_on_data_is_refused_with_the_models_own_line(function: Any, message: str) -> None:
    inputs = inputs_of(ROW, 4)
    with pytest.raises(LoweringError, match=message):
        lower(export_static(Function(function).eval(), inputs), inputs)


def test_disabled_autocast_is_inlined_and_enabled_is_not() -> None:
    class Autocast(nn.Module):
        def __init__(self, enabled: bool) -> None:
            super().__init__()
            self.enabled = enabled

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.enabled):
                return x @ x.t()

    assert [name for name, _ in operators(Case(lambda: Autocast(False)))] == ["matmul"]
    with pytest.raises(LoweringError, match="wrap_with_autocast cannot be taken apart"):
        lowered(Case(lambda: Autocast(True)))
