"""A Dockerfile as data: its stages and their instructions, as far as ours use the language."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

KNOWN = frozenset(
    [
        "ARG",
        "ENV",
        "RUN",
        "COPY",
        "WORKDIR",
        "USER",
        "VOLUME",
        "EXPOSE",
        "STOPSIGNAL",
        "HEALTHCHECK",
        "ENTRYPOINT",
        "CMD",
    ]
)
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


@dataclass(frozen=True, slots=True)
class Instruction:
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Stage:
    """What stands between one FROM and the next. ``base`` is an image or the name of an earlier stage."""

    name: str
    base: str
    instructions: tuple[Instruction, ...]

    def last(self, name: str) -> str | None:
        """The arguments of the last instruction of that name."""
        return next((i.arguments for i in reversed(self.instructions) if i.name == name), None)


@dataclass(frozen=True, slots=True)
class Dockerfile:
    stages: tuple[Stage, ...]
    arguments: Mapping[str, str]  # with their defaults, before the first FROM

    def stage(self, name: str) -> Stage:
        """Raises KeyError."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise KeyError(name)

    def lineage(self, name: str) -> tuple[Stage, ...]:
        """The stage and those it is made from, the first of all first."""
        stage = self.stage(name)
        inherited = self.lineage(stage.base) if stage.base in {s.name for s in self.stages} else ()
        return (*inherited, stage)

    def needed(self, name: str) -> tuple[Stage, ...]:
        """The stage and all that it is made from or copies from, in the order of the file."""
        names = {name}
        for stage in reversed(self.stages):  # a stage knows earlier ones only
            if stage.name in names:
                names |= {stage.base, *re.findall(r"--from=(\S+)", " ".join(i.arguments for i in stage.instructions))}
        return tuple(stage for stage in self.stages if stage.name in names)

    def setting(self, name: str, instruction: str) -> str:
        """What the image of a stage is told by the last such instruction of its lineage. Raises KeyError."""
        for stage in reversed(self.lineage(name)):
            if (arguments := stage.last(instruction)) is not None:
                return arguments
        raise KeyError(instruction)


def parse(text: str) -> Dockerfile:
    """Raises ValueError at an instruction that is not among those that ours use."""
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    for instruction in _instructions(text):
        if instruction.name == "FROM":
            base, _, name = instruction.arguments.split()
            stages.append(Stage(name, expand(base, arguments), ()))
        elif instruction.name not in KNOWN:
            raise ValueError(f"{instruction.name}: not an instruction that this reads")
        elif stages:
            stage = stages[-1]
            stages[-1] = Stage(stage.name, stage.base, (*stage.instructions, instruction))
        else:
            name, _, default = instruction.arguments.partition("=")
            arguments[name] = default
    return Dockerfile(tuple(stages), arguments)


def expand(text: str, variables: Mapping[str, str]) -> str:
    """``$NAME`` and ``${NAME}`` replaced; those that are not set by nothing, as Docker does."""
    return _VARIABLE.sub(lambda found: variables.get(found[1] or found[2], ""), text)


def assignments(arguments: str) -> dict[str, str]:
    """Of an ENV instruction, before variables are replaced."""
    return dict(pair.split("=", 1) for pair in arguments.split())


def _instructions(text: str) -> Iterator[Instruction]:
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#")).replace("\\\n", " ")
    for line in lines.splitlines():
        if line.strip():
            name, arguments = line.split(maxsplit=1)
            yield Instruction(name, arguments.strip())
