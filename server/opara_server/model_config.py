"""What can be set of a model: the ``model.toml`` in its folder."""

from __future__ import annotations

import json
import re
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    FiniteFloat,
    NonNegativeFloat,
    NonNegativeInt,
    PlainValidator,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from opara_server.engine.options import LOWERINGS, BuildOptions
from opara_server.engine.policies import POLICIES, check_policy
from opara_server.engine.spec import ELEMENT_BYTES, TensorSpec
from opara_server.settings import ConfigError, Settings, problems

MODEL_FILE = "model.toml"
DEFAULT_WEIGHTS = "weights.safetensors"
MOST_LANES = 8

ElementType = Literal["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64"]


def _known_policy(name: str) -> str:
    try:
        if name != "auto":
            check_policy(name)
    except ValueError as error:
        raise ValueError(
            f"{name!r} is not auto or one of {', '.join(POLICIES)} (critical_path:4 sets its streams)"
        ) from error
    return name


Policy = Annotated[str, AfterValidator(_known_policy)]


def _factory_of_a_module(source: str) -> str:
    if not re.fullmatch(r"python:[A-Za-z_][\w.]*:[A-Za-z_]\w*", source):
        raise ValueError(f"expected python:package.module:factory, not {source!r}")
    return source


def _known_lowering(name: str) -> str:
    if name not in LOWERINGS:
        raise ValueError(f"{name!r} is not one of {', '.join(LOWERINGS)}")
    return name


class InputConfig(Settings):
    """One named input. ``range`` bounds random test values and, for integers, what requests may carry: they index
    tables, and one outside would take the whole GPU process down. So integers must have one."""

    name: Annotated[str, Field(min_length=1)]
    dtype: ElementType
    shape: tuple[NonNegativeInt, ...]
    range: tuple[FiniteFloat, FiniteFloat] | None = None

    @model_validator(mode="after")
    def _range_fits_the_dtype(self) -> Self:
        if self.range and not self.range[0] < self.range[1]:
            raise ValueError(f"range {list(self.range)} is empty")
        if "int" not in self.dtype:
            return self
        if self.range is None:
            raise ValueError(
                f"an {self.dtype} input needs a range = [low, high]: requests with values outside are refused"
            )
        least, end = _bounds(self.dtype)
        if not (all(bound.is_integer() for bound in self.range) and least <= self.range[0] and self.range[1] <= end):
            raise ValueError(f"range {list(self.range)} must be whole numbers within [{least}, {end}] for {self.dtype}")
        return self

    @property
    def spec(self) -> TensorSpec:
        low, high = self.range or (None, None)
        return TensorSpec(self.name, self.dtype, self.shape, low, high)


