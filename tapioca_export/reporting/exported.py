"""Exported files and their proofs, in sentences."""

from __future__ import annotations

from pathlib import Path

from ..artifacts import Export, Loss


def about_export(name: str, export: Export) -> str:
    """Say how far an exported file is from PyTorch, and on what it was compared."""
    note = f" Note: {export.note.strip().rstrip('.')}." if export.note else ""
    treated = f", {export.treatment}" if export.treatment else ""
    head = f"Export {name} ({export.format}, {export.dtype}{treated})"
    if export.max_abs_difference is None:
        return f"{head} was not run when it was made.{note}"
    agreeing = "" if export.token_agreement == 1 else f"{export.token_agreement * 100:.1f} % of "
    same = (
        f", {agreeing}the same {export.tokens_generated} tokens generated from "
        f"{number_of(export.prompts_continued, 'prompt')}"
    )
    half = export.pytorch_difference
    own = f"; PyTorch's own in {export.dtype} {half:.1e}" if half else ""
    loss = f" {loss_text(export.loss)}" if export.loss else ""
    return (
        f"{head} {_agreement(export)} with {export.reference}: "
        f"largest difference {export.max_abs_difference:.1e} ({tolerance_text(export)}{own}), "
        f"label agreement {export.label_agreement * 100:.1f} %, on "
        f"{number_of(export.rows_checked, 'row')} and {number_of(len(export.shapes_checked), 'shape')}"
        f"{same if export.tokens_generated else ''}.{loss}{note}"
    )


def _agreement(export: Export) -> str:
    if export.tolerance is None or export.max_abs_difference is None:
        return "does not compute the same, as was asked for; compared"
    return "agrees" if export.max_abs_difference <= export.tolerance else "does NOT agree"


def tolerance_text(export: Export) -> str:
    """Say how large the difference may be."""
    return "no tolerance" if export.tolerance is None else f"tolerance {export.tolerance:.1e}"


def loss_text(loss: Loss) -> str:
    """Say what a file loses of the metric."""
    return (
        f"{loss.metric} on {number_of(loss.rows, 'labelled row')}: {loss.float32:.4g} in float32, "
        f"{loss.treated:.4g} treated ({loss.drop:+.4g} worse, at most {loss.max_drop:g} allowed)."
    )


def export_lines(folder: Path, export: Export) -> list[str]:
    """Return what `export` prints: the file and its proof, what it loses, what stayed unfused."""
    treated = f", {export.treatment}" if export.treatment else ""
    lines = [
        f"{folder}: {export.format} in {export.dtype}{treated}, {export.size_bytes:,} bytes, "
        f"largest difference {export.max_abs_difference:.1e} on {export.rows_checked} rows "
        f"({tolerance_text(export)})."
    ]
    if export.loss:
        lines.append(loss_text(export.loss))
    elif export.tolerance is None:
        lines.append(
            f"No row with a label is left to measure a metric on; labels agree on "
            f"{export.label_agreement:.1%} of the rows."
        )
    for name, fused in export.fusions.items():
        total = ", ".join(f"{count} {operator}" for operator, count in fused.total.items())
        lines.append(f"{name}: {total or 'nothing'}.")
        lines += [f"Not fused alike: {layer}." for layer in fused.unfused]
    return lines


def number_of(count: int, noun: str) -> str:
    """Return "1 row" or "7 rows"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
