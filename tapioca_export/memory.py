"""How much memory this process has had. Knows nothing about what it was for.

Nothing heavy may be imported here: a process whose memory is measured imports it.
"""

from __future__ import annotations

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
