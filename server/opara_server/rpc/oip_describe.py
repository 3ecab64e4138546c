"""What the server knows about its models, as messages of the Open Inference Protocol."""

from __future__ import annotations

from math import inf
from typing import Any

from opara_server.engine.spec import TensorSpec
from opara_server.observe.statistics import Statistics, Total
from opara_server.rpc.descriptors import message_class
from opara_server.rpc.oip_codec import VERSION
from opara_server.rpc.oip_wire import DATATYPES
from opara_server.serving.models import ModelDescription, ModelState, ServedModel

PLATFORM, BACKEND = "pytorch", "opara"
_ModelMetadataResponse = message_class("ModelMetadataResponse")
_ModelConfigResponse = message_class("ModelConfigResponse")
_ModelStatistics = message_class("ModelStatistics")
_ModelIndex = message_class("RepositoryIndexResponse.ModelIndex")


def metadata_message(model: ServedModel) -> Any:
    """A ModelMetadataResponse."""
    message = _ModelMetadataResponse(name=model.name, versions=[VERSION], platform=PLATFORM)
    for described, specs in ((message.inputs, model.inputs), (message.outputs, model.outputs)):
        for spec in specs:
            described.add(name=spec.name, datatype=DATATYPES[spec.dtype], shape=(-1, *spec.shape))
    return message


def config_message(model: ServedModel) -> Any:
    """A ModelConfigResponse, in Triton's words: dims are those of one row."""
    response, limits = _ModelConfigResponse(), model.batcher.limits
    config = response.config
    config.name, config.platform, config.backend = model.name, PLATFORM, BACKEND
    config.version_policy.latest.num_versions = 1
    config.max_batch_size = min(model.max_rows, 2**31 - 1)
    for tensors, specs in ((config.input, model.inputs), (config.output, model.outputs)):
        for spec in specs:
            tensors.add(name=spec.name, data_type=_data_type(spec), dims=spec.shape)
    kind = "KIND_GPU" if model.plan.device == "cuda" else "KIND_CPU"
    config.instance_group.add(name=model.name, count=1, kind=kind)
    batching = config.dynamic_batching
    batching.preferred_batch_size.extend(limits.preferred_sizes or limits.buckets)
    batching.max_queue_delay_microseconds = round(limits.max_queue_delay_s * 1e6)
    batching.priority_levels, batching.default_priority_level = len(limits.level_rows) or 1, limits.default_level
    if limits.queue_timeout_s < inf:
        batching.default_queue_policy.default_timeout_microseconds = round(limits.queue_timeout_s * 1e6)
    batching.default_queue_policy.allow_timeout_override = limits.timeout_override
    return response


def statistics_message(name: str, known: Statistics) -> Any:
    """A ModelStatistics."""
    message = _ModelStatistics(name=name, version=VERSION, inference_count=known.rows, execution_count=known.batches)
    stats = message.inference_stats
    for duration, total in (
        (stats.success, known.answered),
        (stats.fail, known.failed),
        (stats.queue, known.queued),
        (stats.compute_input, known.copy_in),
        (stats.compute_infer, known.replay),
        (stats.compute_output, known.copy_out),
    ):
        _set(duration, total)
    for bucket, total in known.replays.items():
        _set(message.batch_stats.add(batch_size=bucket).compute_infer, total)
    return message


def index_message(model: ModelDescription) -> Any:
    """A RepositoryIndexResponse.ModelIndex."""
    message = _ModelIndex(name=model.name, version=VERSION)
    match model.state:
        case ModelState.LOADING | ModelState.READY:
            message.state = model.state
        case ModelState.FAILED:
            message.state, message.reason = "UNAVAILABLE", f"{model.told}: the server's log says why"
        case ModelState.UNLOADED:
            message.state, message.reason = "UNAVAILABLE", "unloaded"
    return message


def _data_type(spec: TensorSpec) -> str:
    return f"TYPE_{DATATYPES[spec.dtype]}"


def _set(duration: Any, total: Total) -> None:
    duration.count, duration.ns = total.count, round(total.seconds * 1e9)
