"""Small modules for the engine's tests, each with something that a lowering could get wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from opara_server.engine.spec import TensorSpec

ROW = (TensorSpec("x", "float32", (8,)),)
IMAGE = (TensorSpec("image", "float32", (3, 8, 8)),)
TOKENS = (TensorSpec("tokens", "int64", (6,), 0, 50),)


class Function(nn.Module):
    """A module without weights."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


class Branches(nn.Module):
    """Four independent linear layers of one input, added up: the least that has streams."""

    def __init__(self, count: int = 4, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([torch.relu(layer(x)) for layer in self.layers]).sum(0)


class ConvBranches(nn.Module):
    """Convolution, batch norm and in-place ReLU side by side, joined by cat; a dict with None and a number in it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.sides = nn.ModuleList(
            nn.Sequential(nn.Conv2d(3, 4, side, padding=side // 2), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
            for side in (1, 3, 5)
        )
        self.drop = nn.Dropout()
        self.head = nn.Linear(12, 5)

    def forward(self, image: Tensor) -> dict[str, Any]:
        joined = torch.cat([side(image) for side in self.sides], 1)
        logits = self.head(self.drop(joined.mean((2, 3)).flatten(1)))
        return {"logits": logits, "best": [logits.argmax(1), None], "version": 3}


class Attention(nn.Module):
    """Embedding with tied weights at the end, a causal mask made in the forward, a buffer that is not saved."""

    positions: Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(50, 16)
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("positions", torch.randn(6, 16), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.embed(tokens) + self.positions
        q, k, v = (f(x).unflatten(-1, (4, 4)).transpose(1, 2) for f in (self.query, self.key, self.value))
        mask = torch.ones(6, 6, dtype=torch.bool).tril()
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out: Tensor = self.head(self.norm(x + attended.transpose(1, 2).flatten(2)))
        return out


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm = nn.LSTM(4, 5, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out, (hidden, _) = self.lstm(x.view(x.shape[0], 2, 4))
        return out, hidden.transpose(0, 1)


class Counter(nn.Module):
    """Writes to its own buffer, which no replay may."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + self.calls


class Weights(nn.Module):
    """Results computed from weights alone, and a weight as an output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.scale = nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * self.scale.exp().square(), self.scale.expand(x.shape[0], 8)


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


@dataclass(frozen=True)
class Case:
    """``dynamic``: whether one export serves every batch size."""

    build: Callable[[], nn.Module]
    inputs: tuple[TensorSpec, ...] = ROW
    dynamic: bool = True


def of(function: Callable[..., Any], inputs: tuple[TensorSpec, ...] = ROW, dynamic: bool = True) -> Case:
    return Case(lambda: Function(function), inputs, dynamic)


def slices_of_zeros(x: Tensor) -> Tensor:
    made = torch.zeros_like(x)
    made[:, :4] = x[:, 4:]
    made[:, 4:] = x[:, :4] * 2
    return made


def copied_into_empty(x: Tensor) -> Tensor:
    made = torch.empty_like(x)
    made[:, :3].copy_(x[:, :3])
    made[:, 3:].copy_(x[:, 3:].neg())
    return made


def read_then_written(x: Tensor) -> Tensor:
    y = x * 2
    before = y.exp()
    y.add_(1)
    after = y.exp()
    y.mul_(3)
    return before + after + y


def constant_written_later(x: Tensor) -> Tensor:
    table = torch.arange(8.0)
    early = table + 1
    table[0] = 5
    return x + table + early


def in_place_everywhere(x: Tensor) -> Tensor:
    y = torch.relu_(x * 2).add_(x).unsqueeze(1)
    y.squeeze_(1)
    return y.masked_fill_(x > 1, 0.5)


def several_results(x: Tensor) -> tuple[Tensor, ...]:
    values, places = (x * 2).max(1)
    one, two = (x + 1).split([3, 5], 1)
    parts = (x * 3).chunk(2, 1)
    mean = torch.stack(x.unbind(1)).mean(0)
    return values, places, one * 2, two.relu_(), parts[0] + parts[1], mean


def same_output_twice(x: Tensor) -> tuple[Tensor, ...]:
    y = x * 2
    return y, y, y.t().t(), y[:, :2]


TYPES = (
    TensorSpec("ids", "int64", (3,), 0, 9),
    TensorSpec("flags", "bool", (3,)),
    TensorSpec("small", "uint8", (3,), 0, 200),
)


def template_of_an_allocation(x: Tensor) -> tuple[Tensor, Tensor]:
    """What is only measured may be released before what is made like it is used."""
    template = (x + 1) * 2
    like, shaped = torch.empty_like(template), template.new_empty(template.shape)
    later = (x - 3) * (x - 3)
    like.copy_(later)
    shaped.copy_(later + 1)
    return like, shaped


def written_in_another_type(x: Tensor) -> tuple[Tensor, Tensor]:
    bits = (x * 1).contiguous()
    bits.view(torch.int32).add_(1)
    pairs = torch.view_as_complex(x.view(-1, 4, 2) * 1.0) * 2
    parts = torch.view_as_real(pairs)
    before = parts.sum(1)
    parts.clamp_(-0.1, 0.1)
    return bits, torch.cat([before, parts.flatten(1)], 1)


ZOO: dict[str, Case] = {
    "branches": Case(Branches),
    "conv branches": Case(ConvBranches, IMAGE),
    "attention": Case(Attention, TOKENS),
    "recurrent": Case(Recurrent),
    "weights": Case(Weights),
    "chain": of(lambda x: x.sin().cos().exp().tanh()),
    "in place": of(in_place_everywhere),
    "slices of zeros": of(slices_of_zeros),
    "copied into empty": of(copied_into_empty),
    "read, then written": of(read_then_written),
    "constant written later": of(constant_written_later),
    "several results": of(several_results),
    "literal": of(lambda x: x + torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8])),
    "input as output": of(lambda x: (x, x[:, 2:5], x + 1)),
    "input written": of(lambda x: x.add_(1)),
    "output twice": of(same_output_twice),
    "overlapping outputs": of(lambda x: (x[:, :1].exp().expand(-1, 8), (x + 1).unfold(1, 3, 1))),
    "transposed output": of(lambda x: (x.view(-1, 2, 4) * 2).transpose(1, 2)),
    "named tuple": of(lambda x: Pair(x + 1, x.sum(1))),
    "nothing in it": of(lambda x: (x + 1, x.new_empty(x.shape[0], 0))),
    "reinterpreted": of(lambda x: ((x * 2).view(torch.int32)[:, :3] + 1, x)),
    "types": of(lambda ids, flags, small: (ids * flags, flags.logical_not(), small + 1, ids.float()), TYPES),
    "two inputs": of(lambda a, b: {"sum": a + b, "left": [a * 2, (b,)]}, (*ROW, TensorSpec("y", "float32", (8,)))),
    "one-hot": of(lambda x: functional.one_hot(x, 50).sum(1), TOKENS),
    "one row is special": of(lambda x: x + 1 if x.shape[0] == 1 else x - 1),
    "template of an allocation": of(template_of_an_allocation),
    "written in another type": of(written_in_another_type),
    "input written through a view": of(lambda x: (x[:, 2:4].mul_(3), x + 1)),
    "batch size in the view": of(lambda x: x.reshape(x.shape[0] * 2, 4).softmax(1).view(x.shape[0], -1)),
    "batch size fixed": of(lambda x: x.view(4, 8) * 2, dynamic=False),
}
