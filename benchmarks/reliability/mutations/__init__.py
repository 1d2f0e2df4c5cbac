"""The pipeline broken on purpose, one fault at a time.

base.py          what a mutant is, and what became of it
models.py        tiny models and rows
checkpoints.py   faults of pruned checkpoints
exports.py       faults of exported files
graphs.py        faults of ONNX files that layers were cut out of
runs.py          faults of searches, benchmarks, reports and records
"""
