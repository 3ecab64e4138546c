"""The Dockerfile's steps in chroots, where no container engine runs: every instruction of a target and of the stages
that it needs is carried out, in order, on a bare Debian with Python. Then the image is run as a container would be: it
must answer its health check and an inference, and stop when told (see ``deploy.image.container``).

    python -m deploy.image.rehearse --target cpu --work FOLDER

Needs root, debootstrap, iproute2 and util-linux. Debian's Python (3.11 or later) stands for the base image's own; the
rest is the same.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from deploy.image.container import try_out
from deploy.image.dockerfile import Dockerfile, Instruction, Stage, assignments, expand, parse

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = "python3,python3-venv,python3-dev,ca-certificates"  # python images have headers, venv and certificates
NOT_COPIED = shutil.ignore_patterns("__pycache__")  # as .dockerignore


@dataclass(frozen=True, slots=True)
class Image:
    """A root directory, and what the instructions so far have set."""

    root: Path
    environment: Mapping[str, str]
    folder: str = "/"


@dataclass(frozen=True, slots=True)
class Place:
    """``work``: a folder on one file system, in which a root directory is made for each stage. ``binds``: files and
    folders of this machine that RUN sees, too (pip's settings, say)."""

    work: Path
    suite: str
    build_arguments: Mapping[str, str]
    binds: Sequence[Path]


def build(dockerfile: Dockerfile, target: str, place: Place) -> Image:
    """Carries out ``target`` and what it needs. Raises CalledProcessError where a step fails."""
    images: dict[str, Image] = {}
    for stage in dockerfile.needed(target):
        beginning = images.get(stage.base) or debian(place)
        images[stage.name] = carry_out(stage, beginning, images, place)
    return images[target]


def debian(place: Place) -> Image:
    """What stands for the base image. Made once per ``place``."""
    root = place.work / "debian"
    if not root.exists():
        unfinished = place.work / "debian.unfinished"
        subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", place.suite, str(unfinished)], check=True
        )
        (unfinished / "usr" / "local" / "bin" / "python").symlink_to("/usr/bin/python3")
        unfinished.rename(root)
    return Image(root, {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"})


def carry_out(stage: Stage, beginning: Image, images: Mapping[str, Image], place: Place) -> Image:
    """The image after a stage's instructions, in a root directory of its own."""
    root = place.work / stage.name
    shutil.rmtree(root, ignore_errors=True)  # of an earlier rehearsal
    subprocess.run(["cp", "-a", "--reflink=auto", beginning.root, root], check=True)
    image = replace(beginning, root=root)
    arguments: dict[str, str] = {}  # of this stage: an ARG ends with it
    for instruction in stage.instructions:
        print(f"[{stage.name}] {instruction.name} {instruction.arguments}", flush=True)
        if instruction.name == "ARG":
            name, _, default = instruction.arguments.partition("=")
            arguments[name] = place.build_arguments.get(name, default)
        else:
            image = step(instruction, image, arguments, images, place)
    return image


def step(
    instruction: Instruction,
    image: Image,
    arguments: Mapping[str, str],
    images: Mapping[str, Image],
    place: Place,
) -> Image:
    """What one instruction does to the root directory and leaves set. The others are about running alone."""
    text = instruction.arguments
    match instruction.name:
        case "RUN":
            run(text, image, dict(image.environment) | dict(arguments), place.binds)
        case "COPY":
            copy(text, image, images)
        case "ENV":
            set_now = {name: expand(value, image.environment) for name, value in assignments(text).items()}
            return replace(image, environment={**image.environment, **set_now})
        case "WORKDIR":
            (image.root / text.lstrip("/")).mkdir(parents=True, exist_ok=True)
            return replace(image, folder=text)
    return image


def run(command: str, image: Image, environment: Mapping[str, str], binds: Sequence[Path]) -> None:
    """A shell command in the root directory; mounts and processes end with it."""
    mounts = ["mount --rbind /dev dev", "mount -t proc proc proc"]
    for outside in (Path("/etc/resolv.conf"), *binds):
        inside = image.root / str(outside.resolve()).lstrip("/")
        make = f"mkdir -p {shlex.quote(str(inside))}" if outside.is_dir() else f"touch {shlex.quote(str(inside))}"
        inside.parent.mkdir(parents=True, exist_ok=True)
        mounts.append(f"{make} && mount --bind {shlex.quote(str(outside))} {shlex.quote(str(inside))}")
    variables = [f"{name}={value}" for name, value in environment.items() if value]
    there = f"cd {shlex.quote(image.folder)} && {command}"
    chroot = shlex.join(["chroot", ".", "env", "-i", *variables, "/bin/sh", "-c", there])
    script = " && ".join([*mounts, f"exec {chroot}"])
    subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script], cwd=image.root, check=True
    )


def copy(arguments: str, image: Image, images: Mapping[str, Image]) -> None:
    """From the repository, or from the image of another stage. A folder gives what is in it, as Docker has it."""
    *options, target = arguments.split()
    stages = [option.removeprefix("--from=") for option in options if option.startswith("--from=")]
    origin = images[stages[0]].root if stages else REPOSITORY
    within = target if target.startswith("/") else f"{image.folder}/{target}"
    destination = image.root / within.lstrip("/")
    for source in (origin / option.lstrip("/") for option in options if not option.startswith("--")):
        if source.is_dir():
            shutil.copytree(
                source, destination, symlinks=True, dirs_exist_ok=True, ignore=None if stages else NOT_COPIED
            )
        else:
            shutil.copy2(source, destination)


def size_mib(root: Path) -> int:
    return int(subprocess.run(["du", "-sm", root], check=True, capture_output=True, text=True).stdout.split()[0])


def pair(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--work", type=Path, required=True, help="folder for the root directories")
    parser.add_argument("--suite", default="bookworm", help="of Debian, with Python 3.11 or later")
    parser.add_argument("--build-arg", type=pair, action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--bind", type=Path, action="append", default=[], help="file or folder that RUN sees, too")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    dockerfile = parse((REPOSITORY / "Dockerfile").read_text())
    place = Place(given.work.resolve(), given.suite, dict(given.build_arg), given.bind)
    began = time.monotonic()
    image = build(dockerfile, given.target, place)
    base, whole = size_mib(place.work / "debian"), size_mib(image.root)
    print(f"built in {time.monotonic() - began:.0f} s: {whole} MiB, {base} of them the base", flush=True)
    try_out(dockerfile, given.target, image.root, image.environment, image.folder, REPOSITORY / "examples")
    print("the image serves, is healthy, infers and stops")


if __name__ == "__main__":
    main()
