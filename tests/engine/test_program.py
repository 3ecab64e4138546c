"""Programs: what is there when a run begins, and where."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from opara_server.engine.arena import ALIGNMENT, Arena
from opara_server.engine.graph import Buffer, Kind, Operator, OperatorGraph
from opara_server.engine.profiler import count_flops, profile_cpu
from opara_server.engine.program import Call, Placed, Program, Ref, bound

aten = torch.ops.aten


def two_products(side: int = 4) -> Program:
    """out = (x @ x) @ (x @ x).T with explicit buffers: value 1 is the first product, 2 its transposed view, 3 the
    output, 4 and 5 what the calls return."""
    nbytes = side * side * 4
    kinds = (Kind.INPUT, Kind.ARENA, Kind.OUTPUT)
    operators = [Operator("square", "mm", (0,), (1,)), Operator("gram", "mm", (1,), (2,))]
    layout: tuple[tuple[int, int], tuple[int, int]] = ((side, side), (side, 1))
    x = torch.randn(side, side)
    return Program(
        lowering="test",
        graph=OperatorGraph.from_accesses(operators, [Buffer(nbytes, kind) for kind in kinds]),
        bodies=(
            (Call(aten.mm.out, (Ref(0), Ref(0)), {"out": Ref(1)}, 4),),
            (Call(aten.mm.out, (Ref(1), Ref(2)), {"out": Ref(3)}, 5),),
        ),
        value_count=6,
        fixed={0: x},
        buffer_values=((0,), (1, 2, 4), (3, 5)),
        inputs=(x,),
        outputs=(3,),
        traffic=(nbytes,) * 2,
        arena=(
            Placed(
                1, 1, torch.float32, *layout, views=(Call(torch.as_strided, (Ref(1), layout[0], (1, side), 0), {}, 2),)
            ),
        ),
        allocations=(Call(torch.empty_strided, layout, {"dtype": torch.float32}, 3),),
    )


def right(x: Tensor) -> Tensor:
    return (x @ x) @ (x @ x).T


def test_explicit_buffers_lie_where_the_arena_says() -> None:
    program = two_products()
    block = torch.zeros(4 * ALIGNMENT, dtype=torch.uint8)
    environment = program.new_environment(program.prepare(Arena(3 * ALIGNMENT, {1: 2 * ALIGNMENT}), block))
    product, view = environment[1], environment[2]
    assert product.data_ptr() == view.data_ptr() == block.data_ptr() + 2 * ALIGNMENT
    # as an allocator would have made it: offsets of views count from the buffer's beginning
    assert (product.storage_offset(), product.untyped_storage().nbytes()) == (0, 64)
    program.run(0, environment)
    torch.testing.assert_close(
        block[2 * ALIGNMENT :][:64].view(torch.float32).view(4, 4), program.inputs[0] @ program.inputs[0]
    )
    program.run(1, environment)
    torch.testing.assert_close(program.results(environment)[0], right(program.inputs[0]))


def test_every_run_has_outputs_of_its_own_and_the_same_arena() -> None:
    program = two_products()
    prepared = program.prepare(Arena(ALIGNMENT, {1: 0}), torch.empty(ALIGNMENT, dtype=torch.uint8))
    one, other = program.new_environment(prepared), program.new_environment(prepared)
    assert one[1] is other[1]
    assert one[3] is not other[3] is not None
    first = program.run_in_order()[0]
    kept = first.clone()
    program.inputs[0].normal_()
    torch.testing.assert_close(program.run_in_order()[0], right(program.inputs[0]))
    assert torch.equal(first, kept)


@pytest.mark.parametrize(
    ("dtype", "shape", "stride"),
    [(torch.float16, (3, 0), (1, 1)), (torch.bool, (7,), (1,)), (torch.complex64, (2, 3), (1, 2))],
)
def test_any_type_and_layout_can_be_placed(dtype: torch.dtype, shape: tuple[int, ...], stride: tuple[int, ...]) -> None:
    made = torch.empty_strided(shape, stride, dtype=dtype)
    placed = Placed(0, 0, dtype, shape, stride).tensor(torch.empty(made.untyped_storage().nbytes(), dtype=torch.uint8))
    assert (placed.dtype, placed.shape, placed.stride()) == (made.dtype, made.shape, made.stride())
    assert placed.untyped_storage().nbytes() == made.untyped_storage().nbytes()


def test_operators_with_explicit_buffers_are_measured() -> None:
    program = two_products(64)
    assert count_flops(program) == [2 * 64**3] * 2
    assert all(operator.duration_us > 0 for operator in profile_cpu(program).operators)


arguments = st.recursive(
    st.integers() | st.builds(Ref, st.integers(0, 3)),
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple),
    max_leaves=5,
)


@given(st.lists(arguments, max_size=4), st.dictionaries(st.sampled_from("ab"), arguments))
def test_a_bound_call_gives_its_target_what_the_call_gives_in_every_run(
    args: list[object], kwargs: dict[str, object]
) -> None:
    def given_to(*args: object, **kwargs: object) -> object:
        return args, kwargs

    call = Call(given_to, tuple(args), kwargs, result=4)
    run = bound(call)
    for values in ("wxyz", "stuv"):  # nothing of one run is left for the next
        expected, found = [*values, None], [*values, None]
        call.run(expected)
        run(found)
        assert found == expected
