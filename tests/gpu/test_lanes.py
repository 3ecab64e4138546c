"""Batches that overlap on a GPU: copies beside replays, every answer compared with eager."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from opara_server.engine.build import compile_model
from opara_server.engine.options import BuildOptions
from opara_server.engine.spec import TensorSpec
from opara_server.observe.metrics import Metrics
from opara_server.serving.batcher import Batch, Batcher, Rows
from opara_server.serving.executor import Executor, Worker
from opara_server.serving.lanes import Lanes
from opara_server.serving.limits import Limits
from opara_server.serving.staging import Compiled
from tests.serving.fakes import PATIENCE_S, Answer

SPECS = (TensorSpec("image", "float32", (3, 32, 32)), TensorSpec("kind", "int64", (2,), 0, 7))
REQUESTS = 400
LONG = 4_000_000  # cycles of a multiprocessor: about 2 ms


class Net(nn.Module):
    """Long enough for the next batch to be copied meanwhile; inputs and outputs of several types."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(30)))
        self.table = nn.Embedding(7, 5)

    def forward(self, image: Tensor, kind: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return image * 2 + self.convolutions(image) * 1e-3, self.table(kind), kind + 1


@pytest.fixture(scope="module")
def compiled() -> Iterator[tuple[Net, Compiled]]:
    torch.manual_seed(0)
    module = Net().eval()
    model = compile_model("lanes", module, SPECS, "cuda", BuildOptions((1, 2, 8), policy="nimble", lowering="aten"))
    yield module.cuda(), model
    model.close()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_answer_is_its_own(compiled: tuple[Net, Compiled], count: int) -> None:
    module, model = compiled
    random = np.random.default_rng(count)
    asked = []
    metrics, executor = Metrics(), Executor()
    metrics.add_model("lanes")
    batcher = Batcher(model.inputs, Limits(model.buckets, 20, 10**6), metrics.model(model.plan), executor.wake)
    executor.start()

    def attach() -> None:
        executor.bind(model.device)
        executor.attach(Worker("lanes", batcher, Lanes(model, count), metrics.model(model.plan)))

    executor.run(attach).result(PATIENCE_S)
    for _ in range(REQUESTS):
        rows = int(random.integers(1, 12))
        image = random.standard_normal((rows, 3, 32, 32)).astype(np.float32)
        kind = random.integers(0, 7, (rows, 2))
        answer = Answer()
        batcher.submit(Rows((image.tobytes(), kind.tobytes()), rows), None, answer)
        asked.append((image, kind, answer))
    for image, kind, answer in asked:
        found = answer.outcome()
        assert isinstance(found, Rows), found
        with torch.inference_mode():
            expected = module(torch.from_numpy(image).cuda(), torch.from_numpy(kind).cuda())
        for output, tensor in zip(found.tensors, expected, strict=True):
            values = np.frombuffer(output, tensor.cpu().numpy().dtype).reshape(tensor.shape)
            np.testing.assert_allclose(values, tensor.cpu().numpy(), rtol=1e-3, atol=1e-3)
    assert executor.stop(PATIENCE_S)


def test_a_batch_is_copied_in_while_another_runs(compiled: tuple[Net, Compiled]) -> None:
    _, model = compiled
    with model.device.bind():
        lanes = Lanes(model, 2)
        first, second = lanes.take(), lanes.take()
        batches = [Batch((), 0, 8), Batch((), 0, 8)]
        early_us, waited_us = [], []
        for _ in range(20):
            torch.cuda._sleep(LONG)  # ahead of the first, for the host to begin the second meanwhile
            runs = [first.begin(batches[0], alone=True), second.begin(batches[1], alone=False)]
            for lane, run in zip((first, second), runs, strict=True):
                lane.end(run)
            early_us.append(runs[1].copy_in[1].elapsed_us(runs[0].replay[1]))
            waited_us.append(runs[0].replay[1].elapsed_us(runs[1].replay[0]))
    assert max(early_us) > 0, "copied in only after the first was through"
    assert min(waited_us) >= 0, "two replays at once"
