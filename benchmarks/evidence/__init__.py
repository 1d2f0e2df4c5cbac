"""The evidence: does dropping layers help out of distribution, and does it do so by realigning states?

    shifts.py       what a model is asked under, and where fresh rows come from
    measuring.py    effects with paired intervals, on report rows
    protocol.py     one model under all shifts: what is chosen, what that gains, and every control
    claims.py       what the numbers say of each claim, in one word, by rules fixed beforehand
    results.py      benchmarks/RESULTS.md and the tables of benchmarks/polynomial/README.md, from JSON
    polynomial.py, language.py, encoder.py    one command each: models, shifts, and the JSON they make

The rules are in claims.py; what the claims are, and where they come from, in benchmarks/RESULTS.md.
"""
