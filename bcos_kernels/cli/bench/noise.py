"""Whether the times of a run are too noisy for a verdict, and how busy other programs kept the machine."""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

from ..measure import summarise
from .results import is_gpu

__all__ = ["Watch", "doubts"]

LOAD = 0.15
"""The largest share of all cores that other programs may take."""
SPREAD = 0.3
"""The largest spread of the plain contender's rounds in the median row: (80th - 20th percentile) ÷ median."""
ROOF = 1.05
"""The largest share of the roof that a plain layer may reach; beyond it the roof was measured too low."""


class Watch:
    """Measures how many cores other programs keep busy, from now on."""

    def __init__(self) -> None:
        self.start = self._now()

    def others(self) -> float | None:
        """Cores, as an average since the start; None where the system does not tell (all but Linux)."""
        if self.start is None:
            return None
        busy, own, clock = (now - then for now, then in zip(self._now(), self.start, strict=True))
        return max(0.0, busy - own) / clock if clock > 0 else 0.0

    @staticmethod
    def _now() -> tuple[float, float, float] | None:
        """Seconds for which all cores were busy or withheld, for which this process and its children ran, and now."""
        try:
            user, nice, system, _, _, *rest = map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9])
        except (OSError, ValueError, IndexError):
            return None
        busy = (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")
        return busy, sum(os.times()[:4]), time.monotonic()


def doubts(result: dict) -> list[str]:
    """The reasons why the times of this run are too noisy for a verdict; empty where there are none."""
    found = []
    cores = result["machine"].get("cores") or 1
    for when, others in (result.get("load") or {}).items():
        if others is not None and others > LOAD * cores and not is_gpu(result):
            found.append(f"other programs kept {others:.1f} of {cores} cores busy {when} the run")
    spreads, above = [], 0
    for row in result["rows"]:
        samples = row["contenders"].get("plain", {}).get("samples", ())
        if len(samples) < 3:
            continue
        s = summarise(samples)
        spreads.append((s["p80"] - s["p20"]) / s["p50"])
        above += bool(row.get("floor")) and row["floor"]["seconds"] > ROOF * s["p50"]
    if spreads and (spread := statistics.median(spreads)) > SPREAD:
        found.append(f"the rounds of the plain contender spread by {spread:.0%} or more in half of the rows")
    if above:
        found.append(f"{above} plain layers are faster than {ROOF:.0%} of the roof, which was measured too low")
    return found
