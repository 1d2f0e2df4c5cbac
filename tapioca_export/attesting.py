"""An in-toto statement of what a folder holds and was made of, for others' tools to sign and to check.

It says what the folder's records say, in the words of SLSA's provenance; signing it is theirs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .artifacts import Provenance, Run, sha256
from .errors import ConfigError
from .provenance import HEADERS, HUB, SIZE

PREDICATE = "https://slsa.dev/provenance/v1"
NAMESPACE = "urn:tapioca-export"


def statement(records: Mapping[Path, Run | Provenance], root: Path) -> str:
    """Return one statement as JSON: subjects are all files by SHA-256, the predicate how they were made.

    Files that a record knows by size alone are no subjects.

    Args:
        records: Those of a folder, by their paths.
        root: The folder, from which files are named.

    Raises:
        ConfigError: If in-toto-attestation is not installed.

    Source: in-toto Attestation Framework, Statement v1; SLSA v1.0, Provenance.
    """
    try:
        from google.protobuf import json_format
        from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
        from in_toto_attestation.v1.statement import Statement
    except ImportError as error:
        raise ConfigError(
            "--attestation needs in-toto-attestation, which is not installed.",
            "pip install 'tapioca-export[attestation]'",
        ) from error
    subjects = [
        ResourceDescriptor(name=name, digest={"sha256": digest}).pb
        for path, record in records.items()
        for name, digest in _files(path, record, root)
    ]
    made = Statement(subjects, PREDICATE, _predicate(records))
    made.validate()
    return json.dumps(json_format.MessageToDict(made.pb), indent=1, ensure_ascii=False) + "\n"


def _files(path: Path, record: Run | Provenance, root: Path) -> Iterator[tuple[str, str]]:
    """Yield the files that a record names, and the record itself, each with its SHA-256."""
    within = path.parent.relative_to(root)
    yield (within / path.name).as_posix(), sha256(path)
    for name, digest in record.outputs.items():
        if not digest.startswith(SIZE):
            yield (within / name).as_posix(), digest


def _predicate(records: Mapping[Path, Run | Provenance]) -> dict[str, Any]:
    """Return how the files were made, as the last of the records has it: they are of one command."""
    record = list(records.values())[-1]
    command = "run" if isinstance(record, Run) else record.command
    inputs = {name: digest for one in records.values() for name, digest in one.inputs.items()}
    versions = {name: str(version) for name, version in record.environment.get("versions", {}).items()}
    return {
        "buildDefinition": {
            "buildType": f"{NAMESPACE}:{command}",
            "externalParameters": record.config,
            "resolvedDependencies": [_dependency(name, digest) for name, digest in sorted(inputs.items())],
        },
        "runDetails": {"builder": {"id": NAMESPACE, "version": versions}},
    }


def _dependency(name: str, digest: str) -> dict[str, Any]:
    """Return an input; what is known by no hash of its bytes says by what it is known."""
    if digest.startswith((HUB, HEADERS, SIZE)):
        return {"name": name, "annotations": {"recorded": digest}}
    return {"name": name, "digest": {"sha256": digest}}
