"""Maximum matching and the chains made of it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from opara_server.engine.matching import chains, maximum_matching


@st.composite
def bipartite(draw: st.DrawFn, largest: int = 40) -> tuple[list[list[int]], int]:
    left, right = draw(st.integers(0, largest)), draw(st.integers(0, largest))
    vertices = st.lists(st.integers(0, right - 1), unique=True) if right else st.just([])
    return [draw(vertices) for _ in range(left)], right


def size_by_simple_augmentation(adjacency: list[list[int]]) -> int:
    """Kuhn's algorithm: one augmenting path at a time."""
    owner: dict[int, int] = {}

    def augment(left: int, seen: set[int]) -> bool:
        for right in adjacency[left]:
            if right not in seen:
                seen.add(right)
                if right not in owner or augment(owner[right], seen):
                    owner[right] = left
                    return True
        return False

    return sum(augment(left, set()) for left in range(len(adjacency)))


@settings(deadline=None)
@given(bipartite())
def test_matching_is_one_to_one_over_edges_and_as_large_as_possible(case: tuple[list[list[int]], int]) -> None:
    adjacency, right_count = case
    matched = maximum_matching(adjacency, right_count)
    assert len(set(matched.values())) == len(matched)
    assert all(right in adjacency[left] for left, right in matched.items())
    assert len(matched) == size_by_simple_augmentation(adjacency)


def test_augmenting_paths_as_long_as_the_graph_need_no_recursion() -> None:
    count = 5000  # left i may take i or i + 1, and the last left vertex only 0: all others must move up
    adjacency = [[i, i + 1] for i in range(count)] + [[0]]
    assert len(maximum_matching(adjacency, count + 1)) == count + 1


def test_chains_follow_the_links() -> None:
    assert chains({0: 2, 2: 3, 1: 4}, 6) == [0, 1, 0, 0, 1, 5]
    assert chains({}, 0) == []
