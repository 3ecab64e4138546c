"""Models for the GPU: branchy, with the operators that serving meets."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from opara_server.engine.spec import TensorSpec


class ConvBlock(nn.Module):
    def __init__(self, channels: int, out: int, side: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, side, padding=side // 2, bias=False)
        self.norm = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.norm(self.conv(x)), inplace=True)


class Inceptions(nn.Module):
    """Inception modules of four branches, with in-place ReLUs."""

    def __init__(self, modules: int = 4) -> None:
        super().__init__()
        self.stem = ConvBlock(3, 64, 3)
        self.branches = nn.ModuleList(
            nn.ModuleList([ConvBlock(64, 16, 1), ConvBlock(64, 16, 3), ConvBlock(64, 16, 5), ConvBlock(64, 16, 1)])
            for _ in range(modules)
        )
        self.head = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.stem(image)
        for branches in self.branches:
            one, three, five, pool = branches.children()
            x = torch.cat([one(x), three(x), five(x), pool(functional.max_pool2d(x, 3, 1, 1))], 1)
        logits = self.head(x.mean((2, 3)))
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


NETS: dict[str, tuple[type[nn.Module], tuple[TensorSpec, ...]]] = {
    "inceptions": (Inceptions, (TensorSpec("image", "float16", (3, 32, 32)),)),
    "attention": (Attention, (TensorSpec("tokens", "int64", (32,), 0, 1000),)),
    "wide": (Wide, (TensorSpec("x", "float16", (32,)),)),
}


def make(name: str) -> tuple[nn.Module, tuple[TensorSpec, ...]]:
    """On the GPU, in float16, always with the same weights."""
    torch.manual_seed(7)
    build, inputs = NETS[name]
    with torch.inference_mode(False):
        return build().eval().cuda().half(), inputs


def googlenet() -> nn.Module:
    """torchvision's GoogLeNet with random weights, always the same: a source for the server. Its batch norms know the
    statistics of random images; with fresh ones all images would have one answer."""
    import torchvision.models  # noqa: PLC0415 - on GPU machines only

    torch.manual_seed(7)
    module: nn.Module = torchvision.models.googlenet(weights=None, aux_logits=False, init_weights=False)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None  # the mean of all batches
    with torch.no_grad():
        module.train()(torch.randn(8, 3, 224, 224))
    return module.eval()


class Looks(nn.Module):
    """Indexes a table by a float, which no range of its input bounds: a large one is a fault of the GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(100, 4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.table(x.abs().long())
        return found
