"""``python -m bench.observing.record``: what a server on a GPU says of itself under load, as the data that the GPU
dashboard is tested with and drawn from."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from bench.observing.exposition import EVERY_S, RECORDED, save, scraped
from bench.observing.traffic import traffic
from examples.serving import MODELS, running_server
from opara_server.observe.gpu import MEMORY_TOTAL


def main(
    out: Annotated[Path, typer.Argument(help="The file, NAME.json.gz.")] = RECORDED,
    models: Annotated[Path, typer.Option(help="Folder with one folder per model.")] = MODELS,
    times: Annotated[int, typer.Option(help="Readings, a second apart.")] = 15,
    gpu: Annotated[bool, typer.Option(help="Refuse what comes from a server without a GPU.")] = True,
) -> None:
    """Serve ``models``, ask all of them, keep what /metrics says meanwhile."""
    names = sorted(folder.name for folder in models.iterdir() if (folder / "model.toml").exists())
    with running_server(models) as server, traffic(server.grpc, names):
        pages = scraped(server.metrics, times, EVERY_S)
    if gpu and MEMORY_TOTAL.name not in pages[-1]:
        sys.exit(f"the server has no {MEMORY_TOTAL.name}: is there a GPU, and nvidia-ml-py?")
    save(pages, out)


if __name__ == "__main__":
    typer.run(main)
