"""The models that are measured."""

from bench.models.registry import MODELS, find_model, require_packages
from bench.models.settle import settle
from bench.models.spec import BenchModel

__all__ = ["MODELS", "BenchModel", "find_model", "require_packages", "settle"]
