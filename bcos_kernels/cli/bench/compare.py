"""``python -m bcos_kernels bench compare A B``: what got slower or faster from run A to run B.

Each time is divided by that of an anchor in the same round, so that whatever slows the whole machine cancels, and the
medians of both runs are compared. A change counts if it is at least ``--least`` and more than ``SIGMAS`` times its
noise. That noise has two parts: the rounds of a run scatter, and two runs of the same code differ by more than their
rounds show. The second part is learned from the contenders that are not ours, whose code is the same in both runs.
"""

from __future__ import annotations

import argparse
import math
import statistics
from dataclasses import dataclass
from pathlib import Path

from ..terminal import refused, unwritable
from . import console
from .noise import doubts
from .results import conditions, device, read
from .tables import Part, Table, duration, markdown

__all__ = ["Change", "changes", "configure", "main"]

SIGMAS = 4.5
"""Noise of 1 sigma exceeds this in one of 100,000 comparisons, and a run has hundreds."""
CONTROLS = 10
"""The fewest contenders that are not ours from which the difference of two runs of the same code can be learned."""
SHOWN = 8  # of what could not be compared; the rest is counted
UNKNOWN = 2
"""The exit status where the files cannot be compared, or where they are too noisy for a verdict."""
ANCHORS = ("plain", "reference", "none")


# ------------------------------------------------------------------------------------------------ statistics


@dataclass(frozen=True)
class Change:
    """One contender of one row in both runs."""

    row: tuple
    contender: str
    medians: tuple[float, float]
    """Ratio to the anchor, or seconds without one."""
    noise: float
    """Standard deviation of ``log``, as far as the rounds show it."""

    @property
    def log(self) -> float:
        """Logarithm of B ÷ A."""
        return math.log(self.medians[1] / self.medians[0])

    @property
    def ours(self) -> bool:
        return self.contender.partition("/")[0] == "ours"

    def bound(self, spread: float) -> float:
        """The largest change that noise explains; ``spread`` is the standard deviation between equal runs."""
        return SIGMAS * math.hypot(self.noise, spread)


def scatter(times: list[float]) -> float:
    """Standard deviation of the logarithms of the rounds, from their median absolute deviation."""
    logs = [math.log(t) for t in times]
    middle = statistics.median(logs)
    return 1.4826 * statistics.median(abs(log - middle) for log in logs)


def changes(pairs: dict[tuple, tuple[list[float], list[float]]]) -> list[Change]:
    """The changes of all ``(row, contender)``, from the times ÷ the anchor's in the rounds of both runs.

    A few rounds can look steadier than they are, so each scatters at least as much as the median of all.
    """
    if all(len(times) < 2 for pair in pairs.values() for times in pair):
        raise ValueError("one round for each contender shows no noise: repeat the runs with more --seconds")
    scatters = {compared: [scatter(times) for times in pair] for compared, pair in pairs.items()}
    usual = statistics.median(scattered for pair in scatters.values() for scattered in pair)
    found = []
    for (row, contender), pair in pairs.items():
        own = zip(scatters[row, contender], pair, strict=True)
        # the median of n values has √(π/2n) times the standard deviation of one
        variances = [math.pi / 2 * max(scattered, usual) ** 2 / len(times) for scattered, times in own]
        medians = statistics.median(pair[0]), statistics.median(pair[1])
        found.append(Change(row, contender, medians, math.sqrt(sum(variances))))
    return found


def spread_of_runs(controls: list[Change], least: float) -> float:
    """Standard deviation by which runs of the same code differ beyond the scatter of their rounds.

    With it, half of the controls' squared changes, about their median, are below the median of χ². Where there are too
    few controls, a change of ``least`` is taken as two standard deviations.
    """
    if len(controls) < CONTROLS:
        return math.log1p(least) / 2
    middle = statistics.median(c.log for c in controls)  # of seconds: how much slower the whole machine was
    return math.sqrt(max(0.0, statistics.median((c.log - middle) ** 2 / 0.4549 - c.noise**2 for c in controls)))


def beyond_noise(found: list[Change], spread: float, least: float) -> list[Change]:
    """The changes of at least ``least`` that noise does not explain, the largest first."""
    kept = [c for c in found if abs(c.log) >= math.log1p(least) and abs(c.log) > c.bound(spread)]
    return sorted(kept, key=lambda c: -abs(c.log))


# ------------------------------------------------------------------------------------------------ rows


def key(row: dict) -> tuple:
    return row["scope"], row["workload"], row["measure"], row.get("scaling"), row["batch"], row.get("image")


def named(key: tuple) -> str:
    _, workload, measure, scaling, batch, image = key
    return f"{workload}, {measure}, batch {batch}" + (f", image {image}" if scaling == "image" else "")


def paired(a: dict, b: dict, anchor: str) -> tuple[dict, list[str]]:
    """``(row, contender) -> times of both runs ÷ the anchor's``, and sentences about what could not be compared."""
    rows = [{key(row): row["contenders"] for row in result["rows"]} for result in (a, b)]
    pairs, left_out = {}, []
    for which, own, other in (("A", rows[0], rows[1]), ("B", rows[1], rows[0])):
        left_out += [f"{named(k)}: only in {which}" for k in own if k not in other]
    for k in (k for k in rows[0] if k in rows[1]):
        both = [rows[i][k] for i in (0, 1)]
        for name in dict.fromkeys((*both[0], *both[1])):
            needed = [name] if anchor == "none" else [name, anchor]
            missing = [f"{n} in {which}" for n in needed for which, c in zip("AB", both, strict=True) if n not in c]
            if missing:
                left_out.append(f"{named(k)}, {name}: no {', no '.join(missing)}")
            elif name != anchor:
                pairs[k, name] = tuple(relative(c, name, anchor) for c in both)
    return pairs, left_out


