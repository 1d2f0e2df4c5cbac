"""Does anything wrong go out, is anything lost, does anything get in?

    mutants.py      the pipeline broken on purpose, and which of its own proofs caught it
    faults.py       killed, out of room, out of memory, interfered with: what is left afterwards
    fuzzing.py      every reader fed with what no honest program writes
    intervals.py    intervals that cover, tests that are not fooled
    nulls.py        no gain where there is none; hundreds of runs in one process
    sameness.py     same inputs, same bytes
    load.py         a million rows, a long journal
    page.py         docs/reliability.md, from the JSON that each of these writes beside itself

Each is one command, `python -m benchmarks.reliability.PART`; with `--quick`, what CI runs of it.
"""
