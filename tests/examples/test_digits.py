"""The committed network is the one that its description says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from examples.dataset import training_and_held_out
from examples.digits import digits_inception
from examples.train_digits import REQUIRED_ACCURACY, WEIGHTS, accuracy


def trained() -> torch.nn.Module:
    network = digits_inception().eval()
    network.load_state_dict(load_file(WEIGHTS))
    return network


def test_the_held_out_fifth_is_a_fifth_and_was_held_out() -> None:
    training, held_out = training_and_held_out()
    assert len(held_out) == 360
    assert len(training) + len(held_out) == 1797
    assert held_out.images.shape == (360, 1, 8, 8)
    assert held_out.images.dtype == np.float32
    assert held_out.images.min() >= 0
    assert held_out.images.max() <= 1
    share = np.bincount(held_out.labels) / (np.bincount(training.labels) + np.bincount(held_out.labels))
    assert np.allclose(share, 0.2, atol=0.01)


def test_the_committed_weights_name_the_held_out_digits() -> None:
    _, held_out = training_and_held_out()
    assert accuracy(trained(), held_out) >= REQUIRED_ACCURACY


def test_the_weights_are_small_enough_to_commit() -> None:
    assert Path(WEIGHTS).stat().st_size < 1_000_000


def test_outputs_have_names_dtypes_and_a_row_for_each_image() -> None:
    with torch.inference_mode():
        answer = trained()(torch.rand(3, 1, 8, 8))
    assert {name: (value.dtype, tuple(value.shape)) for name, value in answer.items()} == {
        "probabilities": (torch.float32, (3, 10)),
        "digit": (torch.int64, (3,)),
    }
    assert torch.equal(answer["probabilities"].argmax(1), answer["digit"])
