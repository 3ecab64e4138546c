"""Graphs that compute what the module computes, and graphs that do not: each kind of lie is found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn

from opara_server.engine.capture import capture
from opara_server.engine.device import CapturedGraph
from opara_server.engine.device_cpu import CpuDevice
from opara_server.engine.errors import VerificationError
from opara_server.engine.export import export_static
from opara_server.engine.flat_module import FlatModule
from opara_server.engine.lower_aten import lower
from opara_server.engine.policies import make_schedule
from opara_server.engine.profile import Profile
from opara_server.engine.spec import TensorSpec
from opara_server.engine.steps import at_once
from opara_server.engine.tensors import static_inputs
from opara_server.engine.verify import FRESH_INPUTS, REPLAYS, Verifier, default_bound, error_norm, poison
from tests.engine.devices import Spoil, SpoiledGraph, nothing
from tests.engine.models import IMAGE, ROW, TOKENS, ZOO, Attention, Branches, ConvBranches, Function

CPU = torch.device("cpu")
Check = Callable[..., float]


@pytest.fixture
def check() -> Iterator[Check]:
    """Verify a module's own graph, captured on four streams and then spoiled."""
    device = CpuDevice(threads=4)

    def run(
        module: nn.Module,
        specs: tuple[TensorSpec, ...] = ROW,
        spoil: Spoil = nothing,
        tolerance: float | None = None,
        wrapped: Callable[[CapturedGraph, Spoil], SpoiledGraph] = SpoiledGraph,
    ) -> float:
        flat = FlatModule(module.eval(), specs, 4, CPU, channels_last=False)
        inputs = static_inputs(specs, 4, CPU, channels_last=False)
        program = lower(export_static(module, inputs), inputs)
        schedule = make_schedule(program.graph, Profile.uniform(len(program.graph)), "critical_path:4")
        graph = wrapped(capture(program, schedule, device), spoil)
        return at_once(Verifier(flat, device, tolerance).check(graph))

    with device.bind():
        yield run
    device.close()


@pytest.mark.parametrize("name", ["branches", "conv branches", "attention", "types", "input written", "output twice"])
def test_honest_graphs_pass(check: Check, name: str) -> None:
    assert check(ZOO[name].build(), ZOO[name].inputs) < 1e-5


def test_every_run_is_looked_at(check: Check) -> None:
    seen = []
    check(Branches(), spoil=lambda replay, _outputs: seen.append(replay))
    assert len(seen) == FRESH_INPUTS + 2 + REPLAYS


def halves_swapped(x: Tensor) -> Tensor:
    made = torch.empty_like(x)  # an explicit buffer
    made[:, :4], made[:, 4:] = x[:, 4:], x[:, :4]
    return made * 2


def test_every_run_begins_on_poison(check: Check) -> None:
    clean = []

    class Watched(SpoiledGraph):
        def replay(self) -> None:
            assert self.arena.nbytes
            clean.append(bool(self.outputs[0].isnan().all() and (self.arena == 255).all()))
            super().replay()

    check(Function(halves_swapped), wrapped=Watched)
    assert clean == [True] * (FRESH_INPUTS + 2 + REPLAYS)


def scaled(_replay: int, outputs: Sequence[Tensor]) -> None:
    outputs[0].mul_(1.0005)


def one_nan(_replay: int, outputs: Sequence[Tensor]) -> None:
    outputs[0][1, 1] = torch.nan


def a_row_not_written(_replay: int, outputs: Sequence[Tensor]) -> None:
    poison([outputs[0][-1]])


def wrong_once(replay: int, outputs: Sequence[Tensor]) -> None:
    if replay == FRESH_INPUTS + 57:
        outputs[0][0, 0] += 0.01


