"""The models of the paper's evaluation and of ours, with random weights. Each needs only the package it comes from."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec

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


class Embedding(LastHidden):
    """Likewise, the mean over the tokens: little to answer, where 128 tokens' hidden state takes 192 KiB in float16."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids).mean(1)


class EncoderDecoder(LastHidden):
    """The same with a decoder's tokens as the second input."""

    def forward(self, ids: Tensor, decoder_ids: Tensor) -> Tensor:  # type: ignore[override]
        hidden: Tensor = self.model(input_ids=ids, decoder_input_ids=decoder_ids, use_cache=False, return_dict=False)[0]
        return hidden


def _torchvision(name: str, side: int, **options: object) -> BenchModel:
    def build() -> nn.Module:
        import torchvision.models  # noqa: PLC0415 - only for those who run these models

        module: nn.Module = getattr(torchvision.models, name)(weights=None, **options)
        return module.eval()

    return BenchModel(build, image(side), channels_last=True, package="torchvision")


def _timm(name: str, side: int) -> BenchModel:
    def build() -> nn.Module:
        import timm  # noqa: PLC0415

        module: nn.Module = timm.create_model(name, pretrained=False)
        return module.eval()

    return BenchModel(build, image(side), channels_last=True, package="timm")


def _bert(kind: type[LastHidden] = LastHidden) -> nn.Module:
    from transformers import BertConfig, BertModel  # noqa: PLC0415

    return kind(BertModel(BertConfig(), add_pooling_layer=False)).eval()


def _t5() -> nn.Module:
    from transformers import T5Config, T5Model  # noqa: PLC0415

    return EncoderDecoder(T5Model(T5Config())).eval()  # the defaults are T5-small: 6 + 6 layers


MODELS = {
    "googlenet": _torchvision("googlenet", 224, aux_logits=False, init_weights=False),
    "inception_v3": _torchvision("inception_v3", 299, aux_logits=False, init_weights=False),
    "nasnet_a_large": _timm("nasnetalarge", 331),
    "hrnet_w18_small_v2": _timm("hrnet_w18_small_v2", 224),
    "deepfm": BenchModel(lambda: DeepFM().eval(), ids(ids=26)),
    "bert_base": BenchModel(_bert, ids(ids=128), package="transformers"),
    "bert_embedding": BenchModel(lambda: _bert(Embedding), ids(ids=128), package="transformers"),  # served, not a cell
    "t5_small": BenchModel(_t5, ids(ids=128, decoder_ids=32), package="transformers"),
    "squeezenet": _torchvision("squeezenet1_1", 224),
    "densenet121": _torchvision("densenet121", 224),
    "resnet50": _torchvision("resnet50", 224),
    "randwire": BenchModel(lambda: RandWire().eval(), image(224), channels_last=True),
    "two_tower": BenchModel(lambda: TwoTower().eval(), ids(user=8 + HISTORY, item=8)),
    "vit_b16": _timm("vit_base_patch16_224", 224),
}


def require_packages(names: Iterable[str]) -> None:
    """Ends the process with one line that says what to install, where a package of these models is not there. Anybody's
    own models are not asked, nor those that nobody knows."""
    packages = {MODELS[name].package for name in names if name in MODELS} - {""}
    if missing := sorted(package for package in packages if find_spec(package) is None):
        raise SystemExit(f"not installed: {', '.join(missing)}; run: pip install -e '.[bench]'")


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
