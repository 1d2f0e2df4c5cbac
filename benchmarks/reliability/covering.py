"""Feed one reader with files that coverage guides: what reaches new code is kept, and changed further.

    python -m benchmarks.reliability.covering READER VALID SCRATCH SECONDS    # in SCRATCH: found.json

Files are made by the same strategies as without guidance: atheris chooses what hypothesis chooses by. It
instruments Python's bytecode as it is imported, and never gives a process back, so each reader has one.
`make fuzz` installs it in a place of its own.

Source: Hypothesis' documentation, "Use with external fuzzers"; atheris' README.
"""

from __future__ import annotations

import shutil
import sys
import time
import warnings
from pathlib import Path

# Whose branches are seen: the product's, and those of parsers in Python.
SEEN = ["tapioca_export", "yaml", "tomllib", "jinja2", "json", "csv"]
WRITTEN_EVERY = 100  # files


def main(name: str, valid: Path, scratch: Path, seconds: int) -> None:
    """Do not return: libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=SEEN):
        from hypothesis import HealthCheck, given, settings

        from .feeding import INSIDE, Found, Plate, quiet, valid_contents, write
        from .readers import READERS

    warnings.simplefilter("ignore")
    quiet()
    found, reader = Found(), READERS[name]
    shutil.copytree(valid, scratch / INSIDE)
    plate = Plate(reader, scratch, sys.stderr)
    plate.try_valid(valid, found)

    @settings(database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(reader.mutants(valid_contents(reader, valid)))
    def feed(content: bytes) -> None:
        found.add(plate.feed(content), content)
        if found.executions % WRITTEN_EVERY == 0 or found.executions == 1:
            found.seconds = round(time.process_time(), 2)
            write(scratch, {name: found})

    # 0: no clock of libFuzzer's own, which would take the signal of the one that watches each reading.
    limits = [f"-max_total_time={seconds}", "-timeout=0", "-rss_limit_mb=0", "-seed=1", "-max_len=8192"]
    atheris.Setup([sys.argv[0], *limits], feed.hypothesis.fuzz_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
