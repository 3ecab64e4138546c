"""Bearer tokens: who is let in, on either transport and in the file itself."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st

from opara_protos.v1 import inference_pb2 as pb
from opara_server.app import Application
from opara_server.rpc.access import ADMIN, OPEN, Access
from opara_server.rpc.descriptors import message_class, reflection_pool
from opara_server.rpc.tokens import TokenFile
from opara_server.settings import ConfigError
from tests.rpc.served import MODEL, PATIENCE_S, Served, config, doubled, eventually, refused, request, serve

OIP = "/inference.GRPCInferenceService"
METHODS = (
    "/opara.v1.InferenceService/Infer",
    "/opara.v1.InferenceService/InferStream",
    "/opara.v1.InferenceService/ListModels",
    f"{OIP}/ModelInfer",
    f"{OIP}/ModelStreamInfer",
    f"{OIP}/ServerMetadata",
    f"{OIP}/RepositoryModelUnload",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/no.Service/Method",
)
MISSING = (grpc.StatusCode.UNAUTHENTICATED, 'no bearer token: send the metadata "authorization: Bearer TOKEN"')
WRONG = (grpc.StatusCode.UNAUTHENTICATED, "the bearer token is not valid")
NO_ADMIN = (grpc.StatusCode.PERMISSION_DENIED, "this call needs the bearer token of an administrator")


def bearer(token: str) -> tuple[tuple[str, str]]:
    return (("authorization", f"Bearer {token}"),)


async def call(served: Served, method: str, metadata: Iterable[tuple[str, str]] = (), message: bytes = b"") -> bytes:
    """One message there and one back: on the wire a stream looks the same."""
    unary: Any = served.channel.unary_unary(method, None, None)
    answer: bytes = await unary(message, metadata=tuple(metadata), timeout=PATIENCE_S)
    return answer


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    file = tmp_path / "tokens"
    file.write_text("# those of today\nfirst-token\n\n  c2Vjb25k+/==  \n")
    return file


@pytest.fixture
def admin_tokens(tmp_path: Path) -> Path:
    file = tmp_path / "admin-tokens"
    file.write_text("root\n")
    return file


async def test_no_method_but_health_is_open_without_a_token(models: Path, transport: str, tokens: Path) -> None:
    large = bytes(4 << 20)  # beyond the limit: nothing of it is read
    async with serve(models, transport=transport, token_file=tokens) as served:
        for method in METHODS:
            assert await refused(call(served, method)) == MISSING
            assert await refused(call(served, method, bearer("wrong"), large)) == WRONG
            assert await refused(call(served, method, [("authorization", "Basic first-token")])) == MISSING
        count = served.sample("opara_requests_total", model="(unknown)", code="UNAUTHENTICATED")
        assert count == 3 * len(METHODS)
        assert served.sample("opara_rejected_total", model="(unknown)", reason="credentials") == count
        assert served.sample("opara_rows_total", model=MODEL) == 0
        assert await served.health() == 1
        watch = health_pb2_grpc.HealthStub(served.channel).Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
        assert (await watch.read()).status == 1
        watch.cancel()
        for method in (f"{OIP}/ServerLive", f"{OIP}/ServerReady"):
            assert await call(served, method) == b"\x08\x01"


async def test_every_token_of_the_file_is_good_for_every_method(models: Path, transport: str, tokens: Path) -> None:
    async with serve(models, transport=transport, token_file=tokens) as served:
        for token in ("first-token", "c2Vjb25k+/=="):
            answer = await served.stub.Infer(request(1.0), metadata=bearer(token), timeout=PATIENCE_S)
            assert doubled(answer) == [2.0]
            streamed = pb.InferStreamRequest(request=request(2.0)).SerializeToString()
            answered = await call(served, "/opara.v1.InferenceService/InferStream", bearer(token), streamed)
            assert doubled(pb.InferStreamResponse.FromString(answered).response) == [4.0]
        lower = [("authorization", "bearer first-token")]
        assert MODEL.encode() in await call(served, "/opara.v1.InferenceService/ListModels", lower)
        assert (await refused(call(served, METHODS[-1], bearer("first-token"))))[0] is grpc.StatusCode.UNIMPLEMENTED


async def test_tokens_are_read_again_when_their_file_is_replaced(models: Path, transport: str, tokens: Path) -> None:
    """By a new link, as in a mounted secret of Kubernetes."""
    old, new = tokens.rename(tokens.with_name("old")), tokens.with_name("new")
    new.write_text("third\n")
    tokens.symlink_to(old)

    async with serve(models, transport=transport, token_file=tokens) as served:
        list_models: Any = served.channel.unary_unary("/opara.v1.InferenceService/ListModels", None, None)

        async def good(token: str) -> bool:
            try:
                await list_models(b"", metadata=bearer(token), timeout=PATIENCE_S)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAUTHENTICATED:
                    raise
                return False
            return True

        assert await good("first-token")
        assert not await good("third")
        link = tokens.with_name("link")
        link.symlink_to(new)
        link.rename(tokens)
        await eventually(lambda: good("third"))
        assert not await good("first-token")


async def test_an_administrators_calls_need_an_administrators_token(
    models: Path, transport: str, tokens: Path, admin_tokens: Path
) -> None:
    unload = message_class("RepositoryModelUnloadRequest")(model_name=MODEL).SerializeToString()
    method = f"{OIP}/RepositoryModelUnload"
    files: dict[str, Any] = {"token_file": tokens, "admin_token_file": admin_tokens}
    async with serve(models, transport=transport, admin=True, **files) as served:
        assert await refused(call(served, method, message=unload)) == MISSING
        assert await refused(call(served, method, bearer("wrong"), unload)) == WRONG
        assert await refused(call(served, method, bearer("first-token"), unload)) == NO_ADMIN
        answer = await served.stub.Infer(request(1.0), metadata=bearer("root"), timeout=PATIENCE_S)
        assert doubled(answer) == [2.0]
        assert await call(served, method, bearer("root"), unload) == b""
        assert await served.health(MODEL) == 2


async def test_administrators_alone_may_need_tokens(models: Path, transport: str, admin_tokens: Path) -> None:
    async with serve(models, transport=transport, admin=True, admin_token_file=admin_tokens) as served:
        assert await served.infer(1.0) == [2.0]
        assert await refused(call(served, f"{OIP}/RepositoryModelLoad")) == MISSING
        assert await refused(call(served, f"{OIP}/RepositoryModelLoad", bearer("wrong"))) == WRONG


async def test_tokens_in_plain_text_are_warned_of(models: Path, tokens: Path, caplog: pytest.LogCaptureFixture) -> None:
    Application(config(models, token_file=tokens))
    assert "bearer tokens travel in plain text" in caplog.text


def test_what_is_open_and_what_is_an_administrators_exists_and_is_not_the_same() -> None:
    assert not OPEN & ADMIN
    pool = reflection_pool()
    for path in OPEN | ADMIN:
        assert pool.FindMethodByName(path[1:].replace("/", "."))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no token in it"),
        (b"# none\n\n", "no token in it"),
        (b"s3cret\nnot s3cret\n", "line 2 is no token"),
        (b"caf\xc3\xa9\n", "not plain ASCII"),
    ],
)
def test_a_file_without_good_tokens_is_refused_and_its_content_not_told(
    tmp_path: Path, content: bytes, says: str
) -> None:
    file = tmp_path / "tokens"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        TokenFile(file)
    assert str(caught.value).startswith(f"{file}: {says}")
    assert "s3cret" not in str(caught.value)
    with pytest.raises(ConfigError, match="No such file or directory"):
        TokenFile(tmp_path / "nothing")


def test_a_file_that_is_bad_later_leaves_the_tokens_as_they_were(
    tokens: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("opara_server.rpc.tokens._LOOK_S", 0.0)
    file = TokenFile(tokens)
    tokens.write_text("not good\n")
    assert file.holds("first-token")
    assert file.holds("first-token")
    tokens.unlink()
    assert file.holds("first-token")
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
    tokens.write_text("another\n")
    assert file.holds("another")
    assert not file.holds("first-token")


TOKEN = st.from_regex(r"[A-Za-z0-9\-._~+/]+=*", fullmatch=True)


@given(kept=st.sets(TOKEN, min_size=1, max_size=5), asked=TOKEN | st.text(max_size=20))
def test_a_call_is_let_in_if_and_only_if_its_token_is_in_the_file(
    tmp_path_factory: pytest.TempPathFactory, kept: set[str], asked: str
) -> None:
    file = tmp_path_factory.getbasetemp() / f"tokens-{os.getpid()}"
    file.write_text("\n".join(kept))
    refusal = Access(file, None).refusal("/any/Method", bearer(asked))
    assert (refusal is None) == (asked.strip() in kept)
