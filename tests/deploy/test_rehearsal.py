"""The rehearsal does to a root directory what Docker would; steps that need root are not run here."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.image import rehearse
from deploy.image.dockerfile import Instruction, assignments, expand, parse
from deploy.image.rehearse import Image, Place, carry_out, copy, step

TWO_STAGES = """
ARG BASE=debian
# a comment
FROM ${BASE} AS first
WORKDIR /made
COPY file folder ./
FROM ${BASE} AS unused
FROM ${BASE} AS second
ENV A=/a:$PATH \\
    B=${A}b
COPY --from=first /made /copied
"""


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What stands for the repository: a file, and a folder with one file and a cache of Python's."""
    folder = tmp_path / "context"
    (folder / "folder" / "__pycache__").mkdir(parents=True)
    (folder / "folder" / "__pycache__" / "x.pyc").touch()
    (folder / "folder" / "inner").write_text("inner")
    (folder / "file").write_text("file")
    monkeypatch.setattr(rehearse, "REPOSITORY", folder)
    return folder


def place(tmp_path: Path) -> Place:
    (tmp_path / "debian").mkdir()
    return Place(tmp_path, "bookworm", {}, ())


def test_a_dockerfile_is_read_with_its_variables_and_continued_lines() -> None:
    dockerfile = parse(TWO_STAGES)
    assert dockerfile.arguments == {"BASE": "debian"}
    assert [(stage.name, stage.base) for stage in dockerfile.stages] == [
        ("first", "debian"),
        ("unused", "debian"),
        ("second", "debian"),
    ]
    assert [stage.name for stage in dockerfile.needed("second")] == ["first", "second"]
    assert assignments("A=/a:$PATH B=${A}b") == {"A": "/a:$PATH", "B": "${A}b"}
    assert expand("/a:$PATH ${NONE}x", {"PATH": "/bin"}) == "/a:/bin x"


def test_stages_copy_from_the_repository_and_from_each_other(context: Path, tmp_path: Path) -> None:
    where, dockerfile = place(tmp_path), parse(TWO_STAGES)
    bare = Image(tmp_path / "debian", {"PATH": "/bin"})
    first = carry_out(dockerfile.stage("first"), bare, {}, where)
    second = carry_out(dockerfile.stage("second"), bare, {"first": first}, where)
    copied = {str(path.relative_to(second.root)) for path in second.root.rglob("*")}
    assert copied == {"copied", "copied/file", "copied/inner"}  # of a folder what is in it, and no caches
    # both are of the same instruction: the second sees what was before it
    assert second.environment == {"PATH": "/bin", "A": "/a:/bin", "B": "b"}


def test_a_stage_begins_anew_and_leaves_what_it_is_made_from_alone(context: Path, tmp_path: Path) -> None:
    where, stage = place(tmp_path), parse(TWO_STAGES).stage("first")
    bare = Image(tmp_path / "debian", {})
    (carry_out(stage, bare, {}, where).root / "left-over").touch()
    again = carry_out(stage, bare, {}, where)
    assert {path.name for path in (again.root / "made").iterdir()} == {"file", "inner"}
    assert not (again.root / "left-over").exists()
    assert list(bare.root.iterdir()) == []


def test_a_file_may_be_copied_to_a_name(context: Path, tmp_path: Path) -> None:
    image = Image(tmp_path, {}, "/")
    copy("file /renamed", image, {})
    assert (tmp_path / "renamed").read_text() == "file"


def test_settings_that_are_about_running_change_nothing(tmp_path: Path) -> None:
    image = Image(tmp_path, {"PATH": "/bin"})
    for name in ("USER", "EXPOSE", "VOLUME", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD"):
        assert step(Instruction(name, "x"), image, {}, {}, Place(tmp_path, "bookworm", {}, ())) == image