def _bounds(dtype: str) -> tuple[int, int]:
    """The least value of an integer type, and the one after its greatest."""
    values = 2 ** (8 * ELEMENT_BYTES[dtype])
    return (0, values) if dtype.startswith("u") else (-values // 2, values // 2)


def _ascending(sizes: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(sizes)) != len(sizes):
        raise ValueError("the same size twice")
    return tuple(sorted(sizes))


def _number_of_lanes(value: object) -> int | Literal["auto"]:
    if value == "auto":
        return "auto"
    if type(value) is int and 1 <= value <= MOST_LANES:
        return value
    raise ValueError(f"{value!r} is not auto or a whole number from 1 to {MOST_LANES}")


class BatchingConfig(Settings):
    """How requests wait for each other. Rows count; None: see ModelConfig.max_rows and max_queue_rows."""

    max_queue_delay_us: NonNegativeInt = 0  # longest wait of an idle device for a fuller batch
    max_queue_rows: PositiveInt | None = None
    max_rows: PositiveInt | None = None
    preferred_sizes: Annotated[tuple[PositiveInt, ...], AfterValidator(_ascending)] = ()  # rows that end the wait
    priority_levels: Annotated[int, Field(ge=1, le=64)] = 1  # 1 is the highest
    default_priority: PositiveInt | None = None  # of requests that name none; None: the lowest
    priority_queue_rows: tuple[PositiveInt, ...] = ()  # of each level, the highest first; (): max_queue_rows alone
    queue_timeout_us: NonNegativeInt = 0  # longest time in the queue; 0: none
    allow_timeout_override: bool = True  # whether a request may ask for less
    weight: PositiveFloat = 1.0  # its share of the device, to those of other models
    lanes: Annotated[int | Literal["auto"], PlainValidator(_number_of_lanes)] = "auto"  # batches under way at once

    @model_validator(mode="after")
    def _priorities_fit(self) -> Self:
        levels, given = self.priority_levels, len(self.priority_queue_rows)
        if self.default_priority and self.default_priority > levels:
            raise ValueError(f"default_priority {self.default_priority} is beyond priority_levels {levels}")
        if given not in {0, levels}:
            raise ValueError(f"priority_queue_rows has {given} numbers, priority_levels is {levels}")
        return self


class ModelConfig(Settings):
    """One model.toml."""

    source: Annotated[str, AfterValidator(_factory_of_a_module)]
    weights: str | None = None  # a file beside model.toml; None: weights.safetensors where there is one
    inputs: Annotated[tuple[InputConfig, ...], Field(min_length=1)]
    batch_sizes: Annotated[tuple[PositiveInt, ...], Field(min_length=1), AfterValidator(_ascending)]
    dtype: Literal["float16", "bfloat16", "float32", "float64"] = "float32"  # of the parameters; inputs keep theirs
    device: Literal["auto", "cuda", "cpu"] = "auto"
    policy: Policy = "auto"
    lowering: Annotated[str, AfterValidator(_known_lowering)] = "auto"  # how operators are had; fused ones need a GPU
    tuning_budget_s: NonNegativeFloat = 300.0  # for compiling fused operators and measuring plans, all batch sizes
    tune_behind: bool = False  # serve PyTorch's own operators in sequence at once, and switch once the search is done
    channels_last: bool = False
    priorities: bool = True  # with policy "auto" also try high priority for the streams that carry the longest path
    tolerance: PositiveFloat | None = None  # largest error norm of verification; None: the dtype's own bound
    batching: BatchingConfig = BatchingConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        names = [i.name for i in self.inputs]
        if len(set(names)) != len(names):
            raise ValueError("two inputs of the same name")
        if self.max_queue_rows < self.max_rows:
            raise ValueError(f"max_queue_rows {self.max_queue_rows} is less than max_rows {self.max_rows}")
        if (fewest := min(self.batching.priority_queue_rows, default=self.max_rows)) < self.max_rows:
            raise ValueError(f"{fewest} of priority_queue_rows is less than max_rows {self.max_rows}")
        if (most := max(self.batching.preferred_sizes, default=0)) > self.batch_sizes[-1]:
            raise ValueError(f"{most} of preferred_sizes is more than the largest batch size {self.batch_sizes[-1]}")
        return self

    def with_policy(self, policy: str | None) -> Self:
        """The same with another policy; None: with its own."""
        return self if policy is None else self.model_copy(update={"policy": policy})

    def build_options(self, cache_dir: Path | None) -> BuildOptions:
        """For the engine. ``cache_dir``: where plans are saved."""
        return BuildOptions(
            batch_sizes=self.batch_sizes,
            policy=self.policy,
            lowering=self.lowering,
            tuning_budget_s=self.tuning_budget_s,
            tune_behind=self.tune_behind,
            channels_last=self.channels_last,
            priorities=self.priorities,
            tolerance=self.tolerance,
            cache_dir=cache_dir,
        )

    @property
    def max_rows(self) -> int:
        """The most rows one request may carry."""
        return self.batching.max_rows or 8 * self.batch_sizes[-1]

    @property
    def max_queue_rows(self) -> int:
        """The most rows that may wait."""
        return self.batching.max_queue_rows or max(64 * self.batch_sizes[-1], self.max_rows)

    def lanes_on(self, device: str) -> int:
        """Batches under way at once. ``device``: "cuda" or "cpu". A GPU copies one and answers another while it runs a
        third; on a CPU all that is the same thread's work."""
        if self.batching.lanes == "auto":
            return 3 if device == "cuda" else 1
        return self.batching.lanes

    @classmethod
    def load(cls, path: Path) -> ModelConfig:
        """Read a model.toml. Raises ConfigError, which names the file, the key and what was expected."""
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror or error}") from None
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"{path}: {error}") from None
        try:  # as JSON: strict, "5" is no number and 1 no bool, but an array is a tuple
            return cls.model_validate_json(json.dumps(data, default=str), strict=True)
        except ValidationError as error:
            raise ConfigError("; ".join(f"{path}: {problem}" for problem in problems(error, cls, data))) from None


def may_use_a_gpu(models: Path) -> bool:
    """Whether any model in the folder asks for one. Wrong settings are told when the model is loaded."""
    for file in models.glob(f"*/{MODEL_FILE}"):
        with suppress(ConfigError):
            if ModelConfig.load(file).device != "cpu":
                return True
    return False
