"""What else the machine did during a run, and whether its verdicts on times would be chance."""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

from .results import is_gpu
from .timing import summarise

__all__ = ["Watch", "doubts"]

LOAD = 0.15
"""The share of all cores that other programs may take."""
SPREAD = 0.3
"""From the 20th to the 80th percentile of the plain contender's rounds ÷ their median, in half of the rows."""
ROOF = 1.05
"""The share of the roof above which a plain layer cannot be: the roof was measured in a slower moment."""
RATES = 0.7
"""The share of an earlier run's rates below which the machine is not as it was."""


class Watch:
    """How many cores other programs keep busy, from now on."""

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
        """Seconds that all cores were busy or kept from us, that this process and its ended children were, and now."""
        try:
            user, nice, system, _, _, *rest = map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9])
        except (OSError, ValueError, IndexError):
            return None
        busy = (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")
        return busy, sum(os.times()[:4]), time.monotonic()


def doubts(result: dict) -> list[str]:
    """Why a verdict on a time of this run would be chance, in words; empty where nothing speaks against it."""
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
        found.append(f"the rounds of the plain contender spread by {spread:.0%} in half of the rows")
    if above:
        found.append(f"{above} plain layers are above {ROOF:.0%} of the roof, which was measured too low")
    for rate, before in (result.get("earlier_rates") or {}).items():
        if (now := result["rates"].get(rate)) and now < RATES * before:
            found.append(f"{rate} were {now / before:.0%} of those of an earlier run on this device")
    return found
