"""How plans of cuDNN's are found again, with a cuDNN that only counts; tests/gpu/test_convolution.py has real ones."""

from __future__ import annotations

import gc
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from opara_server.engine.rewrites import convolution_plans, cudnn_plans
from opara_server.engine.rewrites.convolution_layer import Form, Layer
from opara_server.engine.rewrites.convolution_plans import Choice, fastest, run
from opara_server.engine.rewrites.cudnn_plans import COMPILED, frontend, offered, plan

GPU, SECOND = torch.device("cuda", 0), torch.device("cuda", 1)
LAYER = Layer(
    device=GPU,
    dtype=torch.float16,
    x=Form((1, 8, 4, 4), (128, 1, 32, 8)),
    weight=Form((16, 8, 1, 1), (8, 1, 8, 8)),
    residual=Form((1, 16, 4, 4), (256, 1, 64, 16)),
    out=Form((1, 16, 4, 4), (512, 1, 128, 32)),
    biased=True,
    geometry=((1, 1), (0, 0), (1, 1)),
    relu=True,
)


DENSE = replace(LAYER, out=Form((1, 16, 4, 4), (256, 1, 64, 16)))


class Refused(Exception):  # noqa: N818 - cuDNN's own is no RuntimeError either
    pass


class Graph:
    """Lists four plans, two of one name; the one that is named "bad" cannot be built."""

    names = ("bad", "good", "good", "other")

    def __init__(self, **_: Any) -> None:
        self.told: list[Any] = []
        self.built: int | None = None

    def __getattr__(self, name: str) -> Any:
        def tell(*args: Any, **kwargs: Any) -> Graph:
            self.told.append((name, kwargs))
            return self

        return tell

    def get_execution_plan_count(self) -> int:
        return len(self.names)

    def get_plan_name_at_index(self, index: int) -> str:
        return self.names[index]

    def get_workspace_size_plan_at_index(self, index: int) -> int:
        return 100 * index

    def get_workspace_size(self) -> int:
        assert self.built is not None
        return 100 * self.built

    def build_plan_at_index(self, index: int) -> None:
        if self.names[index] == "bad":
            raise Refused
        self.built = index

    def serialize(self) -> list[int]:
        return list(json.dumps(self.built).encode())

    def deserialize(self, _handle: int, data: list[int]) -> None:
        self.built = json.loads(bytes(data))


@pytest.fixture
def _cudnn(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    class Names:
        def __getattr__(self, name: str) -> str:
            return name

    fake = SimpleNamespace(
        pygraph=Graph,
        data_type=Names(),
        heur_mode=Names(),
        numerical_note=Names(),
        cudnnGraphNotSupportedError=Refused,
    )
    monkeypatch.setattr(cudnn_plans, "frontend", lambda: fake)
    monkeypatch.setattr(cudnn_plans, "_created", {GPU: 0, SECOND: 0}.__getitem__)
    plan.cache_clear()
    yield
    plan.cache_clear()


@pytest.mark.usefixtures("_cudnn")
def test_plans_are_offered_once_each_as_far_as_they_can_be_built() -> None:
    found = list(offered(LAYER, compiled=False, tf32=False))
    assert [(p.name, p.scratch) for p in found] == [("good", 100), ("other", 300)]
    assert [p.name for p in offered(LAYER, compiled=True, tf32=False, most=1)] == ["good"]


@pytest.mark.usefixtures("_cudnn")
def test_plans_that_ask_for_much_scratch_memory_are_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"good": cudnn_plans.SCRATCH + 1, "other": cudnn_plans.SCRATCH}
    monkeypatch.setattr(
        Graph, "get_workspace_size_plan_at_index", lambda self, index: sizes[self.get_plan_name_at_index(index)]
    )
    assert [p.name for p in offered(LAYER, compiled=False, tf32=False, most=1)] == ["other"]


@pytest.mark.usefixtures("_cudnn")
@pytest.mark.parametrize(("compiled", "order"), [(False, ["residual", "bias"]), (True, ["bias", "residual"])])
def test_what_is_compiled_is_told_in_another_way(compiled: bool, order: list[str]) -> None:
    told = next(offered(LAYER, compiled=compiled, tf32=False)).graph.told
    names = [given["name"] for what, given in told if what == "tensor"]
    assert names == ["x", "weight", *order]
    assert [what for what, _ in told].count("identity") == 0
    told = next(offered(replace(LAYER, residual=None), compiled=compiled, tf32=False)).graph.told
    assert [what for what, _ in told].count("identity") == compiled


