"""What is loaded is out of the collector's sight, and what is unloaded comes back into it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

from opara_server.model_config import ModelConfig
from opara_server.serving import garbage
from opara_server.serving.registry import Progress
from tests.serving.fakes import PATIENCE_S, FakeCompiled
from tests.serving.registries import MODEL, repository, serving


class Cycle:
    """Goes only when it is looked for."""

    def __init__(self) -> None:
        self.me = self

    def step(self) -> None:
        """Keeps it alive where it is given away."""


@pytest.fixture
def owned() -> Iterator[None]:
    """This process leaves out what is there, as a server does with its imports."""
    gc.disable()
    gc.freeze()
    yield
    gc.unfreeze()
    gc.enable()


def seen(something: object) -> bool:
    return any(one is something for one in gc.get_objects())


def test_what_is_kept_is_not_looked_at_again(owned: None) -> None:
    kept, gone = Cycle(), weakref.ref(Cycle())
    assert seen(kept)
    garbage.keep()
    assert gone() is None
    assert not seen(kept)


def test_what_was_kept_and_became_garbage_goes_once_it_is_looked_for(owned: None) -> None:
    kept = Cycle()
    watched = weakref.ref(kept)
    garbage.keep()
    del kept
    garbage.keep()
    assert watched() is not None
    garbage.look_again()
    assert watched() is None


def test_a_process_that_leaves_nothing_out_is_left_alone() -> None:
    gc.unfreeze()
    kept = Cycle()
    garbage.keep()
    garbage.look_again()
    assert gc.get_freeze_count() == 0
    assert seen(kept)


def test_models_are_kept_until_one_is_unloaded(tmp_path: Path, owned: None) -> None:
    made: list[weakref.ref[Cycle]] = []

    def compile_one(name: str, _module: nn.Module, config: ModelConfig, _progress: Progress) -> FakeCompiled:
        model, cycle = FakeCompiled(name, config.batch_sizes), Cycle()
        model.on_step = cycle.step
        made.append(weakref.ref(cycle))
        return model

    with serving(repository(tmp_path, one=MODEL, two=MODEL), compile_one) as server:
        server.load()
        assert not any(seen(cycle()) for cycle in made)
        server.registry.unload("one").result(PATIENCE_S)
        assert [cycle() is None for cycle in made] == [True, False]
        server.registry.load("one").result(PATIENCE_S)
        assert [cycle() is None for cycle in made] == [True, False, False]
        assert not any(seen(cycle()) for cycle in made[1:])
