"""``python -m deploy.grafana``: write the dashboards that Grafana is provisioned with, as JSON."""

from __future__ import annotations

from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.grafana.fleet import fleet
from deploy.grafana.gpu import gpu
from deploy.grafana.overview import overview

FOLDER = Path(__file__).resolve().parent / "dashboards"


def texts() -> dict[str, str]:
    """By file name."""
    boards = {"overview.json": overview(), "gpu.json": gpu(), "fleet.json": fleet()}
    return {name: JSONEncoder(sort_keys=True, indent=1).encode(board) + "\n" for name, board in boards.items()}


if __name__ == "__main__":
    for name, text in texts().items():
        (FOLDER / name).write_text(text)
