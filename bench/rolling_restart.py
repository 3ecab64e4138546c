"""Three servers under load, restarted one after the other three times, then one of them killed: which requests fail.

    python -m bench.rolling_restart --only envoy

Behind each proxy of deploy/proxies that is installed, and behind a name that stands for all three. Two loads run at
once: clients as opara_client opens them, and clients that never try again. Results of earlier runs are kept, by target.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer

from bench.balancing.load import RETRIES_OFF, Outcome, offered
from bench.balancing.names import named
from bench.balancing.proxies import PROXIES, Proxy, running, version
from bench.balancing.replicas import Replica, replicas, start_all
from bench.environment import environment
from bench.serving.starting import free_ports

RESULTS = Path(__file__).resolve().parent / "results"
NAME = "a name, round_robin"
PHASES = ("restarts", "kill")
OPTIONS = ("--drain-delay=3", "--listen-when-ready")
QUEUE_DELAY_US = 10_000
CONNECTIONS = 8
SETTLE_S = 1.0  # between a server's READY and the next one's SIGTERM, as minReadySeconds


def main(
    rate: Annotated[float, typer.Option(help="Requests per second of each of the two loads.")] = 300.0,
    cycles: int = 3,
    only: Annotated[str, typer.Option(help="One target: a proxy's name, or 'name'.")] = "",
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = RESULTS,
) -> None:
    """Ends with status 1 where a request failed that clients with retries sent."""
    file = out / "rolling_restart.json"
    results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    targets: list[Proxy | None] = [proxy for proxy in PROXIES if proxy.program() and only in ("", proxy.name)]
    targets += [None] if only in ("", "name") else []
    out.mkdir(parents=True, exist_ok=True)
    for proxy in targets:
        with tempfile.TemporaryDirectory() as folder:
            measured = asyncio.run(_measure(proxy, rate, cycles, Path(folder)))
        results[NAME if proxy is None else proxy.name] = measured
        file.write_text(json.dumps(results, indent=1) + "\n")
        (out / "rolling_restart.md").write_text(page(results))
    failed = [name for name, result in results.items() if any(result[phase]["default"]["failed"] for phase in PHASES)]
    if failed:
        raise SystemExit(f"requests failed behind {', '.join(failed)}")


async def _measure(proxy: Proxy | None, rate: float, cycles: int, folder: Path) -> dict[str, Any]:
    port, *metrics = free_ports(4)
    addresses = [f"127.0.0.{host}:{port}" for host in (2, 3, 4)]
    pages = [f"127.0.0.1:{page}" for page in metrics]
    async with replicas(addresses, pages, folder, OPTIONS, delay_us=QUEUE_DELAY_US) as servers:
        await start_all(servers)
        async with entrance(proxy, addresses, folder) as target:
            restarts = await _under_load(target, rate, _restart(servers, cycles))
            kill = await _under_load(target, rate, _kill(servers[0]))
    return {
        "environment": environment() | {"grpc": grpc.__version__, "version": version(proxy) if proxy else ""},
        "settings": {"rate": rate, "cycles": cycles, "options": " ".join(OPTIONS), "connections": CONNECTIONS},
        "restarts": restarts,
        "kill": kill,
    }


@asynccontextmanager
async def entrance(proxy: Proxy | None, addresses: Sequence[str], folder: Path) -> AsyncIterator[str]:
    """The target by which clients reach all of the servers: a proxy's, or, without one, a name's."""
    if proxy is not None:
        async with running(proxy, free_ports(1)[0], addresses, folder) as target:
            yield target
        return
    hosts, port = [address.partition(":")[0] for address in addresses], addresses[0].partition(":")[2]
    async with named(hosts) as names:
        yield f"dns://{names.address}/servers.test:{port}"


async def _under_load(target: str, rate: float, what: Any) -> dict[str, Any]:
    began = time.monotonic()
    async with (
        offered(target, rate, CONNECTIONS) as default,
        offered(target, rate, CONNECTIONS, RETRIES_OFF) as off,
    ):
        await asyncio.sleep(1.0)
        await what
        await asyncio.sleep(1.0)
    return {"seconds": round(time.monotonic() - began, 1), "default": _summary(default), "off": _summary(off)}


async def _restart(servers: Sequence[Replica], cycles: int) -> None:
    for _ in range(cycles):
        for server in servers:
            await server.stop()
            await server.start()
            await asyncio.sleep(SETTLE_S)


async def _kill(server: Replica) -> None:
    await server.kill()
    await asyncio.sleep(3.0)
    await server.start()


def _summary(outcome: Outcome) -> dict[str, Any]:
    return {
        "sent": outcome.sent,
        "answered": outcome.answered,
        "wrong": outcome.wrong,
        "failed": len(outcome.failures),
        "codes": dict(outcome.codes()),
        "p50_ms": outcome.quantile_ms(0.5),
        "p99_ms": outcome.quantile_ms(0.99),
    }


def page(results: dict[str, Any]) -> str:
    """What was measured, as Markdown."""
    rows = [
        [
            f"{name} {result['environment']['version']}".strip(),
            str(result[phase]["default"]["sent"]),
            str(result[phase]["default"]["failed"]),
            str(result[phase]["off"]["sent"]),
            str(result[phase]["off"]["failed"]),
            "; ".join(f"{count} {code}" for code, count in result[phase]["off"]["codes"].items()),
            f"{result[phase]['default']['p50_ms']} / {result[phase]['default']['p99_ms']}",
        ]
        for phase in PHASES
        for name, result in results.items()
    ]
    heads = ["behind", "sent", "failed", "sent, no retries", "failed", "as", "p50 / p99 ms"]
    first = next(iter(results.values()))
    made, settings, count = first["environment"], first["settings"], len(results)
    return (
        "# Rolling restarts\n\n"
        f"`python -m bench.rolling_restart`, {made['date']}, {made['cores']} cores ({made['cpu']}), opara-serve "
        f"{made['opara']}, grpcio {made['grpc']}.\n"
        f"Three servers (`{settings['options']}`) that take a second and a half to load; {settings['rate']:g} "
        f"requests/s from clients as `opara_client` opens them and {settings['rate']:g} from clients that never try "
        "again.\n\n"
        f"## Restarted one after the other, {settings['cycles']} times\n\n"
        f"{_table(heads, rows[:count])}\n\n"
        f"## One killed (SIGKILL), and started again\n\n{_table(heads, rows[count:])}\n"
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    typer.run(main)
