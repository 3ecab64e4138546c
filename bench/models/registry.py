"""The models of the paper's evaluation and of ours, with random weights. Each needs only the package it comes from."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from torch import Tensor, nn

from bench.models.randwire import RandWire
from bench.models.recommenders import HISTORY, DeepFM, TwoTower
from bench.models.spec import BenchModel, ids, image


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


MODELS = {
    "googlenet": BenchModel(
        _torchvision("googlenet", aux_logits=False, init_weights=False), image(224), channels_last=True
    ),
    "inception_v3": BenchModel(
        _torchvision("inception_v3", aux_logits=False, init_weights=False), image(299), channels_last=True
    ),
    "nasnet_a_large": BenchModel(_timm("nasnetalarge"), image(331), channels_last=True),
    "hrnet_w18_small_v2": BenchModel(_timm("hrnet_w18_small_v2"), image(224), channels_last=True),
    "deepfm": BenchModel(lambda: DeepFM().eval(), ids(ids=26)),
    "bert_base": BenchModel(_bert, ids(ids=128)),
    "t5_small": BenchModel(_t5, ids(ids=128, decoder_ids=32)),
    "squeezenet": BenchModel(_torchvision("squeezenet1_1"), image(224), channels_last=True),
    "densenet121": BenchModel(_torchvision("densenet121"), image(224), channels_last=True),
    "resnet50": BenchModel(_torchvision("resnet50"), image(224), channels_last=True),
    "randwire": BenchModel(lambda: RandWire().eval(), image(224), channels_last=True),
    "two_tower": BenchModel(lambda: TwoTower().eval(), ids(user=8 + HISTORY, item=8)),
    "vit_b16": BenchModel(_timm("vit_base_patch16_224"), image(224), channels_last=True),
}


def find_model(name: str) -> BenchModel:
    """One of MODELS, or anybody's own as "package.module:NAME". Raises ValueError where there is none."""
    if name in MODELS:
        return MODELS[name]
    module, colon, attribute = name.partition(":")
    if colon:
        found = getattr(import_module(module), attribute, None)
        if isinstance(found, BenchModel):
            return found
    raise ValueError(f"unknown model {name!r}: {', '.join(MODELS)}, or package.module:NAME of a BenchModel")
