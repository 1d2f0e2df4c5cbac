"""What libraries report of their use: nothing, unless the user's environment says that they may.

Nothing in this package reports anything. Knows the names of switches, and nothing of what is reported.

Source: huggingface_hub, "Environment variables"; ONNX Runtime, "Privacy".
"""

from __future__ import annotations

import os
from typing import Any

# Those that huggingface_hub reads, through which datasets and transformers report. The first is its own, and
# the one that is set here; the last is of no library, and other programs read it too.
SWITCHES = ("HF_HUB_DISABLE_TELEMETRY", "DISABLE_TELEMETRY", "DO_NOT_TRACK")
DO_NOT_TRACK = SWITCHES[-1]


def switch_off() -> None:
    """Switch reports off for libraries not imported yet; whoever has set a switch is left alone."""
    if not any(name in os.environ for name in SWITCHES):
        os.environ[SWITCHES[0]] = "1"


def import_onnxruntime() -> Any:
    """Import ONNX Runtime, which has no variable for it, and switch its reports off."""
    import onnxruntime

    if os.environ.get(DO_NOT_TRACK, "1").lower() not in ("0", "false", "no", "off"):
        switch = getattr(onnxruntime, "disable_telemetry_events", None)  # not every build has it
        if switch is not None:
            switch()
    return onnxruntime
