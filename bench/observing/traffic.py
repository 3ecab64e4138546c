"""Something to see: load on a server that is served well, badly and not at all."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np

from opara_client import OparaClient, OparaError
from opara_client.inputs import random_array

ROWS = (1, 3)
WRONG_EVERY_S = 0.05


@contextmanager
def traffic(target: str, models: Sequence[str], callers: int = 4, pause_s: float = 0.0) -> Iterator[None]:
    """Random requests of ROWS rows from ``callers`` callers per model, who pause after each answer, and now and then
    one that is wrong, until the end. Raises OparaError where one that is right was refused."""
    ended = threading.Event()
    with ThreadPoolExecutor(callers * len(models) + 1) as pool, OparaClient(target) as client:
        calling = [pool.submit(_call, client, model, pause_s, ended) for model in models for _ in range(callers)]
        wrong = pool.submit(_call_wrongly, client, [*models, "nobody"], ended)
        try:
            yield
        finally:
            ended.set()
        for call in (*calling, wrong):
            call.result()


def _call(client: OparaClient, model: str, pause_s: float, ended: threading.Event) -> None:
    generator = np.random.default_rng()
    specs = client.model(model).inputs
    payloads = [{s.name: random_array(generator, s, (rows, *s.shape[1:])) for s in specs} for rows in ROWS]
    while True:
        for inputs in payloads:
            client.infer(model, inputs)
            if ended.wait(pause_s):
                return


def _call_wrongly(client: OparaClient, models: Sequence[str], ended: threading.Event) -> None:
    """With an input that no model has."""
    refused = 0
    while not ended.wait(WRONG_EVERY_S):
        try:
            client.infer(models[refused % len(models)], {"nothing": np.zeros((1, 1), np.float32)})
        except OparaError:
            refused += 1
