"""Times variants of one piece of work side by side: interleaved, so that a busy machine slows all
of them alike, and compared pair by pair."""

import ctypes
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from protolib import __version__

Clock = Callable[[], float]
PACKAGES = ("torch", "numpy", "scipy", "timm", "transformers")
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def compare(
    what: str, variants: dict[str, Callable], repeats: int, clock: Clock = time.process_time
) -> dict:
    """Seconds of each variant, and how much quicker each is than the first, the reference.

    Each round runs all of them once, and its ratios are those of that round; what warms
    up, and finds operations and peak memory, is not counted. clock: CPU seconds of this process
    where no other is given. Returns what the JSON of a topic holds of one comparison.
    """
    cost = {name: _cost(work) for name, work in variants.items()}
    found: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, work in variants.items():
            found[name].append(seconds(work, clock))
    reference, *others = variants
    ratios = {
        name: summary([a / b for a, b in zip(found[reference], found[name])]) for name in others
    }
    made = {name: {"seconds": summary(found[name])} | cost[name] for name in variants}
    _print(what, made, ratios)
    return {"what": what, "repeats": repeats, "variants": made, "ratios": ratios}


def seconds(work: Callable, clock: Clock = time.process_time) -> float:
    """Seconds that a piece of work takes by a clock."""
    began = clock()
    work()
    return clock() - began


def wall_of_gpu() -> float:
    """The clock of a GPU: it has done all that it was asked before it is read."""
    torch.cuda.synchronize()
    return time.perf_counter()


def summary(values: list[float]) -> dict[str, float]:
    """The median of some numbers and their spread."""
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def _cost(work: Callable) -> dict[str, float | None]:
    """Peak memory over what was held before, MB of 10^6 bytes, and the GFLOP of torch's products;
    None where they cannot be told."""
    counter = FlopCounterMode(display=False)
    with counter:  # it imports what it counts with, so memory is looked at in a second run
        work()
    if sys.platform == "linux":
        # training keeps what it frees: not given back, the peak would be what is held already
        getattr(ctypes.CDLL(None), "malloc_trim", lambda _: 0)(0)
    before = _resident("VmRSS")
    if before is not None:
        RESET.write_text("5")  # the peak from here on
    work()
    peak = None if before is None else max(0.0, _resident("VmHWM") - before)
    flops = counter.get_total_flops()
    return {"peak_mb": peak, "gflop": flops / 1e9 if flops > 1e7 else None}


def _resident(name: str) -> float | None:
    """A line of the kernel's account of our memory, MB; None where it keeps none."""
    if not (STATUS.is_file() and RESET.is_file()):
        return None
    [line] = [line for line in STATUS.read_text().splitlines() if line.startswith(name + ":")]
    return int(line.split()[1]) * 1024 / 1e6


def machine(device: str = "cpu") -> dict[str, str | int]:
    """Where and with what: for the JSON and the table."""
    card = torch.cuda.get_device_name() if device == "cuda" else _cpu()
    versions = {name: version(name) for name in PACKAGES}
    return {
        "machine": card,
        "threads": torch.get_num_threads(),
        "protolib": __version__,
        "python": platform.python_version(),
        "system": sys.platform,
    } | versions


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _print(what: str, made: dict, ratios: dict) -> None:
    print(what)
    for name, of in made.items():
        ratio = f"{ratios[name]['median']:8.1f} x" if name in ratios else " " * 10
        peak = "" if of["peak_mb"] is None else f"{of['peak_mb']:8.0f} MB"
        gflop = f"{of['gflop']:8.1f} GFLOP" if of["gflop"] else ""
        print(
            f"  {name:<44}{1e3 * of['seconds']['median']:10.1f} ms{ratio}{peak}{gflop}", flush=True
        )
