"""The task's results of an exported file, and the proof that they are those of this file.

Results stand in two tables, of the original and of the pruned model, and nothing in a table says which it
is. So some rows are scored once more by either file, opened anew: those whose result changed, whose
answers a report shows, and those that tell the models apart best.

Shapes: N samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import BenchmarkError
from ..generation import CacheShapes, Session, answer, score
from ..samples import Samples
from ..tasks import Processor, Scores, Task
from ..tasks.scoring import averaged
from .runtimes import ONNXRUNTIME, ExportFolder, read_export_folder, settings_on
from .sessions import CPU
from .timing import BenchmarkSettings

_DEFAULTS = BenchmarkSettings()
TOLD_APART_BY = 8  # rows
# Of a row's loss: what two models have to differ by, so that rounding cannot hide whose it is.
CLEAR = 1e-2
# Answers of the original and of the pruned model to a row; None where the task has no words for it.
Answers = dict[int, tuple[str | None, str | None]]


def score_exported(
    folder: Path,
    task: Task,
    samples: Samples,
    processor: Processor,
    settings: BenchmarkSettings = _DEFAULTS,
) -> Scores:
    """Score an exported file on all rows of labelled samples, on the first provider; PyTorch's on the CPU.

    Raises:
        BenchmarkError: If the runtime refuses the provider, the file or a batch.
    """
    session, shapes = _opened(folder, settings)
    return score(session, task, samples, processor, shapes)


def answer_again(
    folders: Sequence[ExportFolder],
    found: Sequence[Scores],
    task: Task,
    samples: Samples,
    processor: Processor,
    settings: BenchmarkSettings,
    rows: Sequence[int],
) -> Answers:
    """Return both models' answers to some rows, which prove that results are those of these files.

    Args:
        folders: The original's and the pruned model's.
        found: What each scored on all N samples.
        task: The task of both.
        samples: What they were scored on.
        processor: What encodes them.
        settings: As results were scored with.
        rows: Whose answers are asked for. One whose result is another in a batch of other rows, by a
            hair, is left out.

    Raises:
        BenchmarkError: If the losses of a file are rather those of the other.
    """
    losses = np.stack([scores.losses for scores in found])  # (2, N)
    apart = np.abs(losses[0] - losses[1])
    telling = np.argsort(-apart, kind="stable")[:TOLD_APART_BY]
    chosen = np.unique(np.asarray([*rows, *telling], dtype=np.int64))
    clear = apart[chosen] > CLEAR * np.abs(losses[:, chosen]).max(axis=0)
    said, same = [], np.ones(len(chosen), dtype=bool)
    for folder, own, other in zip(folders, (0, 1), (1, 0), strict=True):
        session, shapes = _opened(folder.path, settings)
        again, answers = answer(session, task, samples, processor, shapes, chosen)
        off = np.abs(again.losses - losses[:, chosen])[:, clear].sum(axis=1)
        if off[own] > off[other]:
            raise BenchmarkError(
                f"What was scored of {folder.path} on the {samples.role} rows is not what it answers: losses "
                f"of {clear.sum()} rows are off by {off[own]:.3g}, and by {off[other]:.3g} from those of the "
                "other file.",
                "Benchmark again; if it says so again, tell the authors of this tool.",
            )
        said.append(answers)
        same &= np.isclose(averaged(again.values), averaged(found[own].values)[chosen])
    wanted = set(rows)
    pairs = zip(chosen.tolist(), same, *said, strict=True)
    return {row: (before, after) for row, is_same, before, after in pairs if is_same and row in wanted}


def _opened(folder: Path, settings: BenchmarkSettings) -> tuple[Session, CacheShapes]:
    exported = read_export_folder(folder)
    provider = settings.providers[0] if exported.runtime == ONNXRUNTIME else CPU
    return exported.open(settings_on(exported.runtime, provider, settings.threads)), exported.export.cache
