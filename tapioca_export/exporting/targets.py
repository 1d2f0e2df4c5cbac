"""What a version of ONNX Runtime reads: the newest opset, and the newest version of the file format.

Source: measured by `python benchmarks/ort_versions.py`, which has each version open graphs of every opset
and IR version; newer ones read what older ones do.
"""

from __future__ import annotations

import re

from ..errors import ConfigError
from .formats import Dialect

# By the first version of ONNX Runtime that reads them.
NEWEST_READ = {
    (1, 16): Dialect(19, 9),
    (1, 17): Dialect(20, 9),
    (1, 18): Dialect(21, 10),
    (1, 21): Dialect(22, 10),
    (1, 23): Dialect(23, 11),
    (1, 24): Dialect(25, 13),
    (1, 25): Dialect(26, 13),
    (1, 32): Dialect(28, 14),
}
# What the exporter writes unless it is asked for another: no newer one is needed.
USUAL_OPSET = 20


def dialect_for(version: str) -> Dialect:
    """Return the opset and the IR version to write for a version of ONNX Runtime, such as "1.17".

    Raises:
        ConfigError: If it is no version, or older than what is known.
    """
    found = re.fullmatch(r"(\d+)\.(\d+)(?:\.\d+)?", version)
    known = [first for first in NEWEST_READ if found and first <= (int(found[1]), int(found[2]))]
    if not known:
        oldest = ".".join(map(str, min(NEWEST_READ)))
        raise ConfigError(
            f"--target-ort {version} is not a version of ONNX Runtime from {oldest} on.",
            f"Such as --target-ort {oldest}.",
        )
    newest = NEWEST_READ[max(known)]
    assert newest.opset is not None
    return Dialect(min(newest.opset, USUAL_OPSET), newest.ir_version)
