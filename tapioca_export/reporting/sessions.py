"""What ONNX Runtime's sessions were opened with, in words."""

from __future__ import annotations

from ..artifacts import Benchmark, OrtSession, Ratio, SessionSettings

# What is said of an option, by the value that it does not begin with.
_SAID: dict[tuple[str, bool | int | str], str] = {
    ("enable_cpu_mem_arena", False): "no memory arena",
    ("enable_mem_pattern", False): "no memory pattern",
}
_UNSAID = ("ORT_ENABLE_ALL", "ORT_SEQUENTIAL")


def session_text(session: SessionSettings) -> str:
    """Return the threads, and what is not as ONNX Runtime begins: "1 thread, no memory arena"."""
    threads = session.num_threads
    parts = [f"{threads} thread" + ("s" if threads != 1 else "")]
    for name, value in session.session_options.items():
        if isinstance(value, str) and value not in _UNSAID:
            parts.append(value)
        elif (name, value) in _SAID:
            parts.append(_SAID[name, value])
    if session.config_entries.get("session.intra_op.allow_spinning") == "0":
        parts.append("no spinning")
    if session.io_binding:
        parts.append("I/O binding")
    if session.provider_options.get("enable_cuda_graph") == "1":
        parts.append("CUDA graphs")
    return ", ".join(parts)


def gain_text(session: OrtSession) -> str:
    """Return how much faster a session is than the default, or that none was shown to be."""
    if session.speedup is None:
        return f"the default: none of {session.candidates} changes was faster"
    if not session.tuned:
        return f"the default: what looked faster was not when timed again ({_times(session.speedup)})"
    return f"{_times(session.speedup)} as fast as the default"


def _times(ratio: Ratio) -> str:
    low, high = ratio.interval
    return f"{ratio.median:.2f} times, 95 % interval {low:.2f} to {high:.2f}"


def about_sessions(benchmark: Benchmark) -> list[str]:
    """Return a sentence for each provider on which sessions were tuned."""
    sentences = []
    for original in benchmark.sessions.get("original", ()):
        pruned = next(own for own in benchmark.sessions["pruned"] if own.provider == original.provider)
        sides = "; ".join(
            f"{name}: {session_text(session)} ({gain_text(session)})"
            for name, session in (("original", original), ("pruned", pruned))
        )
        provider = original.provider.removesuffix("ExecutionProvider")
        sentences.append(
            f"Sessions were tuned on {provider}, {original.candidates} of {original.planned} changes of "
            f"settings tried on both files. {sides}."
        )
    return sentences