@pytest.mark.usefixtures("_cudnn")
def test_a_plan_is_found_by_its_name() -> None:
    assert plan(LAYER, "other").index == 3
    with pytest.raises(RuntimeError, match="no plan gone"):
        plan(LAYER, "gone")


@pytest.mark.usefixtures("_cudnn")
def test_a_plan_that_is_written_down_is_of_its_layer_alone() -> None:
    _, other = offered(LAYER, compiled=True, tf32=False)
    name = other.whole(LAYER)
    again = plan(replace(LAYER, device=SECOND), name)
    assert (again.scratch, again.index) == (300, None)
    with pytest.raises(RuntimeError, match="another layer"):
        plan(replace(LAYER, relu=False), name)


@pytest.fixture
def _measured(monkeypatch: pytest.MonkeyPatch, _cudnn: None) -> Iterator[None]:
    """Times by name, alone and with two others; the same of what is ready and what is compiled for the layer."""
    times = {("good", 1): 4.0, ("other", 1): 3.9, ("good", 3): 2.0, ("other", 3): 2.5}
    monkeypatch.setattr(convolution_plans, "frontend", SimpleNamespace)
    monkeypatch.setattr(convolution_plans, "handle", lambda _device: nullcontext())
    monkeypatch.setattr(convolution_plans, "_example", lambda _layer: {})
    monkeypatch.setattr(convolution_plans, "_time", lambda found, tensors: times.get((found.name, len(tensors))))
    caches = (fastest, convolution_plans._candidates)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.usefixtures("_measured")
@pytest.mark.parametrize(("together", "name", "us"), [(1, "other", 3.9), (3, "good", 4.0), (2, None, 0.0)])
def test_who_is_fastest_in_company_may_be_another(together: int, name: str | None, us: float) -> None:
    """Its time is told alone all the same. What does not run so is nobody's choice."""
    choice = fastest(DENSE, compiled=False, tf32=False, together=together)
    assert choice == (None if name is None else Choice(name, us))


@pytest.mark.usefixtures("_measured")
def test_what_is_compiled_for_the_layer_is_written_down_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Graph, "get_workspace_size_plan_at_index", lambda *_: 0)
    choice = fastest(LAYER, compiled=True, tf32=False, together=3)
    assert choice is not None
    assert choice.plan.startswith(COMPILED)
    assert plan(LAYER, choice.plan).graph.built == Graph.names.index("good")


class Broken:
    """A graph whose capture fails at ``what``: its end is an error where other streams are left forked."""

    def __init__(self, what: str) -> None:
        self._what = what
        self.collecting: list[bool] = []

    def capture_begin(self, **_: Any) -> None:
        self._fail("begin")

    def launch(self) -> None:
        self._fail("launch")

    def capture_end(self) -> None:
        self._fail("end")

    def _fail(self, what: str) -> None:
        self.collecting.append(gc.isenabled())
        if what == self._what:
            raise RuntimeError(what)


def captured(graph: Any) -> None:
    with convolution_plans._captured(graph):
        graph.launch()


@pytest.mark.parametrize(("what", "steps"), [("begin", 1), ("launch", 3), ("end", 3), ("nothing", 3)])
def test_garbage_is_collected_again_after_a_capture_even_if_it_fails(what: str, steps: int) -> None:
    graph = Broken(what)
    with nullcontext() if what == "nothing" else pytest.raises(RuntimeError, match=what):
        captured(graph)
    assert graph.collecting == [False] * steps
    assert gc.isenabled()


def test_without_the_package_there_is_no_plan_which_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "cudnn", None)
    frontend.cache_clear()
    fastest.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert fastest(LAYER, compiled=False, tf32=False) is None
            assert fastest(replace(LAYER, relu=False), compiled=False, tf32=False) is None
        assert [record.message[:28] for record in caplog.records] == ["convolutions are PyTorch's o"]
        with pytest.raises(RuntimeError, match="does not work here"):
            run(LAYER, "other", {})
    finally:
        frontend.cache_clear()
        fastest.cache_clear()
