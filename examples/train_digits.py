"""Trains the example network: ``python -m examples.train_digits`` (about a minute on a laptop) rewrites its weights."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor, nn

from examples.dataset import SEED, Digits, training_and_held_out
from examples.digits import DigitsInception

WEIGHTS = Path(__file__).parent / "models" / "digits" / "weights.safetensors"
REQUIRED_ACCURACY = 0.97
EPOCHS = 60
BATCH = 64
PEAK_LEARNING_RATE = 4e-3


def train(network: DigitsInception, data: Digits, console: Console) -> None:
    """AdamW with a one-cycle learning rate; images are shifted by up to a pixel, as handwriting is."""
    images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels)
    batches = len(data) // BATCH
    optimizer = torch.optim.AdamW(network.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=EPOCHS * batches)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.05)
    network.train()
    for _ in track(range(EPOCHS), "training", console=console):
        order = torch.randperm(len(data))
        for batch in order[: batches * BATCH].view(batches, BATCH):
            loss = loss_of(network.logits(_shifted(images[batch])), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def _shifted(images: Tensor) -> Tensor:
    down, right = (int(shift) for shift in torch.randint(-1, 2, (2,)))
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    return padded[:, :, 1 + down : 9 + down, 1 + right : 9 + right]


def accuracy(network: nn.Module, data: Digits) -> float:
    """The share of ``data`` that ``network`` names rightly."""
    network.eval()
    with torch.inference_mode():
        answers = network(torch.from_numpy(data.images))["digit"]
    return float((answers == torch.from_numpy(data.labels)).double().mean())


def main() -> int:
    console = Console()
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)
    train_data, held_out = training_and_held_out()
    network = DigitsInception()
    train(network, train_data, console)
    reached = accuracy(network, held_out)
    console.print(f"{len(held_out)} held-out images: {reached:.2%} right")
    if reached < REQUIRED_ACCURACY:
        console.print(f"below {REQUIRED_ACCURACY:.0%}: the weights are left as they were")
        return 1
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(state, WEIGHTS)
    console.print(f"wrote {WEIGHTS.name}, {WEIGHTS.stat().st_size / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
