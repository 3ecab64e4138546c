"""Measures operators: on CUDA with the PyTorch profiler, on the CPU with a clock; FLOPs with PyTorch's own counter.

A kernel belongs to the operator during whose annotation it was launched. The profiler gives kernel and launch the same
correlation id, which decides it; neither order nor names are looked at. (The published prototype of the paper joined
them by position in a list.)
"""

from __future__ import annotations

import statistics
import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import torch
from torch.profiler import ProfilerActivity
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from opara_server.engine.intra_op import Patience, TooSlow, intra_op_threads
from opara_server.engine.kernel import KernelLaunch
from opara_server.engine.kineto import DEVICE_WORK, Event, recorded
from opara_server.engine.profile import Kernel, OperatorProfile, Profile, Roofline
from opara_server.engine.program import Program
from opara_server.engine.trace import Interval, Trace

PASSES = 5
ANNOTATION = "opara::operator::"
LAUNCHES = {"cuda_runtime", "cuda_driver"}
CACHE_BYTES = 32 << 20  # of a CPU's last level, as servers have it

Shape = tuple[int, ...]


def count_flops(program: Program) -> list[int]:
    """Per operator its floating-point operations (matrix products, convolutions, attention; the rest counts as 0)."""
    uncounted = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}  # by PyTorch itself
    if program.lowering == "whole":  # nothing to schedule by it, and the counter does not take every module
        return [0] * len(program.graph)
    environment = program.new_environment()
    flops = []
    for operator in range(len(program.graph)):
        with FlopCounterMode(display=False, custom_mapping=uncounted) as counter:
            program.run(operator, environment)
        launches = [call.target for call in program.bodies[operator] if isinstance(call.target, KernelLaunch)]
        flops.append(counter.get_total_flops() + sum(launch.flops for launch in launches))
    return flops