def nan_once(replay: int, outputs: Sequence[Tensor]) -> None:
    if replay == FRESH_INPUTS + REPLAYS:
        outputs[0][0, 0] = torch.nan


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (scaled, r"output 'output': error [45]\.\d\de-04 against float64, allowed 1\.00e-05"),
        (one_nan, r"output 'output': error inf against float64"),
        (a_row_not_written, r"output 'output': error inf against float64"),
        (wrong_once, r"output 'output' differs by .* between replays"),
        (nan_once, r"output 'output' differs by inf between replays"),
    ],
)
def test_wrong_floats_are_found(check: Check, spoil: Spoil, message: str) -> None:
    with pytest.raises(VerificationError, match=message):
        check(Branches(), spoil=spoil)


class StaleNowAndThen:
    """What a missing dependency does: one replay in ten reads what the replay before it left."""

    def __init__(self) -> None:
        self.left: Tensor | None = None

    def __call__(self, replay: int, outputs: Sequence[Tensor]) -> None:
        fresh = outputs[0].clone()
        if replay % 10 == 7 and self.left is not None:
            outputs[0].copy_(self.left)
        self.left = fresh


def test_answers_of_the_replay_before_are_found(check: Check) -> None:
    with pytest.raises(VerificationError):
        check(Branches(), spoil=StaleNowAndThen())


def off_by_one(_replay: int, outputs: Sequence[Tensor]) -> None:
    outputs[1][2] += 1


def off_by_one_once(replay: int, outputs: Sequence[Tensor]) -> None:
    if replay == FRESH_INPUTS + 31:
        outputs[1][2] += 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (off_by_one, r"output 'best_0': 9 of 36 values are neither eager's nor float64's; of eager's 0 not"),
        (off_by_one_once, r"output 'best_0' differs by .* between replays"),
    ],
)
def test_wrong_integers_are_found_whatever_the_tolerance(check: Check, spoil: Spoil, message: str) -> None:
    with pytest.raises(VerificationError, match=message):
        check(ConvBranches(), IMAGE, spoil, tolerance=100.0)


def test_a_bool_that_is_not_written_is_found(check: Check) -> None:
    kept: list[Tensor] = []

    def keeps_the_first(_replay: int, outputs: Sequence[Tensor]) -> None:
        kept.append(outputs[0].clone())
        outputs[0].copy_(kept[0])

    with pytest.raises(VerificationError, match="values are neither eager's nor float64's"):
        check(Function(lambda x: x > 0), spoil=keeps_the_first)


def test_between_two_steps_other_graphs_may_use_the_memory() -> None:
    """Those of one device share it: the outputs of one may lie where another keeps what it computes on the way."""
    device = CpuDevice(threads=1)
    flat = FlatModule(ConvBranches().eval(), IMAGE, 4, CPU, channels_last=False)
    with device.bind():
        inputs = static_inputs(IMAGE, 4, CPU, channels_last=False)
        program = lower(export_static(flat.module, inputs), inputs)
        schedule = make_schedule(program.graph, Profile.uniform(len(program.graph)), "sequential")
        graph = capture(program, schedule, device)
        for _ in Verifier(flat, device, None).check(graph):
            poison((*graph.outputs, graph.arena))


class Idle(SpoiledGraph):
    def replay(self) -> None:
        pass


def test_outputs_that_were_right_already_must_be_written_again() -> None:
    device = CpuDevice(threads=1)
    flat = FlatModule(Function(lambda x: x * 0 + 1).eval(), ROW, 4, CPU, channels_last=False)
    with device.bind():
        inputs = static_inputs(ROW, 4, CPU, channels_last=False)
        program = lower(export_static(flat.module, inputs), inputs)
        schedule = make_schedule(program.graph, Profile.uniform(len(program.graph)), "sequential")
        idle = Idle(capture(program, schedule, device), nothing)
        with pytest.raises(VerificationError, match="error inf"):
            at_once(Verifier(flat, device, None).check(idle))


def with_infinities(x: Tensor) -> Tensor:
    masked = x.masked_fill(x > 0.5, -torch.inf)
    masked[:, 0] = torch.nan
    return masked


