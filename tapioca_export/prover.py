"""Make a folder's proofs again: a checkpoint against its original, an exported file against its checkpoint.

Knows where the record says that model and rows are, and nothing of how a proof is made.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import checkpoints, reading, steps
from .artifacts import Export, ProofCheck, Provenance, Selection, read
from .config import RunConfig
from .errors import LoadError, TapiocaError
from .exporting import prove_again
from .graphs import is_graph
from .locating import Places
from .models import LoadedModel, load_model, prove_saved
from .programs import PROGRAMS
from .provenance import HUB, RECORD, SAMPLE_FILES
from .samples import Samples

EXPORT, SELECTION = "export.json", "selection.json"

logger = logging.getLogger(__name__)


class NotMadeError(Exception):
    """A proof that cannot be made here, and why."""


class Prover:
    """Makes proofs again, with one model in memory at a time.

    Args:
        trust_remote_code: Whether code that comes with a model may run; a record cannot ask for it.
    """

    def __init__(self, *, trust_remote_code: bool) -> None:
        self._trusts = trust_remote_code
        self._loaded: tuple[object, LoadedModel] | None = None

    def prove(self, folder: Path, name: str, places: Places) -> ProofCheck:
        """Make the proof of a folder again, all of whose files are what they were.

        Args:
            folder: Holds `provenance.json`.
            name: How to name it.
            places: Where its record's paths lead.
        """
        logger.info("Proving %s again", name)
        record = read(folder / RECORD, Provenance)
        is_export = (folder / EXPORT).is_file()
        recorded = read(folder / EXPORT, Export) if is_export else read(folder / SELECTION, Selection)
        numbers: dict[str, Any] = {}
        if isinstance(recorded, Export):
            numbers = {"recorded": recorded.max_abs_difference, "tolerance": recorded.tolerance}
        try:
            found = self._make(folder, record, recorded, places)
        except NotMadeError as reason:
            return ProofCheck(name, "not run", str(reason), **numbers)
        except TapiocaError as error:
            return ProofCheck(name, "fails", error.message, **numbers)
        if isinstance(recorded, Export):
            message = f"The file computes what {record.model} does, to {found:.1e}."
        else:
            message = f"The checkpoint computes, bit for bit, what {record.model} with layers skipped does."
        return ProofCheck(name, "holds", message, found=found, **numbers)

    def _make(
        self, folder: Path, record: Provenance, recorded: Export | Selection, places: Places
    ) -> float | None:
        """Make one proof; returns the largest difference, if it has one.

        Raises:
            NotMadeError: If model or rows are not here, or are others.
            TapiocaError: If the proof fails.
        """
        if record.command == "prune" and is_graph(record.model):
            raise NotMadeError("It was cut out of a graph; prune that graph again to prove it again.")
        if isinstance(recorded, Selection) and recorded.proof != "logits":
            raise NotMadeError("Names, shapes and bytes of tensors were compared; hashes say the same.")
        if isinstance(recorded, Export) and recorded.format in PROGRAMS and not self._trusts:
            raise NotMadeError(
                f"A {recorded.format} file is code; add --trust-remote-code if it is your own or trusted."
            )
        config = self._config(record, places)
        options = replace(
            reading.load_options(config),
            device="cpu",
            metric=config.metric or recorded.metric,
            prompting=recorded.prompting,
        )
        if isinstance(recorded, Selection) and recorded.has_sublayers:
            options = replace(options, granularity="sublayer")
        with steps.using_threads(config):
            model = self._load(config.model, recorded.task, options)
            rows = _rows(record, config, model)
            if isinstance(recorded, Export):
                if rows is None:
                    raise NotMadeError("It names no rows.")
                return prove_again(model, rows, folder, recorded)
            drop, damped = checkpoints.changed_layers(model, recorded)
            prove_saved(model, drop, folder, checkpoints.proof_batches(model, rows), damped)
            return 0.0

    def _config(self, record: Provenance, places: Places) -> RunConfig:
        """Return the recorded configuration, with the paths of what is here.

        Raises:
            NotMadeError: If something is not here, or not what it was.
            LoadError: If the record holds no configuration.
        """
        from pydantic import TypeAdapter, ValidationError

        found: dict[str, str] = {}
        for name, digest in record.inputs.items():
            state = places.state(name, digest)
            if state not in ("same", "not compared"):
                raise NotMadeError(f"{name} is {'not here' if state == 'missing' else 'not what it was'}.")
            found[name] = name if digest.startswith(HUB) else str(places.find(name, digest))
        values = dict(record.config)
        if record.config.get("trust_remote_code") and not self._trusts:
            raise NotMadeError("The model runs code of its own; add --trust-remote-code if you trust it.")
        for setting in ("model", "prompt_template", *SAMPLE_FILES):
            given = values.get(setting)
            if isinstance(given, dict):
                values[setting] = {domain: found.get(path, path) for domain, path in given.items()}
            elif given is not None:
                values[setting] = found.get(given, given)
        try:
            return TypeAdapter(RunConfig).validate_python(values)
        except ValidationError as error:
            raise LoadError(
                f"The record's configuration cannot be read: {error.errors()[0]['msg']}."
            ) from error

    def _load(self, model: str, task: str, options: Any) -> LoadedModel:
        """Load a model, or return the one that was loaded last.

        Raises:
            NotMadeError: If it cannot be loaded.
        """
        key = (model, task, options)
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = None  # nor need two models be in memory
            try:
                self._loaded = (key, load_model(model, task, options))
            except TapiocaError as error:
                raise NotMadeError(f"The model cannot be loaded here: {error.message}") from error
        return self._loaded[1]


def _rows(record: Provenance, config: RunConfig, model: LoadedModel) -> Samples | None:
    """Return the rows of the proof.

    Raises:
        LoadError: If they are not those of the record, though their sample files are: one names a file
            that changed.
    """
    rows: Samples | None
    if record.command == "run":
        rows = reading.parity_rows(reading.load_roles(config, model.task, model.processor))
    else:
        rows = reading.given_rows(config, model.task, model.processor)
    if (rows.fingerprint if rows else "") != record.rows:
        raise LoadError("The rows are others than then: a file that one names changed, or how they are read.")
    return rows