def _attention_flops(query: Shape, key: Shape, value: Shape, *_other: Any, **_named: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def profile_cpu(program: Program) -> Profile:
    """Duration: the shortest of several passes, since others use the cores, too. Footprint: the share of the cores that
    the passes kept busy. With one of PyTorch's threads or all, whichever makes the whole faster: so will graphs run."""
    cores = torch.get_num_threads()
    with intra_op_threads(1):
        flops = count_flops(program)  # also the warm-up
        alone = _passes(program)
    try:
        together = _passes(program, Patience(sum(map(sum, alone[0]))))
        walls, busy = min(alone, together, key=lambda passes: sum(map(min, passes[0])))
    except TooSlow:
        walls, busy = alone
    return Profile(
        tuple(
            OperatorProfile(
                duration_us=min(walls[i]) * 1e6,
                flops=flops[i],
                bytes=program.traffic[i],
                demand=min(1.0, program.traffic[i] / CACHE_BYTES),
                footprint=min(1.0, max(1 / cores, busy[i] / (sum(walls[i]) * cores))),
            )
            for i in range(len(program.graph))
        ),
        _cpu_roofline(),
    )


def _passes(program: Program, patience: Callable[[], None] = lambda: None) -> tuple[list[list[float]], list[float]]:
    """Per operator its wall times in s, and the processors' time in all of them."""
    walls: list[list[float]] = [[] for _ in program.graph.operators]
    busy = [0.0] * len(program.graph)
    for _ in range(PASSES):
        environment = program.new_environment()
        for operator in range(len(program.graph)):
            start, cpu = time.perf_counter(), time.process_time()
            program.run(operator, environment)
            busy[operator] += time.process_time() - cpu
            walls[operator].append(time.perf_counter() - start)
            patience()
    return walls, busy


@cache
def _cpu_roofline() -> Roofline:
    return _measure_roofline(torch.device("cpu"), torch.float32, 512, 16 << 20, lambda: None)


@cache
def _cuda_roofline(dtype: torch.dtype) -> Roofline:
    return _measure_roofline(torch.device("cuda"), dtype, 4096, 512 << 20, torch.cuda.synchronize)


def _measure_roofline(
    device: torch.device, dtype: torch.dtype, side: int, nbytes: int, wait: Callable[[], None]
) -> Roofline:
    """The best of a few square matrix products, and of a few copies (bytes read plus bytes written)."""
    square = torch.randn(side, side, device=device).to(dtype)
    source = torch.randint(255, (nbytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    product = _best_seconds(lambda: square @ square, wait)
    copy = _best_seconds(lambda: target.copy_(source), wait)
    return Roofline(2 * side**3 / product, 2 * nbytes / copy)


def _best_seconds(work: Callable[[], object], wait: Callable[[], None]) -> float:
    seconds = []
    for _ in range(5):
        wait()
        start = time.perf_counter()
        work()
        wait()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def profile_cuda(program: Program) -> Profile:
    """Run the program alone, operator by operator, under the profiler; per operator its kernels and their sum."""
    flops = count_flops(program)
    program.run_in_order()
    with recorded(ProfilerActivity.CPU, ProfilerActivity.CUDA) as events:
        for _ in range(PASSES):
            environment = program.new_environment()
            for operator in range(len(program.graph)):
                with torch.profiler.record_function(f"{ANNOTATION}{operator}"):
                    program.run(operator, environment)
            torch.cuda.synchronize()
    kernels = kernels_by_operator(events, len(program.graph))
    properties = torch.cuda.get_device_properties()
    dtypes = [t.dtype for t in program.fixed.values() if isinstance(t, torch.Tensor) and t.is_floating_point()]
    return Profile(
        tuple(_cuda_operator(kernels[i], flops[i], program.traffic[i], properties) for i in range(len(program.graph))),
        _cuda_roofline(max(set(dtypes), key=dtypes.count, default=torch.float32)),
    )


def kernels_by_operator(events: Iterable[Event], count: int) -> list[tuple[Kernel, ...]]:
    """Join a profiler trace (Chrome trace events) to operators by correlation id.

    An operator annotated in several passes gets its kernels once, each with its median duration over the passes.
    """
    annotations = defaultdict(list)  # per thread (start, end, operator), one after the other
    launches, device_work = [], {}
    for event in events:
        category, args = event.get("cat"), event.get("args", {})
        if category == "user_annotation" and event["name"].startswith(ANNOTATION):
            annotations[event["tid"]].append(
                (event["ts"], event["ts"] + event["dur"], int(event["name"][len(ANNOTATION) :]))
            )
        elif category in LAUNCHES and "correlation" in args:
            launches.append((event["ts"], event["tid"], args["correlation"]))
        elif category in DEVICE_WORK:
            device_work[args["correlation"]] = event
    for spans in annotations.values():
        spans.sort()
    passes: list[dict[float, list[Event]]] = [defaultdict(list) for _ in range(count)]
    for at, thread, correlation in sorted(launches):
        spans = annotations.get(thread, [])
        index = bisect_right(spans, (at, float("inf"), 0)) - 1
        if index >= 0 and at <= spans[index][1] and correlation in device_work:
            start, _, operator = spans[index]
            passes[operator][start].append(device_work[correlation])
    return [_kernels(list(of_operator.values())) for of_operator in passes]


def _kernels(passes: Sequence[Sequence[Event]]) -> tuple[Kernel, ...]:
    if not passes:
        return ()
    usual = statistics.mode(len(launched) for launched in passes)
    alike = [launched for launched in passes if len(launched) == usual]
    return tuple(_kernel(same, statistics.median(e["dur"] for e in same)) for same in zip(*alike, strict=True))


def _kernel(same: Sequence[Event], duration_us: float) -> Kernel:
    args = same[0]["args"]
    return Kernel(
        name=same[0]["name"],
        duration_us=duration_us,
        grid=tuple(args.get("grid", (1, 1, 1))),
        block=tuple(args.get("block", (1, 1, 1))),
        registers_per_thread=args.get("registers per thread", 0),
        shared_memory=args.get("shared memory", 0),
        occupancy=args.get("est. achieved occupancy %", 0) / 100,
    )


def _cuda_operator(kernels: tuple[Kernel, ...], flops: int, traffic: int, properties: Any) -> OperatorProfile:
    duration = sum(k.duration_us for k in kernels)
    shares = [_block_share(k, properties) for k in kernels]
    resident = [
        k.blocks / (properties.multi_processor_count * max(1, int(1 / s))) for k, s in zip(kernels, shares, strict=True)
    ]
    busy = sum(k.duration_us * min(1.0, r) for k, r in zip(kernels, resident, strict=True))
    return OperatorProfile(
        duration, flops, traffic, max(shares, default=0.0), busy / duration if duration else 0.0, kernels
    )


def _block_share(kernel: Kernel, properties: Any) -> float:
    """The largest share of one multiprocessor's shared memory, registers or threads that one block takes."""
    shared_memory = kernel.shared_memory / float(properties.shared_memory_per_multiprocessor)
    registers = kernel.registers_per_thread * kernel.threads_per_block / float(properties.regs_per_multiprocessor)
    threads = kernel.threads_per_block / float(properties.max_threads_per_multi_processor)
    return min(1.0, max(shared_memory, registers, threads))


def trace_cuda(replay: Callable[[], None], replays: int) -> Trace:
    """Profile graph replays: the kernels of one replay share its launch's correlation id and carry hardware streams."""
    replay()
    torch.cuda.synchronize()
    with recorded(ProfilerActivity.CUDA) as events:
        for _ in range(replays):
            replay()
            torch.cuda.synchronize()
    work = defaultdict(list)
    for event in events:
        if event.get("cat") in DEVICE_WORK:
            work[event["args"]["correlation"]].append(event)
    numbers: dict[int, int] = {}  # hardware streams in order of first use
    return Trace(tuple(_intervals(events, numbers) for events in work.values()))


def _intervals(events: Sequence[Event], numbers: dict[int, int]) -> tuple[Interval, ...]:
    ordered = sorted(events, key=lambda e: e["ts"])
    begin = ordered[0]["ts"]
    return tuple(
        Interval(
            stream=numbers.setdefault(e["args"]["stream"], len(numbers)),
            start_us=e["ts"] - begin,
            end_us=e["ts"] - begin + e["dur"],
            name=e["name"],
        )
        for e in ordered
    )
