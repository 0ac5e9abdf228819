"""Results of earlier runs: they are read, checked, and described in words."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path

from ...text import many
from ..measure import ratio as paired_ratio

__all__ = [
    "CONTENDERS", "EVERY", "SCHEMA", "conditions", "covered", "device", "is_gpu", "largest_error", "main_rows",
    "order", "ratio", "read", "state",
]  # fmt: skip

SCHEMA = 2
REPEAT = "repeat the run with python -m bcos_kernels bench"
NAMED = 12  # of what was not measured; the rest is counted
CONTENDERS = {
    "plain": "PyTorch's module of the same shape",
    "reference": "the package bcos",
    "compiled": "torch.compile of the reference, by default for a sample of the layers",
    "compiled plain": "torch.compile of plain, likewise",
    "compiled ours": "torch.compile of ours, likewise",
    "ours": "this package; each call is served by the fastest kernels",
    "ours pairs": "the same with accelerate(model, pairs=True), only if it is named",
    "ours folded": "fold of ours, for inference and explanations, only if it is named",
}
"""The contenders that no backend is forced for, in the order of tables."""
USUAL = ("plain", "reference", "ours")
"""The contenders of every run."""
EVERY = "every contender"
"""Where a row says why all contenders were refused."""


def read(path: Path) -> dict:
    """The result in ``path``.

    Raises:
        ValueError: it cannot be read, is no result of schema 2, or has no rows; the message names the file.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: no JSON ({error})") from None
    schema = result.get("schema") if isinstance(result, dict) else None
    if schema != SCHEMA:
        has = f"has schema {schema!r}" if schema is not None else "has no schema"
        raise ValueError(f"{path}: {has}, and schema {SCHEMA} is needed: {REPEAT}")
    if not result.get("rows"):
        raise ValueError(f"{path}: has no rows, nothing was measured: {REPEAT}")
    for row in result["rows"]:
        _check(row, path)
    return result


def _check(row: dict, path: Path) -> None:
    """Raises ValueError for a row without the parts that every reader needs."""
    try:
        where = f"{path}: row {row['workload']}, {row['measure']}"
        samples = {name: contender["samples"] for name, contender in row["contenders"].items()}
        valid = all(isinstance(t, (int, float)) and 0 < t < math.inf for times in samples.values() for t in times)
        rounds = {len(times) for times in samples.values()}
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: a row of schema {SCHEMA} lacks {error}: {REPEAT}") from None
    if not valid or 0 in rounds or len(rounds) > 1:
        raise ValueError(f"{where}: every contender needs a positive time for each round")


def main_rows(result: dict, scope: str, measure: str | None = None) -> list[dict]:
    """The rows of a scope outside of scaling curves."""
    found = (r for r in result["rows"] if r["scope"] == scope and r.get("scaling") is None)
    return [r for r in found if measure in (None, r["measure"])]


def covered(result: dict) -> str:
    """What a run measured, for a heading: layers, models, or the measures of models alone.

    It names one or two groups, a dtype that is not the usual one of the device, and the contenders that are not in
    every run.
    """
    layers, models = (main_rows(result, scope) for scope in ("layer", "model"))
    found = f"layers{' and models' if models else ''}"
    if not layers:
        found = ", ".join(dict.fromkeys(row["measure"] for row in models)) or "nothing"
    groups = dict.fromkeys(row["group"] for row in (*layers, *models))
    found += f" of {' and '.join(groups)}" if 0 < len(groups) <= 2 else ""
    dtype = result["settings"]["dtype"]
    found += "" if dtype == ("bf16" if is_gpu(result) else "fp32") else f" in {dtype}"
    others = [name for name in order((*layers, *models)) if name not in USUAL and "/" not in name]
    return f"{found}, with {', '.join(others)}" if others else found


def ratio(row: dict, numerator: str, denominator: str) -> float | None:
    """Median over the rounds of one contender's time ÷ another's; None where one was not timed."""
    times = [row["contenders"].get(name, {}).get("samples") for name in (numerator, denominator)]
    return paired_ratio(*times) if all(times) else None


def largest_error(row: dict, contender: str) -> float | None:
    """The contender's largest relative error against float64; None where it was not compared."""
    return max(row["contenders"].get(contender, {}).get("errors") or (), default=None)


def order(rows: Iterable[dict]) -> list[str]:
    """Every contender of the rows, plain and reference first, forced ones of ours last."""
    found = dict.fromkeys(name for row in rows for name in (*row["contenders"], *row.get("refused", ())))
    found.pop(EVERY, None)
    places = {name: place for place, name in enumerate(CONTENDERS)}
    return sorted(found, key=lambda name: (places.get(name, len(places)), name))


def is_gpu(result: dict) -> bool:
    return "compute_capability" in result["machine"]


def device(result: dict) -> str:
    """The measured device: the GPU and its driver, or the CPU and its threads."""
    m = result["machine"]
    if is_gpu(result):
        return f"{m['device']} (driver {m.get('driver') or 'unknown'})"
    return f"{m['cpu']}, {many(m['threads'], 'thread')}"


def state(result: dict) -> str:
    """A sentence that says whether everything was measured, or names what was not."""
    names = result.get("not_measured") or []
    if names:
        rest = f"; and {len(names) - NAMED} more" if len(names) > NAMED else ""
        return f"Not measured: {'; '.join(names[:NAMED])}{rest}."
    return "Complete." if result.get("complete") else "Interrupted: rows are missing."


def conditions(result: dict, code: str = "`") -> str:
    """Device, rates, versions, settings, command, commit and day; ``code`` stands around the command."""
    settings, rates = result["settings"], result.get("rates") or {}
    versions = result["versions"]
    shown = [f"{name} {versions[name]}" for name in ("torch", "triton", "bcos_kernels") if versions.get(name)]
    measured = ""
    if rates:
        measured = f"; copies {rates['bytes/s'] / 1e9:.0f} GB/s, products {flops_per_second(rates['FLOP/s'])}"
    commit = _short(result.get("commit"))
    later = [_short(more["commit"]) for more in result.get("resumed", ())]
    resumed = f", resumed at {', '.join(later)}" if later else ""
    return (
        f"{device(result)}{measured}; {', '.join(shown)}; "
        f"{settings['dtype']}, {settings['memory_format']}, {_batch(settings['batch'])}; "
        f"{code}{result['command']}{code} at commit {commit}, {result['started'][:10]}{resumed}"
    )


def flops_per_second(rate: float) -> str:
    return f"{rate / 1e12:.3g} TFLOP/s" if rate >= 1e12 else f"{rate / 1e9:.3g} GFLOP/s"


def _batch(batches: dict[str, int]) -> str:
    if len(set(batches.values())) == 1:
        return f"batch {batches['layers']}"
    return "batch " + ", ".join(f"{size} ({what})" for what, size in batches.items())


def _short(commit: str | None) -> str:
    commit = commit or "unknown"
    return commit[:10] + ("+changes" if commit.endswith("+changes") else "")
