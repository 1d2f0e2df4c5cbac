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
# What ONNX Runtime reads when it is imported: its builds for Linux and macOS report too, 1.32 among them.
ONNXRUNTIME = "ORT_DISABLE_TELEMETRY"


def switch_off() -> None:
    """Switch reports off for libraries not imported yet; whoever has set a switch is left alone."""
    if not any(name in os.environ for name in SWITCHES):
        os.environ[SWITCHES[0]] = "1"
    if not _may_track():
        os.environ.setdefault(ONNXRUNTIME, "1")


def _may_track() -> bool:
    return os.environ.get(DO_NOT_TRACK, "1").lower() in ("0", "false", "no", "off")


def import_onnxruntime() -> Any:
    """Import ONNX Runtime, and switch off what the variable does not, or came too late for."""
    import onnxruntime

    if not _may_track():
        switch = getattr(onnxruntime, "disable_telemetry_events", None)  # not every build has it
        if switch is not None:
            switch()
    return onnxruntime
