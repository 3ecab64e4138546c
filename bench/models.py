"""The models of the paper's evaluation and of ours, with random weights. Each needs only the package it comes from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from opara_server.engine.spec import TensorSpec


@dataclass(frozen=True)
class BenchModel:
    """``build`` makes the module in eval mode, float32, on the CPU; ``inputs``: one row's, for the dtype it runs in."""

    build: Callable[[], nn.Module]
    inputs: Callable[[str], tuple[TensorSpec, ...]]
    channels_last: bool = False


class DeepFM(nn.Module):
    """DeepFM (Guo et al., 2017) over 26 categorical fields, as in Criteo: first order, factorisation machine, MLP."""

    def __init__(self, fields: int = 26, vocabulary: int = 10_000, dim: int = 16, hidden: int = 400) -> None:
        super().__init__()
        self.weights = nn.ModuleList(nn.Embedding(vocabulary, 1) for _ in range(fields))
        self.factors = nn.ModuleList(nn.Embedding(vocabulary, dim) for _ in range(fields))
        layers = [fields * dim, hidden, hidden, hidden]
        self.deep = nn.Sequential(*(part for a, b in pairwise(layers) for part in (nn.Linear(a, b), nn.ReLU())))
        self.head = nn.Linear(hidden, 1)
        for weight in self.factors.parameters():
            nn.init.normal_(weight, std=0.1)  # PyTorch's unit variance would saturate the sigmoid

    def forward(self, ids: Tensor) -> Tensor:
        columns = ids.unbind(1)
        first = torch.cat([weight(c) for weight, c in zip(self.weights, columns, strict=True)], 1).sum(1, keepdim=True)
        factors = [factor(c) for factor, c in zip(self.factors, columns, strict=True)]
        stacked = torch.stack(factors, 1)
        pairs = 0.5 * (stacked.sum(1).square() - stacked.square().sum(1)).sum(1, keepdim=True)
        return torch.sigmoid(first + pairs + self.head(self.deep(torch.cat(factors, 1))))


class LastHidden(nn.Module):
    """A transformer of the transformers library that takes token ids and returns its last hidden state."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        hidden: Tensor = self.model(input_ids=ids, return_dict=False)[0]
        return hidden


class EncoderDecoder(LastHidden):
    """The same with a decoder's tokens as the second input."""

    def forward(self, ids: Tensor, decoder_ids: Tensor) -> Tensor:  # type: ignore[override]
        hidden: Tensor = self.model(input_ids=ids, decoder_input_ids=decoder_ids, use_cache=False, return_dict=False)[0]
        return hidden


def _torchvision(name: str, **options: object) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import torchvision.models  # noqa: PLC0415 - only for those who run these models

        module: nn.Module = getattr(torchvision.models, name)(weights=None, **options)
        return module.eval()

    return build


def _timm(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import timm  # noqa: PLC0415

        module: nn.Module = timm.create_model(name, pretrained=False)
        return module.eval()

    return build


def _bert() -> nn.Module:
    from transformers import BertConfig, BertModel  # noqa: PLC0415

    return LastHidden(BertModel(BertConfig(), add_pooling_layer=False)).eval()


def _t5() -> nn.Module:
    from transformers import T5Config, T5Model  # noqa: PLC0415

    return EncoderDecoder(T5Model(T5Config())).eval()  # the defaults are T5-small: 6 + 6 layers


def _image(side: int) -> Callable[[str], tuple[TensorSpec, ...]]:
    return lambda dtype: (TensorSpec("image", dtype, (3, side, side)),)


def _tokens(**lengths: int) -> Callable[[str], tuple[TensorSpec, ...]]:
    return lambda _dtype: tuple(TensorSpec(name, "int64", (length,), 0, 10_000) for name, length in lengths.items())


MODELS = {
    "googlenet": BenchModel(
        _torchvision("googlenet", aux_logits=False, init_weights=False), _image(224), channels_last=True
    ),
    "inception_v3": BenchModel(
        _torchvision("inception_v3", aux_logits=False, init_weights=False), _image(299), channels_last=True
    ),
    "nasnet_a_large": BenchModel(_timm("nasnetalarge"), _image(331), channels_last=True),
    "hrnet_w18_small_v2": BenchModel(_timm("hrnet_w18_small_v2"), _image(224), channels_last=True),
    "deepfm": BenchModel(lambda: DeepFM().eval(), _tokens(ids=26)),
    "bert_base": BenchModel(_bert, _tokens(ids=128)),
    "t5_small": BenchModel(_t5, _tokens(ids=128, decoder_ids=32)),
}
