"""Maximum bipartite matching (Hopcroft and Karp, 1973), for chain covers of operator graphs."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

_Partners = tuple[list[int | None], list[int | None]]  # of each left vertex, of each right one


def maximum_matching(adjacency: Sequence[Sequence[int]], right_count: int) -> dict[int, int]:
    """Match left vertices to right ones, as many as possible; returns {left: right}. O(E * sqrt(V)).

    ``adjacency[left]`` lists the right vertices (0 <= right < ``right_count``) that ``left`` may take.
    """
    partners: _Partners = ([None] * len(adjacency), [None] * right_count)
    while layers := _layers(adjacency, partners):
        cursor = [0] * len(adjacency)
        for left in range(len(adjacency)):
            if partners[0][left] is None:
                _augment(left, adjacency, layers, cursor, partners)
    return {left: right for left, right in enumerate(partners[0]) if right is not None}


def chains(follows: Mapping[int, int], count: int) -> list[int]:
    """For each of ``count`` vertices the first one of its chain, where ``follows[a]`` is what comes right after a.

    ``follows`` must be one-to-one and free of cycles, as a matching over the edges of a DAG is.
    """
    heads = set(range(count)).difference(follows.values())
    head_of = [0] * count
    for head in heads:
        vertex: int | None = head
        while vertex is not None:
            head_of[vertex] = head
            vertex = follows.get(vertex)
    return head_of


def _layers(adjacency: Sequence[Sequence[int]], partners: _Partners) -> dict[int, int]:
    """Breadth-first distance of left vertices from the free ones, as far as the shortest augmenting paths reach.

    Empty when there is no augmenting path.
    """
    partner_of_left, partner_of_right = partners
    distance = {left: 0 for left, right in enumerate(partner_of_left) if right is None}
    queue = deque(distance)
    nearest: int | None = None
    while queue:
        left = queue.popleft()
        if nearest is not None and distance[left] > nearest:
            break
        for right in adjacency[left]:
            owner = partner_of_right[right]
            if owner is None:
                nearest = distance[left]
            elif owner not in distance:
                distance[owner] = distance[left] + 1
                queue.append(owner)
    return {} if nearest is None else {left: d for left, d in distance.items() if d <= nearest}


def _augment(
    root: int,
    adjacency: Sequence[Sequence[int]],
    layers: dict[int, int],
    cursor: list[int],
    partners: _Partners,
) -> None:
    """Depth-first along the layers to a free right vertex; iterative, since paths can be as long as the graph."""
    partner_of_left, partner_of_right = partners
    path = [root]
    while path:
        left = path[-1]
        if cursor[left] == len(adjacency[left]):
            path.pop()
            continue
        right = adjacency[left][cursor[left]]
        cursor[left] += 1
        owner = partner_of_right[right]
        if owner is None:
            for vertex in reversed(path):  # flip: each vertex takes the one its cursor just tried
                taken = adjacency[vertex][cursor[vertex] - 1]
                partner_of_left[vertex], partner_of_right[taken] = taken, vertex
            return
        if layers.get(owner, -1) == layers[left] + 1:
            path.append(owner)
