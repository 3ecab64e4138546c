"""What every group of settings is: frozen, complete, and a refusal of what it does not know, in readable sentences."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError


class ConfigError(Exception):
    """A setting that cannot be used. str() is one message for the person who wrote it."""


class Settings(BaseModel):
    """A group of settings. What it does not know it refuses."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def problems(
    error: ValidationError, model: type[BaseModel], data: Mapping[str, Any], called: Callable[[str], str] = str
) -> Iterator[str]:
    """One readable sentence per problem that pydantic found in ``data``. ``called``: what the reader
    knows its keys as.

    It also calls a sequence too short where all of its items have problems of their own.
    """
    found = error.errors(include_url=False)
    inner = {problem["loc"][:end] for problem in found for end in range(len(problem["loc"]))}
    for problem in found:
        if problem["type"] == "too_short" and problem["loc"] in inner:
            continue
        where = ".".join(_parts(problem["loc"], data))
        match problem["type"]:
            case "extra_forbidden":
                known = ", ".join(_section(model, problem["loc"]).model_fields)
                yield f"unknown key {where!r}; known keys: {known}"
            case "missing":
                yield f"{where!r} is missing"
            case "value_error":
                yield f"{called(where) + ': ' if where else ''}{problem['ctx']['error']}"
            case _:
                said = re.sub(r"\b(valid )?(tuple|array)\b", "list", problem["msg"], flags=re.IGNORECASE)
                yield f"{called(where)}: {said[:1].lower()}{said[1:]}, not {problem['input']!r}"


def _parts(location: tuple[int | str, ...], data: Any) -> Iterator[str]:
    """The keys on the way to ``location``; of what has a name, that instead of its number."""
    for part in location:
        inside = dict(enumerate(data)) if isinstance(data, list) else data
        data = inside.get(part) if isinstance(inside, Mapping) else None
        name = data.get("name") if isinstance(part, int) and isinstance(data, dict) else None
        yield name if isinstance(name, str) and name else str(part)


def _section(model: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel]:
    """The settings class that the key at ``location`` would belong to."""
    for part in location[:-1]:
        if isinstance(part, str):
            found = model.model_fields[part].annotation
            model = next(t for t in (found, *get_args(found)) if isinstance(t, type) and issubclass(t, BaseModel))
    return model
