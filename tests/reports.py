"""A small, complete set of artifacts with hand-written numbers, shared by the report's tests."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from tapioca_export.artifacts import (
    Accuracy,
    Benchmark,
    Candidate,
    Cost,
    Curves,
    Deviation,
    Dose,
    Export,
    Flatness,
    Interval,
    Intervention,
    Latency,
    LayerDoses,
    LayerProfile,
    NormControl,
    Pair,
    Prediction,
    Profile,
    RandomLayers,
    RandomSet,
    Rank,
    Ratio,
    Report,
    Run,
    Selection,
    Step,
    Timing,
    Trend,
)
from tapioca_export.reporting import intervention_verdict, make_report

NUM_LAYERS = 12
DROP = (4, 7)


def accuracy(original: float, pruned: float, interval: Interval, **changes: Any) -> Accuracy:
    """An accuracy on 500 rows, higher being better unless told."""
    made = Accuracy(
        metric="accuracy",
        higher_is_better=True,
        n=500,
        original=original,
        pruned=pruned,
        difference=pruned - original,
        interval=interval,
        p_value=0.012,
        original_interval=(original - 0.04, original + 0.04),
        pruned_interval=(pruned - 0.04, pruned + 0.04),
        gained=41,
        lost=13,
    )
    return replace(made, **changes)


GAIN = accuracy(0.712, 0.768, (0.024, 0.088))
NO_CHANGE = accuracy(0.914, 0.906, (-0.022, 0.006))
HARM = accuracy(0.712, 0.640, (-0.101, -0.043))


def latency(batch_size: int = 1, low: float = 1.17, **changes: Any) -> Latency:
    """One setting, timed; `low` is the low bound of the speed-up."""
    before = Timing(18.4 * batch_size, 19.9 * batch_size, 120, 54.3)
    after = Timing(15.5 * batch_size, 16.6 * batch_size, 120, 64.5)
    made = Latency(
        runtime="onnxruntime",
        provider="CPUExecutionProvider",
        batch_size=batch_size,
        sequence_length=128,
        threads=2,
        original=before,
        pruned=after,
        speedup=Ratio(low + 0.02, (low, low + 0.04)),
        ideal_speedup=1.2,
        noise_floor=(0.985, 1.016),
    )
    return replace(made, **changes)


def layer_profile(shift: float, drop: tuple[int, ...] = ()) -> LayerProfile:
    """Growing norms and distances; a dropped layer repeats the boundary before it."""
    norms, distances = [4.0], [3.0]
    for layer in range(NUM_LAYERS):
        kept = layer not in drop
        growth = 1.2 + 0.12 * shift * math.sin(layer) if kept else 1.0
        norms.append(norms[-1] * growth)
        distances.append(distances[-1] * (growth - 0.04 * shift if kept else 1.0))
    influences = tuple(None if layer in drop else 0.05 + 0.02 * abs(layer - 6) for layer in range(NUM_LAYERS))
    return LayerProfile(
        norms=tuple(norms),
        distances=tuple(distances),
        influences=influences,
        norms_band=tuple((0.94 * value, 1.06 * value) for value in norms),
        distances_band=tuple((0.93 * value, 1.08 * value) for value in distances),
        num_samples=256,
        num_tokens=9000,
    )


def deviation(part: LayerProfile, reference: LayerProfile) -> Deviation:
    """|log ratio| of two profiles over a flat noise floor."""
    curves = []
    for quantity in ("norms", "distances"):
        pairs = zip(getattr(part, quantity), getattr(reference, quantity), strict=True)
        curves.append(tuple(abs(math.log(a / b)) for a, b in pairs))
    floor = Curves((0.05,) * (NUM_LAYERS + 1), (0.07,) * (NUM_LAYERS + 1), 0.06)
    values = [*curves[0], *curves[1]]
    return Deviation(curves[0], curves[1], sum(values) / len(values), floor)


def profile(model: str = "bert-tiny") -> Profile:
    """ID and a shifted target, before and after pruning."""
    before, shifted = layer_profile(0.0), layer_profile(1.0)
    pruned_id, pruned = layer_profile(0.0, DROP), layer_profile(0.6, DROP)
    first, second = deviation(shifted, before), deviation(pruned, pruned_id)
    return Profile(
        model=model,
        task="text-classification",
        position="last token",
        layers=tuple(range(NUM_LAYERS)),
        id=before,
        target=shifted,
        deviation=first,
        drop=DROP,
        pruned_id=pruned_id,
        pruned_target=pruned,
        pruned_deviation=second,
        deviation_removed=1 - second.mean / first.mean,
    )


def candidates(base: float, taken: tuple[int, ...] = ()) -> tuple[Candidate, ...]:
    """One candidate for every layer not yet taken."""
    return tuple(
        Candidate(layer, 0.3 * layer, base - 0.011 * ((layer * 5) % 9), 0.6 + 0.02 * layer)
        for layer in range(NUM_LAYERS)
        if layer not in taken
    )


def selection(model: str = "bert-tiny") -> Selection:
    """Two rounds accepted, a third rejected."""
    return Selection(
        model=model,
        task="text-classification",
        criterion="tale",
        num_layers=NUM_LAYERS,
        drop=DROP,
        steps=(
            Step(7, 2.1, 0.741, 0.58, candidates(0.741)),
            Step(4, 1.2, 0.779, 0.55, candidates(0.779, (7,))),
        ),
        stop_reason="no candidate reached the floor",
        metric="accuracy",
        higher_is_better=True,
        baseline_metric=0.72,
        baseline_loss=0.64,
        selected_metric=0.779,
        floor=0.72,
        epsilon=0.0,
        num_samples=400,
        rejected=candidates(0.71, DROP),
        prediction=Prediction(0.41, 0.18, NUM_LAYERS),
        cost=Cost(31, 61000, 122000, 48.2),
    )


def benchmark(**changes: Any) -> Benchmark:
    """A gain on the target, no change on ID, two settings timed."""
    made = Benchmark(
        task="text-classification",
        accuracy={"id": NO_CHANGE, "target": GAIN},
        latency=(latency(), latency(8, 1.14)),
        size_bytes=Pair(438e6, 382e6),
        peak_memory_bytes=Pair(612e6, 548e6),
        load_seconds=Pair(0.91, 0.78),
        drop=DROP,
        optimism_gap=0.003,
        skipped=("CUDAExecutionProvider: no such device",),
    )
    return replace(made, **changes)


ALPHAS = (0.0, 0.5, 1.0, 1.5)


def doses(slope: float, *, labelled: bool = True) -> tuple[Dose, ...]:
    """A metric that falls with alpha by the slope, and a deviation that rises by it."""
    made = []
    for alpha in ALPHAS:
        change, moved = slope * (1 - alpha), 0.3 + slope * alpha
        dose = Dose(alpha, moved, moved + 0.1, (moved - 0.05, moved + 0.05), (moved + 0.02, moved + 0.18))
        scored = {
            "metric": 0.712 + change, "metric_interval": (0.672 + change, 0.752 + change),
            "loss": 0.6 - change, "loss_interval": (0.5 - change, 0.7 - change),
            "difference": change, "difference_interval": (change - 0.03, change + 0.03),
        }  # fmt: skip
        made.append(replace(dose, **scored) if labelled else dose)
    return tuple(made)


def intervention(**changes: Any) -> Intervention:
    """A gain that random layers do not reach, monotone, on a flat ID."""
    drawn = tuple(RandomSet((n % 4, 8 + n % 3), -0.02 * n, 0.1 - 0.03 * n) for n in range(1, 21))
    made = Intervention(
        model="bert-tiny",
        task="text-classification",
        num_layers=NUM_LAYERS,
        layers=DROP,
        alphas=ALPHAS,
        id=doses(0.002),
        target=doses(0.056),
        by_layer=tuple(LayerDoses(layer, doses(0.001), doses(0.02 + 0.001 * layer)) for layer in DROP),
        random=RandomLayers(
            drawn,
            45,
            Rank(0.056, -0.21, -0.02, 0, 20, 1 / 21, "distinguishable", (0.04, 0.11)),
            Rank(0.15, -0.2, 0.07, 0, 20, 1 / 21, "distinguishable"),
        ),
        norms=NormControl(((4, 0.9), (7, 0.8)), doses(0.056)[2], 0.056, (0.02, 0.09), "more"),
        deviation_trend=Trend(1.0, (1.0, 1.0), -0.05, (-0.07, -0.03), "rises"),
        noise_floor=(0.02, 0.04),
        metric="accuracy",
        higher_is_better=True,
        dropped={"id": NO_CHANGE, "target": GAIN},
        metric_trend=Trend(-1.0, (-1.0, -0.5), 0.056, (0.024, 0.088), "falls"),
        flatness=Flatness(0.05, 0.0, 0.002, (-0.028, 0.032), "flat"),
        num_id=500,
        num_target=500,
        layer_forwards=1234,
        seconds=5.6,
    )
    made = replace(made, **changes)
    return replace(made, verdict=intervention_verdict(made))


def export(name: str = "onnx", **changes: Any) -> Export:
    """A file that agrees with PyTorch."""
    made = Export(
        model="bert-tiny",
        task="text-classification",
        format=name,
        files={"model.onnx" if name == "onnx" else "model.pt": "9f2c" * 16},
        exporter="torch.onnx (dynamo)" if name == "onnx" else "torch.jit.trace",
        opset=18 if name == "onnx" else None,
        inputs=("input_ids", "attention_mask"),
        outputs=("logits",),
        max_abs_difference=1.4e-6,
        tolerance=1e-4,
        label_agreement=1.0,
        rows_checked=64,
        shapes_checked=((1, 7), (3, 33), (8, 128)),
        padding_checked=("right",),
        size_bytes=382_000_000,
        sha256="9f2c" * 16,
        num_layers=NUM_LAYERS - len(DROP),
        drop=DROP,
    )
    return replace(made, **changes)


def run(**config: Any) -> Run:
    """A resolved configuration with its environment and hashes."""
    return Run(
        config={"model": "bert-tiny", "seed": 0, **config},
        environment={"python": "3.11", "torch": "2.13", "cpu": "2 cores"},
        inputs={"id.jsonl": "ab" * 32},
        outputs={"pruned/onnx": "cd" * 32},
        seconds={"profile": 12.1, "select": 48.2},
    )


def report(**changes: Any) -> Report:
    """The report on all of the above; keywords replace whole artifacts."""
    parts: dict[str, Any] = {
        "run": run(),
        "selection": selection(),
        "profile": profile(),
        "benchmark": benchmark(),
        "exports": {"pruned/onnx": export()},
    }
    return make_report(**{**parts, **changes})
