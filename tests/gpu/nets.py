"""Models for the GPU: branchy, with the operators that serving meets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.models.settle import ROWS, settle
from opara_server.engine.spec import TensorSpec
from opara_server.engine.tensors import fill_random, torch_dtype


class ConvBlock(nn.Module):
    def __init__(self, channels: int, out: int, side: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, side, padding=side // 2, bias=False)
        self.norm = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.norm(self.conv(x)), inplace=True)


class Inceptions(nn.Module):
    """Inception modules of four branches, with in-place ReLUs. Behind the last norm there is none: what all images have
    in common would else be most of the answer, and ``digit`` always the same."""

    def __init__(self, modules: int = 4) -> None:
        super().__init__()
        self.stem = ConvBlock(3, 64, 3)
        self.branches = nn.ModuleList(
            nn.ModuleList([ConvBlock(64, 16, 1), ConvBlock(64, 16, 3), ConvBlock(64, 16, 5), ConvBlock(64, 16, 1)])
            for _ in range(modules)
        )
        self.norm = nn.BatchNorm2d(64)
        self.head = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.stem(image)
        for branches in self.branches:
            one, three, five, pool = branches.children()
            x = torch.cat([one(x), three(x), five(x), pool(functional.max_pool2d(x, 3, 1, 1))], 1)
        logits = self.head(self.norm(x).mean((2, 3)))
        return {"logits": logits, "digit": logits.argmax(1)}


class Attention(nn.Module):
    """Layers of separate query, key and value products, as in BERT: cuBLAS on several streams."""

    def __init__(self, layers: int = 4, width: int = 128) -> None:
        super().__init__()
        self.table = nn.Embedding(1000, width)
        self.layers = nn.ModuleList(nn.ModuleList(nn.Linear(width, width) for _ in range(4)) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))

    def forward(self, tokens: Tensor) -> Tensor:
        x: Tensor = self.table(tokens)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            query, key, value, out = layer.children()
            heads = [part(x).unflatten(-1, (4, -1)).transpose(1, 2) for part in (query, key, value)]
            attended = functional.scaled_dot_product_attention(*heads)
            x = norm(x + out(attended.transpose(1, 2).flatten(2)))
        return x


class Wide(nn.Module):
    """More independent branches than the hardware has queues, and a tensor that all of them read and one changes."""

    def __init__(self, branches: int = 48) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Linear(32, 32) for _ in range(branches))

    def forward(self, x: Tensor) -> Tensor:
        shared = torch.tanh(x)
        parts = [torch.relu(branch(shared)) for branch in self.branches]
        shared.mul_(2)
        return torch.stack(parts).sum(0) + shared


class Separable(nn.Module):
    """Depthwise and pointwise convolutions in turns, then a few attention heads over the pixels, then one number: of a
    mean, which tells little, so that what the heads see is an output as well."""

    def __init__(self) -> None:
        super().__init__()
        self.ahead = nn.Conv2d(3, 32, 3, padding=1)
        self.spread, self.point = nn.Conv2d(32, 32, 5, 2, groups=32), nn.Conv2d(32, 64, 1)
        self.again = nn.Conv2d(64, 64, 3, padding=1, groups=64)
        self.register_buffer("bias", torch.randn(1, 4, 64, 64))
        self.project = nn.Linear(64, 192)
        self.head = nn.Linear(64, 1)
        for layer in (self.ahead, self.spread, self.point, self.again, self.project):
            nn.init.kaiming_normal_(layer.weight)  # else the biases outweigh what comes from the image
        nn.init.ones_(self.head.bias)  # rounding is relative to the number, which is not to be 0 by chance

    bias: Tensor

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.spread(functional.pad(self.ahead(x).relu(), (1, 2, 1, 2)))
        x = self.again(self.point(x).relu()).relu()
        query, key, val = self.project(x.flatten(2).transpose(1, 2)).unflatten(2, (3, 4, 16)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, val, self.bias)
        return {"number": self.head(mixed.mean(2).flatten(1)), "seen": torch.tanh(mixed)}


class Averaged(nn.Module):
    """Separable convolutions side by side whose mean is read by others, as in RandWire: of stacked images, which are
    next to each other in memory at no round distance."""

    def __init__(self, branches: int = 6, channels: int = 156) -> None:
        super().__init__()
        self.ahead = ConvBlock(3, channels, 3)
        self.branches = nn.ModuleList(separable(channels, channels) for _ in range(branches))
        self.readers = nn.ModuleList(separable(channels, 16) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.ahead(x)
        mean = torch.stack([branch(x) for branch in self.branches]).mean(0)
        return torch.cat([reader(functional.relu(mean)) for reader in self.readers], 1)


class Dense(nn.Module):
    """Convolutions of which each reads the results of all before it, batch norms and ReLUs ahead: a dense block."""

    def __init__(self, layers: int = 12, growth: int = 16) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(8 + growth * i) for i in range(layers))
        self.ahead = nn.Conv2d(3, 8, 3, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(8 + growth * i, growth, 3, padding=1) for i in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.ahead(x)]
        for norm, layer in zip(self.norms, self.layers, strict=True):
            parts.append(layer(norm(torch.cat(parts, 1)).relu()))
        return torch.cat(parts, 1).mean((2, 3))


def separable(channels: int, out: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
        nn.Conv2d(channels, out, 1, bias=False),
        nn.BatchNorm2d(out),
    )


NETS: dict[str, tuple[type[nn.Module], tuple[TensorSpec, ...]]] = {
    "inceptions": (Inceptions, (TensorSpec("image", "float16", (3, 32, 32)),)),
    "attention": (Attention, (TensorSpec("tokens", "int64", (32,), 0, 1000),)),
    "averaged": (Averaged, (TensorSpec("x", "float16", (3, 14, 14)),)),
    "wide": (Wide, (TensorSpec("x", "float16", (32,)),)),
}


def make(name: str) -> tuple[nn.Module, tuple[TensorSpec, ...]]:
    """On the GPU, in float16, always with the same weights."""
    build, inputs = NETS[name]
    with torch.inference_mode(False):
        return built(build, inputs).cuda().half(), inputs


def built(build: Callable[[], nn.Module], inputs: Sequence[TensorSpec]) -> nn.Module:
    """On the CPU, in float32, always with the same weights, batch norms settled."""
    torch.manual_seed(7)
    with torch.inference_mode(False):
        module = build().eval()
        settle(module, samples(inputs, ROWS))
    return module


def samples(inputs: Sequence[TensorSpec], rows: int) -> list[Tensor]:
    """Random rows on the CPU, float32 instead of other floating-point dtypes."""
    wide = [replace(spec, dtype="float32") if "float" in spec.dtype else spec for spec in inputs]
    tensors = [torch.empty(rows, *spec.shape, dtype=torch_dtype(spec.dtype)) for spec in wide]
    fill_random(tensors, wide)
    return tensors


def googlenet() -> nn.Module:
    """torchvision's GoogLeNet with random weights, always the same: a source for the server. Its batch norms know the
    statistics of random images; with fresh ones all images would have one answer."""
    import torchvision.models  # noqa: PLC0415 - on GPU machines only

    torch.manual_seed(7)
    module: nn.Module = torchvision.models.googlenet(weights=None, aux_logits=False, init_weights=False).eval()
    settle(module, [torch.randn(ROWS, 3, 224, 224)])
    return module


class Looks(nn.Module):
    """Indexes a table by a float, which no range of its input bounds: a large one is a fault of the GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(100, 4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.table(x.abs().long())
        return found
