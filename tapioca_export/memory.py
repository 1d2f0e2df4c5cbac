"""The memory of this process: the most that it had, and what it has no use for.

Knows nothing about what it is used for. Nothing heavy may be imported here: a process whose memory is
measured imports it.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path


def peak_resident_bytes() -> int:
    """Return the most memory this process has had resident so far; 0 where the platform does not tell."""
    # Linux: ru_maxrss survives fork and exec, so that a child would show its parent's peak;
    # VmHWM belongs to the new program alone.
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows has none
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, others KiB


def available_bytes() -> int | None:
    """Return the memory that this process could still be given, swap included; None where it is not told."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    return (kib["MemAvailable"] + kib["SwapFree"]) * 1024


def give_back_free_memory() -> None:
    """Hand memory that nothing uses back to the system, where the C library keeps it (glibc).

    Batches of ever other shapes leave gaps in its heap that the next does not fit into, and a process
    that works on many grows though it holds no more than one.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