def relative(contenders: dict, name: str, anchor: str) -> list[float]:
    times = contenders[name]["samples"]
    if anchor == "none":
        return times
    return [t / u for t, u in zip(times, contenders[anchor]["samples"], strict=True)]


def refuse_unlike(a: dict, b: dict) -> None:
    """Raises ValueError where the figures of the two runs have nothing to do with each other."""
    for what, one, other in (
        ("devices", *(device(result).split(" (driver")[0] for result in (a, b))),
        ("dtypes", *(result["settings"]["dtype"] for result in (a, b))),
        ("memory formats", *(result["settings"].get("memory_format") for result in (a, b))),
    ):
        if one != other:
            raise ValueError(f"different {what}: {one} in A, {other} in B; both runs need the same")


# ------------------------------------------------------------------------------------------------ command


def listed(found: list[Change], spread: float, anchor: str, noisy: bool) -> Table:
    unit = "seconds" if anchor == "none" else f"÷ {anchor}"
    lines = []
    for c in found:
        shown = map(duration, c.medians) if anchor == "none" else (f"{m:.3f}" for m in c.medians)
        verdict = "no verdict" if noisy else "slower" if c.log > 0 else "faster"
        noise = f"±{math.expm1(c.bound(spread)):.0%}"
        lines.append((named(c.row), c.contender, *shown, f"{math.expm1(c.log):+.1%}", noise, verdict))
    return Table(("row", "contender", f"A, {unit}", f"B, {unit}", "change", "noise", ""), lines, frozenset(range(2, 6)))


def told(a: dict, b: dict, found: list[Change], options: argparse.Namespace) -> tuple[list[Part], int]:
    """The table of what changed and a line that sums it up, and the exit status."""
    noisy = [f"{which}: {reason}" for which, result in (("A", a), ("B", b)) for reason in doubts(result)]
    ours, controls = ([c for c in found if c.ours is own] for own in (True, False))
    spread = spread_of_runs(controls, options.least)
    changed, shifted = (beyond_noise(part, spread, options.least) for part in (ours, controls))
    parts: list[Part] = ["\n".join(f"- {which}: {conditions(result)}" for which, result in (("A", a), ("B", b)))]
    if changed or shifted:
        parts.append(listed([*changed, *shifted], spread, options.anchor, bool(noisy)))
    if noisy:
        parts.append(f"No verdict, the times are too noisy: {'; '.join(noisy)}. Repeat the run on a quiet machine.")
        return parts, UNKNOWN
    slower = sum(c.log > 0 for c in changed)
    visible = math.expm1(statistics.median(max(c.bound(spread), math.log1p(options.least)) for c in ours))
    source = f"learned from {len(controls)} controls" if len(controls) >= CONTROLS else "assumed for want of controls"
    parts.append(
        f"{slower} slower and {len(changed) - slower} faster by {100 * options.least:.3g}% or more, of {len(ours)} "
        f"comparisons of ours{f', and {len(shifted)} of what is not ours' if shifted else ''}. Runs of the same code "
        f"differ by {math.expm1(spread):.1%} beyond the scatter of their rounds ({source}); in half of the rows a "
        f"change of {visible:.0%} would count."
    )
    return parts, int(slower > 0)


def percent(text: str) -> float:
    try:
        value = float(text.removesuffix("%")) / 100
    except ValueError:
        value = math.nan
    if not 0 < value < 10:
        raise argparse.ArgumentTypeError(f"{text!r}: a percentage above 0 is needed, as in 5%")
    return value


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Shows what got slower or faster from run A to run B beyond their noise. Exits with 1 if anything of ours got "
        "slower, and with 2 if the files cannot be compared or are too noisy for a verdict."
    )
    parser.add_argument("a", type=Path, metavar="A", help="a result of bench")
    parser.add_argument("b", type=Path, metavar="B", help="another one of the same device")
    parser.add_argument(
        "--anchor", choices=ANCHORS, default="plain", help="what times are divided by; none: seconds (default plain)"
    )
    parser.add_argument(
        "--least", type=percent, default=0.05, metavar="PERCENT", help="the smallest change that counts (default 5%%)"
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="store what is printed")


def compared(options: argparse.Namespace) -> tuple[list[Part], int]:
    if options.markdown is not None and (reason := unwritable(options.markdown)):
        raise ValueError(f"--markdown {options.markdown}: {reason}")
    a, b = read(options.a), read(options.b)
    refuse_unlike(a, b)
    pairs, left_out = paired(a, b, options.anchor)
    if not any(name.partition("/")[0] == "ours" for _, name in pairs):
        raise ValueError(f"{options.a} and {options.b} have nothing of ours in common: {'; '.join(left_out[:4])}")
    parts, status = told(a, b, changes(pairs), options)
    rest = f"; and {len(left_out) - SHOWN} more" if len(left_out) > SHOWN else ""
    return [*([f"Not compared: {'; '.join(left_out[:SHOWN])}{rest}."] if left_out else []), *parts], status


def main(options: argparse.Namespace) -> int:
    """Returns 1 if anything of ours got slower, 0 if not, 2 where there is no verdict."""
    try:
        parts, status = compared(options)
        if options.markdown is not None:
            options.markdown.write_text(markdown(parts), encoding="utf-8")
    except (OSError, ValueError) as error:
        return refused("bench compare", error)
    console.show(parts)
    return status
