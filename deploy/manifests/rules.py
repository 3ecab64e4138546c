"""Prometheus' rules as a resource of the Prometheus Operator: python -m deploy.manifests.rules writes it."""

from __future__ import annotations

from pathlib import Path

import yaml

DEPLOY = Path(__file__).resolve().parents[1]
RULES = DEPLOY / "prometheus" / "rules.yml"
RESOURCE = DEPLOY / "k8s" / "components" / "monitoring" / "rules.yaml"
HEAD = "# Written by `make prometheus-rule` from deploy/prometheus/rules.yml.\n"


def prometheus_rule() -> str:
    """The file's text."""
    resource = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "opara-serve", "labels": {"app.kubernetes.io/name": "opara-serve"}},
        "spec": yaml.safe_load(RULES.read_text()),
    }
    return HEAD + yaml.safe_dump(resource, sort_keys=False, width=120)


if __name__ == "__main__":
    RESOURCE.write_text(prometheus_rule())
