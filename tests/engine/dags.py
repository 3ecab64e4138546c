"""Operator graphs and profiles for the tests of the scheduling core."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from hypothesis import strategies as st

from opara_server.engine.graph import Buffer, Kind, Operator, OperatorGraph
from opara_server.engine.policies import POLICIES
from opara_server.engine.profile import OperatorProfile, Profile, Roofline
from opara_server.engine.schedule import Schedule

LARGEST = 500
QUICK_POLICIES = [name for name in POLICIES if name not in {"ios", "search"}]  # milliseconds on the largest

# One drawn seed per graph: drawing each edge would exhaust what hypothesis can record, and is no easier to shrink.
randoms = st.builds(Random, st.integers(0, 2**32 - 1))


def sizes(largest: int, random: Random) -> st.SearchStrategy[int]:
    """Tiny, middling and large graphs alike: drawn evenly, hardly any would be tiny."""
    limits = [limit for limit in (6, 60) if limit < largest] + [largest]
    return st.sampled_from(limits).map(lambda limit: random.randint(limit // 4, limit))


def random_dag(count: int, in_degree: float, span: int, random: Random) -> OperatorGraph:
    """``in_degree`` on average, each predecessor at most ``span`` operators back."""
    edges = []
    for consumer in range(1, count):
        candidates = range(max(0, consumer - span), consumer)
        wanted = min(len(candidates), round(random.expovariate(1 / in_degree))) if in_degree else 0
        edges += [(producer, consumer) for producer in random.sample(candidates, wanted)]
    return OperatorGraph.from_edges(count, edges)


@st.composite
def dags(draw: st.DrawFn, largest: int = LARGEST) -> OperatorGraph:
    """From no edges at all to nearly complete, from narrow to wide."""
    random = draw(randoms)
    count = draw(sizes(largest, random))
    in_degree = draw(st.sampled_from([1.5, 0.0, 0.5, 1.0, 3.0, 20.0, 200.0]))
    span = draw(st.sampled_from([LARGEST, 1, 4, 30]))
    return random_dag(count, in_degree, span, random)


@st.composite
def programs(draw: st.DrawFn, largest: int = LARGEST) -> OperatorGraph:
    """Operators over buffers of every kind, some written in place, some several times, some never read."""
    random = draw(randoms)
    count = draw(sizes(largest, random))
    in_place = draw(st.sampled_from([0.0, 0.1, 0.5]))
    buffers = [Buffer(random.randint(1, 64), Kind.INPUT) for _ in range(random.randint(1, 3))]
    buffers += [Buffer(random.randint(1, 64), Kind.CONSTANT) for _ in range(random.randint(0, 3))]
    operators = []
    for index in range(count):
        recent = range(max(0, len(buffers) - random.choice([3, 12, 60])), len(buffers))
        reads = [random.choice(recent) for _ in range(random.randint(0, 4))]
        if reads and random.random() < in_place and buffers[reads[0]].kind is not Kind.CONSTANT:
            writes = [reads[0]]
        else:
            kind = Kind.OUTPUT if random.random() < 0.05 else Kind.ACTIVATION
            writes = list(range(len(buffers), len(buffers) + random.choice([1, 1, 1, 2])))
            buffers += [Buffer(random.randint(1, 64), kind) for _ in writes]
        operators.append(Operator(f"op{index}", "test", tuple(reads), tuple(writes)))
    return OperatorGraph.from_accesses(operators, buffers)


def explicit(graph: OperatorGraph) -> OperatorGraph:
    """The same with every activation in the arena."""
    buffers = tuple(replace(b, kind=Kind.ARENA) if b.kind is Kind.ACTIVATION else b for b in graph.buffers)
    return replace(graph, buffers=buffers)


def random_profile(graph: OperatorGraph, random: Random) -> Profile:
    """Some operators take no time or no room; about half are compute-bound."""
    operators = tuple(
        OperatorProfile(
            duration_us=random.choice([0.0, 1.0, random.uniform(0.5, 40.0)]),
            flops=random.randint(0, 200),
            bytes=random.randint(1, 100),
            demand=random.choice([0.0, 0.25, random.random()]),
            footprint=random.choice([0.0, 1.0, random.random()]),
        )
        for _ in graph.operators
    )
    return Profile(operators, Roofline(1.0, 1.0))


def ordered_pairs(schedule: Schedule) -> dict[int, int]:
    """The happens-before relation without vector clocks: per operator the bit set of all that must have finished.

    The transitive closure of the order graph: each operator after the one before it on its stream and after its waits.
    """
    direct: dict[int, list[int]] = {}
    previous: dict[int, int] = {}
    for step in schedule.steps:
        direct[step.operator] = [*step.waits, *([previous[step.stream]] if step.stream in previous else [])]
        previous[step.stream] = step.operator
    past: dict[int, int] = {}
    for operator in schedule.order:
        past[operator] = 0
        for source in direct[operator]:
            past[operator] |= past[source] | 1 << source
    return past


def true_order(graph: OperatorGraph) -> dict[int, int]:
    """The same for the operator graph's own edges: what any right schedule must contain."""
    past: dict[int, int] = {}
    for operator, sources in enumerate(graph.predecessors):
        past[operator] = 0
        for source in sources:
            past[operator] |= past[source] | 1 << source
    return past


def googlenet() -> OperatorGraph:
    """GoogLeNet as torch.fx sees it: 195 operators, and the four nodes (input, flatten, dropout, output) that the
    paper's prototype schedules with them."""
    edges: list[tuple[int, int]] = []
    count = 1  # the input

    def chain(source: int, operators: int) -> int:
        nonlocal count
        for _ in range(operators):
            edges.append((source, count))
            source, count = count, count + 1
        return source

    def inception(source: int) -> int:
        nonlocal count
        # 1x1; 1x1 and 3x3; 1x1 and 3x3; pool and 1x1: each convolution with its batch norm and ReLU
        branches = [chain(source, operators) for operators in (3, 6, 6, 4)]
        edges.extend((branch, count) for branch in branches)
        count += 1
        return count - 1

    last = chain(0, 3 + 1 + 3 + 3 + 1)  # conv, pool, conv, conv, pool
    for modules, pools in ((2, 1), (5, 1), (2, 0)):
        for _ in range(modules):
            last = inception(last)
        last = chain(last, pools)
    chain(last, 5)  # average pool, flatten, dropout, fully connected, output
    return OperatorGraph.from_edges(count, edges)
