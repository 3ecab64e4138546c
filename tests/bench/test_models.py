"""The suite's own models, and what makes random weights worth measuring."""

from __future__ import annotations

import pytest
import torch

from bench.models import MODELS, find_model, registry, require_packages, settle
from bench.models.randwire import NODES, RandWire, wiring
from bench.models.recommenders import TwoTower
from opara_server.engine.tensors import static_inputs
from tests.bench.tiny import CONVOLUTIONS

CPU = torch.device("cpu")


def test_what_is_not_installed_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"timm"}
    monkeypatch.setattr(registry, "find_spec", lambda name: name if name in installed else None)
    require_packages(["deepfm", "randwire", "vit_b16", "tests.bench.tiny:BRANCHES", "no such"])
    with pytest.raises(SystemExit) as ended:
        require_packages(MODELS)
    assert ended.value.code == "not installed: torchvision, transformers; run: pip install -e '.[bench]'"


def test_random_wiring_is_a_watts_strogatz_graph_without_cycles() -> None:
    sources = wiring(seed=1)
    assert sources == wiring(seed=1) != wiring(seed=2)
    assert len(sources) == NODES
    assert sum(map(len, sources)) == NODES * 4 // 2
    assert all(source < node for node, found in enumerate(sources) for source in found)


def test_randwire_is_as_large_as_in_the_paper() -> None:
    with torch.device("meta"):
        network = RandWire().eval()
    parameters = sum(tensor.numel() for tensor in network.parameters())
    assert parameters == pytest.approx(5.6e6, rel=0.03)  # Xie et al., table 2, small regime
    assert network(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 1000)


def test_towers_are_compared_by_angle() -> None:
    torch.manual_seed(0)
    model = TwoTower(fields=2, vocabulary=10, dim=4).eval()
    user, item = torch.randint(10, (5, 2 + 50)), torch.randint(10, (5, 2))
    scores = model(user, item)
    assert scores.shape == (5, 1)
    assert scores.abs().max() <= 1
    item[0] = 9 - item[0]
    assert (model(user, item) != scores).squeeze(1).tolist() == [True, False, False, False, False]


def test_a_settled_model_tells_its_inputs_apart() -> None:
    module = MODELS["randwire"].build()
    images = static_inputs(MODELS["randwire"].inputs("float32"), 4, CPU, True)
    images = tuple(torch.nn.functional.interpolate(image, size=64) for image in images)

    def difference() -> float:
        with torch.no_grad():
            one, other, *_ = module(*images)
        return float((one - other).norm() / one.norm())

    faded = difference()
    settle(module, images)
    assert faded < 1e-5
    assert difference() > 0.05
    assert not any(part.training for part in module.modules())


def test_a_model_without_batch_norm_stays_as_it_is() -> None:
    module = MODELS["deepfm"].build()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    settle(module, static_inputs(MODELS["deepfm"].inputs("float32"), 4, CPU, False))
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_models_of_anybody_are_found() -> None:
    assert find_model("tests.bench.tiny:CONVOLUTIONS") is CONVOLUTIONS
    assert find_model("googlenet") is MODELS["googlenet"]
    for name in ("lenet", "tests.bench.tiny:NONE", "tests.bench.tiny:Function"):
        with pytest.raises(ValueError, match="unknown model"):
            find_model(name)
