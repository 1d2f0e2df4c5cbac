"""Hold a folder against its own record: is every file what was written, and do the proofs still hold?

A file whose hash is another was changed. Where no file was changed and a proof fails, what it runs on was:
the libraries, or the machine. Hashes tell of accidents and of careless hands; whoever can write all of a
folder can write its record as well, so sign the record where that matters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import provenance
from .artifacts import (
    FileCheck,
    ProofCheck,
    Provenance,
    Run,
    Verification,
    combined,
    hashes,
    is_sealed,
    read,
    sha256,
)
from .attesting import statement
from .errors import LoadError
from .locating import Places
from .provenance import RECORD, RUN, SIZE

if TYPE_CHECKING:
    from .prover import Prover

NAMED = 5  # files that a line of the verdict names


@dataclass(frozen=True)
class _Found:
    """What was found of one record."""

    files: list[FileCheck]
    proofs: list[ProofCheck]
    versions: dict[str, tuple[str, str]]
    machine: str


def verify(
    folder: Path, *, proofs: bool = True, strict: bool = False, trust_remote_code: bool = False
) -> Verification:
    """Hash again what a folder's record names, and make its proofs again.

    Args:
        folder: A run folder, an export folder, a pruned checkpoint, or a folder of several export folders.
        proofs: Whether to make proofs again, where model and rows are still there and the same.
        strict: Whether what could not be looked at fails: an input that is not here, a proof not made.
        trust_remote_code: Whether code that comes with a model may run; a record cannot ask for it.

    Raises:
        LoadError: If the folder has no record, or one that cannot be read.
    """
    prover = None
    if proofs:  # which loads PyTorch
        from .prover import Prover

        prover = Prover(trust_remote_code=trust_remote_code)
    found = [_look(record, folder, prover) for record in _records(folder)]
    files = [check for part in found for check in part.files]
    made = [check for part in found for check in part.proofs]
    versions = {name: pair for part in found for name, pair in part.versions.items()}
    passed = not any(map(_is_wrong, files)) and all(check.state != "fails" for check in made)
    if strict:
        unknown = any(check.state in ("missing", "not compared") for check in files)
        passed = passed and not unknown and all(check.state == "holds" for check in made)
    verdict = (*_of_files(files), *_of_proofs(made, versions, found[0].machine))
    return Verification(str(folder), passed, verdict, tuple(files), tuple(made), versions)


def attest(folder: Path) -> str:
    """Return an in-toto statement of what a folder's records say; whether that is so is `verify`'s.

    Raises:
        LoadError: If the folder has no record, or one that cannot be read.
        ConfigError: If in-toto-attestation is not installed.
    """
    return statement({path: _read(path) for path in _records(folder)}, folder)


def _read(path: Path) -> Run | Provenance:
    return read(path, Run) if path.name == RUN else read(path, Provenance)


def _records(folder: Path) -> list[Path]:
    """Return the record of a folder, or those of the folders in it.

    Raises:
        LoadError: If there is none.
    """
    for name in (RUN, RECORD):
        if (folder / name).is_file():
            return [folder / name]
    if found := sorted(folder.glob(f"*/{RECORD}")):
        return found
    raise LoadError(
        f"{folder} has no {RUN} and no {RECORD}.", "Name a folder that `run`, `export` or `prune` wrote."
    )


def _look(path: Path, root: Path, prover: Prover | None) -> _Found:
    """Look at all that one record names; paths are given from the root."""
    folder, within = path.parent, path.parent.relative_to(root)
    record = _read(path)
    here = hashes(folder)
    resolved = folder.resolve()
    places = Places(folder, {resolved / name: digest for name, digest in here.items()})
    here.pop(path.name)
    name = (within / path.name).as_posix()
    if not is_sealed(path, record.sha256):  # what it says of other files may be wrong
        return _Found([FileCheck(name, "output", "changed")], [], *_environment(record))
    files = [FileCheck(name, "output", "same")]
    outputs = list(_outputs(record, here, folder))
    files += [FileCheck((within / check.path).as_posix(), check.role, check.state) for check in outputs]
    files += [FileCheck(name, "input", places.state(name, digest)) for name, digest in record.inputs.items()]
    if isinstance(record, Run):
        files += _between_parts(record, resolved)
    wrong = [check.path for check in outputs if _is_wrong(check)]
    proofs = []
    for place in _proven(record):
        if prover is None:
            break
        name = (within / place).as_posix()
        if changed := [file for file in wrong if Path(file).is_relative_to(place)]:
            proofs.append(ProofCheck(name, "not run", f"{changed[0]} is not what was written."))
        else:
            proofs.append(prover.prove(folder / place, name, Places(folder / place, places.hashed)))
    return _Found(files, proofs, *_environment(record))


def _outputs(record: Run | Provenance, here: Mapping[str, str], folder: Path) -> Iterator[FileCheck]:
    """Compare the files of a folder with those that its record names.

    Files that nothing loads are left alone: hidden ones, and those beside the report of a run.
    """
    for name, digest in record.outputs.items():
        if name not in here:
            yield FileCheck(name, "output", "missing")
        elif digest.startswith(SIZE):  # was linked, and is known by no hash
            is_as_long = provenance.size_of(folder / name) == digest
            yield FileCheck(name, "output", "not compared" if is_as_long else "changed")
        else:
            yield FileCheck(name, "output", "same" if here[name] == digest else "changed")
    for name in sorted(set(here) - set(record.outputs)):
        is_hidden = any(part.startswith(".") for part in Path(name).parts)
        if not is_hidden and (isinstance(record, Provenance) or "/" in name):
            yield FileCheck(name, "output", "added")


def _between_parts(record: Run, root: Path) -> Iterator[FileCheck]:
    """Compare what one part of a run was made of, where that is another part: a file of its checkpoint.

    Parts are held against each other's records, so that no part passes for what it was made of itself.
    """
    found = {}
    for place in _proven(record):
        path, digest = root / place / RECORD, record.outputs[(place / RECORD).as_posix()]
        if path.is_file() and sha256(path) == digest:  # else it is named as changed itself
            found[path.parent] = read(path, Provenance), digest
    for folder, (part, _) in found.items():
        for name, digest in part.inputs.items():
            if (other := (folder / name).resolve()) in found:
                whole, own = found[other]
                is_same = digest == combined({**whole.outputs, RECORD: own})
                yield FileCheck(other.relative_to(root).as_posix(), "input", "same" if is_same else "changed")


def _proven(record: Run | Provenance) -> list[Path]:
    """Return the folders that have a proof, from the record's."""
    if isinstance(record, Provenance):
        return [Path()]
    return [Path(name).parent for name in sorted(record.outputs) if Path(name).name == RECORD]


