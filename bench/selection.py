"""Which cells are measured with which systems: those that must be, and whatever else is asked for. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product

from bench.cells import CellKey
from opara_server.engine.options import BuildOptions

TUNING_BUDGET_S = BuildOptions.tuning_budget_s  # of all benchmarks: what the engine takes for itself
DTYPES = ("float16", "float32")
BATCHES = (1, 2, 4, 8, 16, 32)
PAPER_MODELS = ("googlenet", "inception_v3", "deepfm", "nasnet_a_large", "t5_small", "bert_base")
REQUIRED_MODELS = (*PAPER_MODELS, "hrnet_w18_small_v2")
OTHER_MODELS = ("squeezenet", "densenet121", "resnet50", "randwire", "two_tower", "vit_b16")
ALL_MODELS = (*REQUIRED_MODELS, *OTHER_MODELS)
REQUIRED_SIZES = (("float16", 1), ("float16", 8), ("float16", 32), ("float32", 1))
FIGURES_8_AND_9 = tuple(CellKey("inception_v3", "float16", batch) for batch in (2, 4, 16))  # beside the required sizes

TITLES = {
    "googlenet": "GoogLeNet",
    "inception_v3": "Inception-v3",
    "deepfm": "DeepFM",
    "nasnet_a_large": "NASNet-A-large",
    "t5_small": "T5-small",
    "bert_base": "BERT-base",
    "hrnet_w18_small_v2": "HRNet-W18-small-v2",
    "squeezenet": "SqueezeNet",
    "densenet121": "DenseNet-121",
    "resnet50": "ResNet-50",
    "randwire": "RandWire",
    "two_tower": "two-tower",
    "vit_b16": "ViT-B/16",
}

MAX_AUTOTUNE = ("compile_max_autotune", "graph_max_autotune")  # minutes of compiling each
MAX_AUTOTUNE_CELLS = (CellKey("googlenet", "float16", 1), CellKey("bert_base", "float16", 1))


def choose_cells(
    only: Sequence[str] = (), models: Sequence[str] = (), dtypes: Sequence[str] = (), batches: Sequence[int] = ()
) -> list[CellKey]:
    """``only``: cells as model:dtype:batch, and nothing else counts. ``models``: "all" for every one; default: the
    required ones. Without ``dtypes`` and ``batches`` the required sizes, else the product of what is given, all of what
    is not. Without any of these also what else the paper's figures show.

    Raises ValueError on a cell or dtype that cannot be, and on a model that nobody knows.
    """
    if only:
        cells = [_parsed(text) for text in only]
    else:
        chosen = ALL_MODELS if "all" in models else models or REQUIRED_MODELS
        sizes = product(dtypes or DTYPES, batches or BATCHES) if dtypes or batches else REQUIRED_SIZES
        # small sizes of every model first: a run that is cut short has the most telling cells
        cells = [CellKey(model, dtype, batch) for (dtype, batch), model in product(list(sizes), chosen)]
        if not (models or dtypes or batches):
            cells.extend(FIGURES_8_AND_9)
    if bad := [cell for cell in cells if cell.dtype not in DTYPES or cell.batch < 1]:
        raise ValueError(f"{bad[0]}: dtypes are {', '.join(DTYPES)}, batch sizes positive")
    if unknown := [cell.model for cell in cells if cell.model not in ALL_MODELS and ":" not in cell.model]:
        raise ValueError(
            f"unknown model {unknown[0]!r}: {', '.join(ALL_MODELS)}, or package.module:NAME of a BenchModel"
        )
    return list(dict.fromkeys(cells))


def systems_for(cell: CellKey, asked: Sequence[str], known: Iterable[str]) -> tuple[str, ...]:
    """``asked``; by default all ``known``, those that take minutes only where they must be measured.

    Raises ValueError on a system that is not known.
    """
    names = tuple(known)
    if unknown := [name for name in asked if name not in names]:
        raise ValueError(f"unknown system {unknown[0]!r}: {', '.join(names)}")
    return tuple(asked) or tuple(n for n in names if n not in MAX_AUTOTUNE or cell in MAX_AUTOTUNE_CELLS)


def _parsed(text: str) -> CellKey:
    model, _, rest = text.rpartition(":")
    model, _, dtype = model.rpartition(":")
    if not (model and rest.isdigit()):
        raise ValueError(f"{text!r} is not model:dtype:batch")
    return CellKey(model, dtype, int(rest))
