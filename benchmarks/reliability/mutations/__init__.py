"""The pipeline broken on purpose, one fault at a time.

base.py          what a mutant is, and what became of it
models.py        tiny models and rows
checkpoints.py   faults of pruned checkpoints
exports.py       faults of exported files
altering.py      graphs made wrong
tracing.py       networks and traces made wrong
graphs.py        faults of ONNX files that layers were cut out of
runs.py          faults of searches, benchmarks, reports and records
"""
