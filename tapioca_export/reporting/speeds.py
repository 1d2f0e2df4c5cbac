"""How much faster the pruned model is, and where, in words."""

from __future__ import annotations

from ..artifacts import Benchmark, Latency
from .exported import number_of


def provider_text(provider: str) -> str:
    """Return ONNX Runtime's provider name without the part that is always the same."""
    return provider.removesuffix("ExecutionProvider")


def setting_text(row: Latency) -> str:
    """Return where a latency was measured."""
    threads = number_of(row.threads, "thread")
    threads += "" if row.original_threads is None else f" (original: {row.original_threads})"
    runtime = "" if row.runtime == "onnxruntime" else f", {row.runtime}"
    return f"{row.setting}, {provider_text(row.provider)}, {threads}{runtime}"


def is_faster(row: Latency) -> bool:
    """Tell whether the speed-up's interval lies above what the same model shows against itself."""
    return row.speedup.interval[0] > max(1.0, row.noise_floor[1])


def is_slower(row: Latency) -> bool:
    """Tell whether the speed-up's interval lies below what the same model shows against itself."""
    return row.speedup.interval[1] < min(1.0, row.noise_floor[0])


def speed_clause(rows: tuple[Latency, ...]) -> str:
    """Return what of the verdict is about speed."""
    if not rows:
        return "latency was not measured"
    median = _range([row.speedup.median for row in rows])
    ideal = _range([row.ideal_speedup for row in rows])
    if all(map(is_faster, rows)):
        return f"{median} times faster (ideal {ideal})"
    if all(map(is_slower, rows)):
        return f"slower ({median} times the speed, ideal {ideal})"
    how_many = sum(map(is_faster, rows))
    if how_many == 0:
        return f"not measurably faster ({median} times the speed, ideal {ideal})"
    return (
        f"faster beyond timing noise in {how_many} of {len(rows)} settings "
        f"({median} times the speed, ideal {ideal})"
    )


def _range(values: list[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"


def about_speed(benchmark: Benchmark) -> list[str]:
    """Return how many settings are faster, and the slowest and the fastest of them."""
    rows = benchmark.served
    if not rows:
        return ["Latency was not measured."]
    sentences = [_speed_sentence(row) for row in sorted(rows, key=lambda r: r.speedup.median)]
    if len(rows) == 1:
        return [f"Speed-up: {sentences[0]}."]
    slower = sum(map(is_slower, rows))
    note = f", {slower} slower" if slower else ""
    return [
        f"Speed-up: {sum(map(is_faster, rows))} of {len(rows)} settings are faster beyond timing "
        f"noise{note}.",
        f"Slowest setting: {sentences[0]}.",
        f"Fastest setting: {sentences[-1]}.",
    ]


def _speed_sentence(row: Latency) -> str:
    low, high = row.speedup.interval
    return (
        f"{row.speedup.median:.2f} times ({low:.2f} to {high:.2f}) at {setting_text(row)}; "
        f"ideal {row.ideal_speedup:.2f}, the original against itself "
        f"{row.noise_floor[0]:.2f} to {row.noise_floor[1]:.2f}"
    )


def about_medians(benchmark: Benchmark) -> list[str]:
    """Return a sentence on the settings where median times and the speed-up say the opposite."""
    settings = "; ".join(setting_text(row) for row in benchmark.latency if _is_contrary(row))
    if not settings:
        return []
    return [
        f"Median times and median speed-up are on different sides of 1 at {settings}: a speed-up is the "
        "ratio within a round, where both run one after the other, and a machine that is slower in some "
        "rounds moves median times more than that. Go by the speed-up's interval."
    ]


def _is_contrary(row: Latency) -> bool:
    """Compare numbers as they are shown."""
    saved = round(row.original.p50_ms, 2) - round(row.pruned.p50_ms, 2)
    return saved * (round(row.speedup.median, 2) - 1) < 0
