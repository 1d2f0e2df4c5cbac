"""The task's results of exported files, and the proof that they are those of these files.

Results stand in two tables, of the original and of the pruned model, and nothing in a table says which it
is. So the batch that tells the models apart best is scored once more by either file, opened anew.

Shapes: N samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import BenchmarkError
from ..generation import CacheShapes, Evaluation, Session
from ..samples import Samples
from ..tasks import Processor, Scores, Task
from .runtimes import ONNXRUNTIME, read_export_folder, settings_on
from .sessions import CPU
from .timing import BenchmarkSettings

_DEFAULTS = BenchmarkSettings()
# Of a row's loss: what two models have to differ by, so that rounding cannot hide whose it is.
CLEAR = 1e-2


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
    return Scoring(Evaluation(task, samples, processor), settings).score(folder)


@dataclass(frozen=True)
class Scoring:
    """What files are scored with.

    Args:
        evaluation: The rows, of one role.
        settings: The first provider is scored on, but for PyTorch's files: they are on the CPU.
    """

    evaluation: Evaluation
    settings: BenchmarkSettings

    def score(self, folder: Path) -> Scores:
        """Score a file on all rows.

        Raises:
            BenchmarkError: If the runtime refuses the provider, the file or a batch.
        """
        return self.evaluation.score(*self._opened(folder))

    def answered(self, folder: Path) -> tuple[Scores, list[str | None]]:
        """Score a file on all rows, and put what it answers into words, None where the task has none.

        Raises:
            BenchmarkError: As `score` does.
        """
        return self.evaluation.answer(*self._opened(folder))

    def prove(self, folders: Sequence[Path], found: Sequence[Scores]) -> None:
        """Refuse results that are the other file's.

        The batch is the same as it was, rows and all: what depends on the rows beside a row (ranges of
        activations in 8 bits) does not differ.

        Args:
            folders: The original's and the pruned model's.
            found: What each scored.

        Raises:
            BenchmarkError: If the losses of a file are rather those of the other.
        """
        losses = np.stack([scores.losses for scores in found])  # (2, N)
        apart = np.abs(losses[0] - losses[1])
        batch = max(self.evaluation.batches, key=lambda rows: float(apart[rows].sum()))
        rows = np.sort(batch)
        clear = apart[rows] > CLEAR * np.abs(losses[:, rows]).max(axis=0)
        if not clear.any():  # either table would do for either file
            return
        for folder, own, other in zip(folders, (0, 1), (1, 0), strict=True):
            again = self.evaluation.score(*self._opened(folder), [batch])
            off = np.abs(again.losses - losses[:, rows])[:, clear].sum(axis=1)
            if off[own] > off[other]:
                raise BenchmarkError(
                    f"What was scored of {folder} on the {self.evaluation.samples.role} rows is not what it "
                    f"answers: losses of {clear.sum()} rows are off by {off[own]:.3g}, and by "
                    f"{off[other]:.3g} from those of the other file.",
                    "Benchmark again; if it says so again, tell the authors of this tool.",
                )

    def _opened(self, folder: Path) -> tuple[Session, CacheShapes]:
        exported = read_export_folder(folder)
        provider = self.settings.providers[0] if exported.runtime == ONNXRUNTIME else CPU
        session = exported.open(settings_on(exported.runtime, provider, self.settings.threads))
        return session, exported.export.cache
