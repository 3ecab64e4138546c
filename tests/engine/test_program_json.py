"""Programs that are written down and read again compute the same and share what they had in common."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from opara_server.engine.export import export_static
from opara_server.engine.kernel import KernelCode, KernelLaunch
from opara_server.engine.lower_aten import lower
from opara_server.engine.program import Call, Program, Ref
from opara_server.engine.program_json import ProgramReader, ProgramWriter, UnsavableError
from opara_server.engine.tensors import fill_random, static_inputs
from tests.engine.models import ROW, ZOO, Case, Function, Weights
from tests.engine.programs import program_of

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def lowered(module: nn.Module, case: Case, rows: int) -> Program:
    inputs = static_inputs(case.inputs, rows, CPU, channels_last=False)
    return lower(export_static(module, inputs), inputs)


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def reread(data: Any, writer: ProgramWriter, weights: dict[str, Tensor], inputs: Sequence[Tensor]) -> Program:
    return ProgramReader(weights, writer.tensors, CPU).read(json.loads(json.dumps(data, allow_nan=False)), inputs)


@pytest.mark.filterwarnings("ignore:The tensor attributes self.lstm")
@pytest.mark.parametrize("name", ZOO)
def test_what_is_read_computes_what_was_written(name: str) -> None:
    case = ZOO[name]
    module = case.build().eval()
    program = lowered(module, case, 4)
    writer = ProgramWriter(weights_of(module).items())
    inputs = static_inputs(case.inputs, 4, CPU, channels_last=False)
    again = reread(writer.write(program), writer, weights_of(module), inputs)
    assert (again.graph, again.traffic, again.outputs) == (program.graph, program.traffic, program.outputs)
    for _ in range(2):
        fill_random(inputs, case.inputs)
        for static, fresh in zip(program.inputs, inputs, strict=True):
            static.copy_(fresh)
        torch.testing.assert_close(again.run_in_order(), program.run_in_order(), rtol=0, atol=0)


def test_the_model_s_own_weights_are_told_by_name() -> None:
    case = ZOO["branches"]
    module = case.build().eval()
    writer = ProgramWriter(weights_of(module).items())
    data = writer.write(lowered(module, case, 2))
    assert not writer.tensors
    weights = {name: tensor * 2 for name, tensor in weights_of(module).items()}
    again = reread(data, writer, weights, static_inputs(case.inputs, 2, CPU, channels_last=False))
    storages = {tensor.untyped_storage()._cdata for tensor in weights.values()}
    used = {t.untyped_storage()._cdata for t in again.fixed.values()} - {again.inputs[0].untyped_storage()._cdata}
    assert used == storages


class Folds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight.exp() / 3)


def test_what_is_computed_from_weights_is_there_once_for_all_batch_sizes() -> None:
    case = Case(Folds)
    module = Folds().eval()
    writer = ProgramWriter(weights_of(module).items())
    written = [writer.write(lowered(module, case, rows)) for rows in (2, 4)]
    assert len(writer.tensors) == 1
    reader = ProgramReader(weights_of(module), writer.tensors, CPU)
    both = [
        reader.read(data, static_inputs(ROW, rows, CPU, channels_last=False))
        for data, rows in zip(written, (2, 4), strict=True)
    ]
    storages = [
        {t.untyped_storage()._cdata for t in program.fixed.values()} - {program.inputs[0].untyped_storage()._cdata}
        for program in both
    ]
    assert storages[0] == storages[1]


def test_inputs_of_another_layout_are_refused() -> None:
    case = ZOO["chain"]
    module = case.build().eval()
    writer = ProgramWriter([])
    data = writer.write(lowered(module, case, 4))
    with pytest.raises(ValueError, match="other inputs"):
        reread(data, writer, {}, static_inputs(case.inputs, 3, CPU, channels_last=False))


def test_a_python_function_cannot_be_written_down() -> None:
    with pytest.raises(UnsavableError, match="a call of own"):
        ProgramWriter([]).write(program_of((own, [0])))


def own(x: Tensor) -> Tensor:
    return x + 1


@pytest.mark.parametrize("early", [False, True])
def test_kernels_keep_their_machine_code(early: bool) -> None:
    code = KernelCode("k", b"\x7fELF machine code", 128, 1024)
    launch = KernelLaunch(code, (3, 1, 1), ("pointer", "i32", "fp32", "pointer"), early, flops=640)
    program = lowered(Function(lambda x: x + 1), ZOO["chain"], 4)
    call = Call(launch, (Ref(0), 7, float("inf"), None), {}, program.bodies[0][0].result)
    writer = ProgramWriter([])
    data = writer.write(replace(program, bodies=((call,),)))
    again = reread(data, writer, {}, static_inputs(ROW, 4, CPU, channels_last=False))
    assert again.bodies == ((call,),)
    assert len(writer.tensors) == 1


def test_long_texts_are_there_once_for_all_calls_and_batch_sizes() -> None:
    """Such as the machine code that cuDNN's plans hold: a file's JSON must not grow beyond what safetensors reads."""
    texts = [letter * 20_000 for letter in "ab"]
    program = lowered(Function(lambda x: x + 1), ZOO["chain"], 4)
    target, result = program.bodies[0][0].target, program.bodies[0][0].result
    calls = tuple(Call(target, (Ref(0), text), {"more": [(text, "short")]}, result) for text in (*texts, *texts))
    program = replace(program, bodies=(calls,))
    writer = ProgramWriter([])
    data = [json.loads(json.dumps(writer.write(program), allow_nan=False)) for _ in range(2)]
    assert len(json.dumps(data)) < 20_000
    assert sorted(bytes(kept.tolist()).decode() for kept in writer.tensors.values()) == texts
    reader = ProgramReader({}, writer.tensors, CPU)
    again = [reader.read(one, static_inputs(ROW, 4, CPU, channels_last=False)) for one in data]
    assert [one.bodies for one in again] == [(calls,)] * 2
    assert len({id(call.args[1]) for one in again for call in one.bodies[0]}) == len(texts)


@given(st.text())
@example("é" * 2000)
def test_every_text_is_read_as_it_was_written(text: str) -> None:
    program = program_of((torch.ops.aten.relu.default, [0]))
    calls = (replace(program.bodies[0][0], kwargs={"text": text}),)
    writer = ProgramWriter([])
    data = writer.write(replace(program, bodies=(calls,)))
    assert reread(data, writer, {}, program.inputs).bodies == (calls,)


def test_a_model_whose_weights_are_used_whole() -> None:
    case = Case(Weights)
    module = Weights().eval()
    writer = ProgramWriter(weights_of(module).items())
    program = lowered(module, case, 4)
    again = reread(writer.write(program), writer, weights_of(module), program.inputs)
    torch.testing.assert_close(again.run_in_order(), program.run_in_order(), rtol=0, atol=0)


def test_conjugate_and_negative_views_of_an_input_are_views_again() -> None:
    def parts(x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.view(-1, 4, 2))
        return torch.cat([pairs.conj().imag, (pairs.conj() * (1 + 2j)).real], 1)

    case = Case(lambda: Function(parts))
    program = lowered(case.build(), case, 4)
    inputs = static_inputs(ROW, 4, CPU, channels_last=False)
    writer = ProgramWriter([])
    again = reread(writer.write(program), writer, {}, inputs)
    fill_random(inputs, ROW)
    torch.testing.assert_close(again.run_in_order()[0], parts(inputs[0]))


def test_a_weight_that_has_shrunk_is_noticed() -> None:
    case = ZOO["branches"]
    module = case.build().eval()
    writer = ProgramWriter(weights_of(module).items())
    data = writer.write(lowered(module, case, 2))
    weights = {name: tensor[:1].clone() for name, tensor in weights_of(module).items()}
    with pytest.raises(ValueError, match=r"beyond the|another layout"):
        reread(data, writer, weights, static_inputs(case.inputs, 2, CPU, channels_last=False))


def test_a_weight_that_lies_otherwise_is_noticed() -> None:
    case = ZOO["branches"]
    module = case.build().eval()
    writer = ProgramWriter(weights_of(module).items())
    data = writer.write(lowered(module, case, 2))
    weights = {name: tensor.t().contiguous().t() for name, tensor in weights_of(module).items()}
    with pytest.raises(ValueError, match=r"another layout"):
        reread(data, writer, weights, static_inputs(case.inputs, 2, CPU, channels_last=False))


class Ordered(nn.Module):
    """An operator of weights alone with two results, one of which is an output."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.arange(8.0).flip(0), requires_grad=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        top, order = self.scores.expand(x.shape[0], 8).sort(-1)
        return x * top, order


def test_constants_with_several_results_can_be_saved() -> None:
    case = Case(Ordered, ROW)
    module = case.build().eval()
    program = lowered(module, case, 4)
    writer = ProgramWriter(weights_of(module).items())
    again = reread(writer.write(program), writer, weights_of(module), program.inputs)
    torch.testing.assert_close(again.run_in_order(), list(module(*program.inputs)), rtol=0, atol=0)