def test_infinities_and_nans_of_the_models_own_are_right(check: Check) -> None:
    check(Function(with_infinities))
    with pytest.raises(VerificationError, match="error inf"):
        check(Function(with_infinities), spoil=lambda _replay, outputs: outputs[0].nan_to_num_(neginf=-1e30))


def overflowing(x: Tensor) -> Tensor:
    return torch.cat([x, (x * 0 + 100).exp()], 1)  # fits float64, not float32


def test_where_only_float64_is_finite_eager_is_right(check: Check) -> None:
    check(Function(overflowing))
    with pytest.raises(VerificationError):
        check(Function(overflowing), spoil=lambda _replay, outputs: outputs[0][:, :8].zero_())


def test_three_times_eagers_own_error_is_allowed(check: Check) -> None:
    assert check(Function(lambda x: (x + 1e5) - 1e5)) > 1e-5
    with pytest.raises(VerificationError, match="allowed"):
        check(Function(lambda x: (x + 1e5) - 1e5), spoil=lambda _replay, outputs: outputs[0].mul_(1.2))


def test_a_tolerance_replaces_the_bound(check: Check) -> None:
    assert check(Branches(), spoil=scaled, tolerance=1e-3) > 1e-4


class FloatOnly(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            raise AssertionError
        return x * 2


def test_without_float64_eager_is_the_reference_with_one_warning(
    check: Check, caplog: pytest.LogCaptureFixture
) -> None:
    assert check(FloatOnly()) == 0.0
    assert [r.message for r in caplog.records if r.levelname == "WARNING"] == [
        "no float64 reference (AssertionError): comparing with eager alone"
    ]
    with pytest.raises(VerificationError):
        check(FloatOnly(), spoil=scaled)


def test_the_module_itself_stays_as_it_is(check: Check) -> None:
    module = Attention()
    check(module, TOKENS)
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("module", "bound"),
    [
        (Branches(), 1e-5),
        (Branches().double(), 1e-10),
        (Branches().half(), 5e-3),
        (Branches().bfloat16(), 2e-2),
        (Function(lambda x: x), 1e-5),
        (nn.Sequential(Branches(), Branches().half()), 5e-3),
    ],
)
def test_bounds(module: nn.Module, bound: float) -> None:
    assert default_bound(module, CpuDevice(threads=1)) == bound


def test_half_precision_passes_by_its_own_bound(check: Check) -> None:
    check(Branches().bfloat16(), (TensorSpec("x", "bfloat16", (8,)),))


def test_error_norm() -> None:
    ref = torch.tensor([3.0, 4.0])
    assert error_norm(ref, ref) == 0.0
    assert error_norm(ref + torch.tensor([0.0, 0.5]), ref) == pytest.approx(0.1)
    assert error_norm(torch.tensor([0.5]), torch.tensor([0.0])) == 0.5  # nothing to be relative to
    assert error_norm(torch.tensor([torch.inf, 1.0]), torch.tensor([torch.inf, 1.0])) == 0.0
    assert error_norm(torch.tensor([-torch.inf, 1.0]), torch.tensor([torch.inf, 1.0])) == float("inf")
    assert error_norm(torch.tensor([torch.inf]), torch.tensor([1.0])) == float("inf")
    assert error_norm(torch.empty(3, 0), torch.empty(3, 0)) == 0.0


def test_poison_leaves_nothing_right() -> None:
    floats, integers, bools = torch.ones(3), torch.ones(3, dtype=torch.int16), torch.tensor([True, False])
    poison([floats, integers, bools])
    assert floats.isnan().all()
    assert integers.tolist() == [32767] * 3
    assert bools.tolist() == [False, True]


def test_the_float64_reference_alone_runs_without_cudnn(check: Check) -> None:
    seen = set()

    class Watched(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if not torch.compiler.is_exporting():
                seen.add((x.dtype, torch.backends.cudnn.enabled))
            return x.relu()

    check(Watched())
    assert seen == {(torch.float32, True), (torch.float64, False)}
    assert torch.backends.cudnn.enabled