def _environment(record: Run | Provenance) -> tuple[dict[str, tuple[str, str]], str]:
    """Return, of each library that is another, its version then and here; and the processors, in words."""
    environment = provenance.machine()
    now = {**environment["versions"], "python": environment["python"]}
    then = {**record.environment.get("versions", {}), "python": record.environment.get("python")}
    versions = {name: (str(then[name]), now[name]) for name in now if then.get(name) not in (None, now[name])}
    before, here = record.environment.get("processor"), environment["processor"]
    return versions, f"on {here}, as then" if before == here else f"on {before} then, on {here} here"


def _is_wrong(check: FileCheck) -> bool:
    """Tell whether a file is not what was recorded; an input need not be here."""
    wrong = ("changed",) if check.role == "input" else ("changed", "missing", "added")
    return check.state in wrong


SAID = {
    ("output", "changed"): "Changed since written",
    ("output", "missing"): "Missing",
    ("output", "added"): "Added, named by no record",
    ("output", "not compared"): "Linked, recorded by size alone, so not compared",
    ("input", "changed"): "Inputs changed since read",
    ("input", "missing"): "Inputs not here, so not compared",
    ("input", "not compared"): "Recorded by name alone, so not compared",
}


def _of_files(files: Sequence[FileCheck]) -> Iterator[str]:
    """Say which files are not what was recorded."""
    outputs = [check for check in files if check.role == "output"]
    same = sum(check.state == "same" for check in outputs)
    if not any(map(_is_wrong, outputs)):
        yield f"{'All ' if same == len(outputs) else ''}{same} files are what was written."
    for (role, state), words in SAID.items():
        names = [check.path for check in files if (check.role, check.state) == (role, state)]
        if names:
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            yield f"{words}: {', '.join(names[:NAMED])}{more}."


def _of_proofs(
    proofs: Sequence[ProofCheck], versions: Mapping[str, tuple[str, str]], machine: str
) -> Iterator[str]:
    """Say which proofs hold, and what changed where one does not though no file did."""
    holding = sum(check.state == "holds" for check in proofs)
    made = sum(check.state != "not run" for check in proofs)
    if made:
        yield f"{holding} of {made} proofs made again hold."
    elif proofs:
        yield f"None of {len(proofs)} proofs could be made again."
    changed = ", ".join(f"{name} {then} then, {now} here" for name, (then, now) in versions.items())
    for check in proofs:
        if check.state == "not run":
            yield f"Not proven again: {check.folder}: {check.message}"
        elif check.state == "fails":
            yield f"The proof of {check.folder} fails, and no file of it changed: {check.message}"
    if any(check.state == "fails" for check in proofs):
        yield f"Libraries changed: {changed}." if versions else f"The libraries are the same, {machine}."
    elif versions:
        yield f"Libraries are others than then: {changed}."
