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
    newest = _newest_read(version)
    return Dialect(min(_opset(newest), USUAL_OPSET), newest.ir_version)


def refuse_opset_beside(version: str, opset: int | None) -> None:
    """Refuse an opset that is given beside a version of ONNX Runtime, which chooses one.

    Raises:
        ConfigError: Saying whether that version reads it, and what is written without it.
    """
    if opset is None:
        return
    chosen, newest = dialect_for(version).opset, _opset(_newest_read(version))
    hint = f"Leave out --opset to write opset {chosen}, or --target-ort to write opset {opset}"
    if opset <= newest:
        raise ConfigError(
            f"--target-ort {version} chooses the opset itself, {chosen}, and --opset asks for {opset}.",
            f"{hint}.",
        )
    readers = [first for first, dialect in NEWEST_READ.items() if opset <= _opset(dialect)]
    from_on = f", which ONNX Runtime reads from {'.'.join(map(str, readers[0]))} on" if readers else ""
    raise ConfigError(
        f"--opset {opset} is newer than what --target-ort {version} reads, opset {newest}.",
        f"{hint}{from_on}.",
    )


def _newest_read(version: str) -> Dialect:
    """Return the newest opset and IR version that a version of ONNX Runtime reads."""
    found = re.fullmatch(r"(\d+)\.(\d+)(?:\.\d+)?", version)
    known = [first for first in NEWEST_READ if found and first <= (int(found[1]), int(found[2]))]
    if not known:
        oldest = ".".join(map(str, min(NEWEST_READ)))
        raise ConfigError(
            f"--target-ort {version} is not a version of ONNX Runtime from {oldest} on.",
            f"Such as --target-ort {oldest}.",
        )
    return NEWEST_READ[max(known)]


def _opset(dialect: Dialect) -> int:
    assert dialect.opset is not None
    return dialect.opset
