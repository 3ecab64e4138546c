"""python -m deploy.manifests FOLDER: prints what ``kubectl apply -k FOLDER`` would apply, once all of it is valid."""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

from deploy.manifests.build import build
from deploy.manifests.kustomization import KustomizationError
from deploy.manifests.schemas import InvalidManifestError, validate


def main(folder: Path) -> None:
    try:
        resources = build(folder)
        for resource in resources:
            validate(resource)
    except (KustomizationError, InvalidManifestError) as error:
        sys.exit(str(error))
    print(yaml.safe_dump_all(resources, sort_keys=False), end="")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
