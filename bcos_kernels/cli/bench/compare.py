"""``python -m bcos_kernels bench compare A B``: what got slower or faster from run A to run B, beyond noise.

A contender's time is divided by an anchor's of the same round, so that what slows the whole machine cancels, and the
logarithms of two runs are compared: the difference of their trimmed means, its standard error from winsorised
variances (Yuen's test), each variance drawn towards the others' so that five rounds do not pretend to know theirs.
Two runs of the same code differ by more than the rounds of one run show; contenders that are not ours have not changed
between the runs, so their differences show by how much, and that is added to the error. Every p-value is then held
against Holm's bound for all comparisons together.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

from .noise import doubts
from .results import conditions, device, read
from .tables import Table, duration

__all__ = ["Change", "changes", "main"]

ALPHA = 0.05
"""The chance, at most, that a comparison of two runs of the same code names anything at all."""
TRIM = 0.2  # of the rounds, at each end
PRIOR = 4  # rounds that what is typical of all rows counts as
CONTROLS = 10
"""The fewest contenders that are not ours to learn from how far runs of the same code differ."""
DECILE, TINY = 2.7055, 1e-30  # the ninth decile of χ² with one degree of freedom
SHOWN = 8  # of what could not be compared; the rest is counted
UNKNOWN = 2
"""The exit code where the files cannot be compared, or where a verdict would be chance."""
ANCHORS = ("plain", "reference", "none")


@dataclass(frozen=True)
class Change:
    """One contender of one row in both runs."""

    row: tuple
    contender: str
    medians: tuple[float, float]
    """Ratio to the anchor, or seconds without one."""
    log: float
    """Logarithm of B ÷ A."""
    error: float
    """Standard error of ``log``, from the rounds."""
    freedom: float

    @property
    def ours(self) -> bool:
        return self.contender.partition("/")[0] == "ours"

    def p(self, spread: float) -> float:
        """Two-sided p-value of no change, where runs of the same code differ by the standard deviation ``spread``."""
        t = abs(self.log) / math.hypot(self.error, spread, TINY)
        v = self.freedom
        z = (8 * v + 1) / (8 * v + 3) * math.sqrt(v * math.log1p(t * t / v))  # Wallace: Student's t as a normal
        return math.erfc(z / math.sqrt(2))

    def visible(self, p: float, spread: float) -> float:
        """The smallest logarithm that has this p-value."""
        z, v = NormalDist().inv_cdf(1 - p / 2), self.freedom
        t = math.sqrt(v * math.expm1((z * (8 * v + 3) / (8 * v + 1)) ** 2 / v))
        return t * math.hypot(self.error, spread)


# ------------------------------------------------------------------------------------------------ statistics


@dataclass(frozen=True)
class Centre:
    """The trimmed mean of the logarithms of one contender in one run, and what is known about it."""

    mean: float
    variance: float
    """Of the mean, times ``kept``."""
    kept: int
    median: float


def centre(times: list[float]) -> Centre:
    ordered = sorted(map(math.log, times))
    n, cut = len(ordered), int(TRIM * len(ordered))
    inner = ordered[cut : n - cut]
    winsorised = [inner[0]] * cut + inner + [inner[-1]] * cut
    variance = (n - 1) * statistics.variance(winsorised) / (len(inner) - 1) if len(inner) > 1 else 0.0
    return Centre(statistics.fmean(inner), variance, len(inner), math.exp(statistics.median(ordered)))


def changes(pairs: dict[tuple, tuple[list[float], list[float]]]) -> list[Change]:
    """Of each ``(row, contender)`` with what it took in the rounds of both runs, relative to the anchor."""
    centres = {key: (centre(a), centre(b)) for key, (a, b) in pairs.items()}
    known = [c.variance for pair in centres.values() for c in pair if c.kept > 1]
    if not known:
        raise ValueError("one round for each contender shows no noise: repeat the runs with more --seconds")
    typical = statistics.median(known)

    def moderated(c: Centre) -> tuple[float, float]:
        """Variance of the mean, and its degrees of freedom."""
        own = c.kept - 1
        variance = (PRIOR * typical + own * c.variance) / (PRIOR + own)
        return variance / c.kept, PRIOR + own

    found = []
    for (row, contender), (a, b) in centres.items():
        (va, fa), (vb, fb) = moderated(a), moderated(b)
        freedom = (va + vb + TINY) ** 2 / (va**2 / fa + vb**2 / fb + TINY)
        found.append(Change(row, contender, (a.median, b.median), b.mean - a.mean, math.sqrt(va + vb), freedom))
    return found


def spread_of_runs(controls: list[Change], least: float) -> float:
    """Standard deviation by which runs of the same code differ beyond their rounds' noise.

    It is what makes the controls' differences, about their middle, as large as noise would: nine in ten below the
    ninth decile of χ². With too few controls, a change of ``least`` is held to be within two of it.
    """
    if len(controls) < CONTROLS:
        return math.log1p(least) / 2
    middle = statistics.median(c.log for c in controls)

    def excessive(spread: float) -> bool:
        squares = [(c.log - middle) ** 2 / max(c.error**2 + spread**2, TINY) for c in controls]
        return statistics.quantiles(squares, n=10)[-1] > DECILE

    low, high = 0.0, max(abs(c.log - middle) for c in controls)
    if not excessive(low):
        return low
    for _ in range(40):
        spread = (low + high) / 2
        low, high = (spread, high) if excessive(spread) else (low, spread)
    return high


def beyond_noise(found: list[Change], spread: float, least: float) -> list[Change]:
    """Those that are no chance (Holm, ``ALPHA`` for all together) and at least ``least``, the largest first."""
    kept = []
    for i, change in enumerate(sorted(found, key=lambda c: c.p(spread))):
        if change.p(spread) > ALPHA / (len(found) - i):
            break
        if abs(change.log) >= math.log1p(least):
            kept.append(change)
    return sorted(kept, key=lambda c: -abs(c.log))


# ------------------------------------------------------------------------------------------------ rows


def key(row: dict) -> tuple:
    return row["scope"], row["workload"], row["measure"], row.get("scaling"), row["batch"], row.get("image")


def named(key: tuple) -> str:
    _, workload, measure, scaling, batch, image = key
    size = f", batch {batch}" + (f", image {image}" if scaling == "image" else "")
    return f"{workload}, {measure}{size}"


def paired(a: dict, b: dict, anchor: str) -> tuple[dict, list[str]]:
    """``(row, contender) -> times of both runs ÷ the anchor's``, and what could not be compared."""
    rows = [{key(row): row for row in result["rows"]} for result in (a, b)]
    pairs, left_out = {}, []
    for which, own, other in (("A", *rows), ("B", *rows[::-1])):
        left_out += [f"{named(k)}: only in {which}" for k in own if k not in other]
    for k in (k for k in rows[0] if k in rows[1]):
        both = [rows[i][k]["contenders"] for i in (0, 1)]
        for name in (*both[0], *(name for name in both[1] if name not in both[0])):
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
    """Raises ValueError where figures of the two runs have nothing to do with each other."""
    for what, one, other in (
        ("devices", device(a).split(" (driver")[0], device(b).split(" (driver")[0]),
        ("dtypes", a["settings"]["dtype"], b["settings"]["dtype"]),
        ("memory formats", a["settings"].get("memory_format"), b["settings"].get("memory_format")),
    ):
        if one != other:
            raise ValueError(f"different {what}: {one} in A, {other} in B; runs of one of them can be compared")
    sizes: list[dict[tuple, set]] = []
    for result in (a, b):
        sizes.append({})
        for row in result["rows"]:
            sizes[-1].setdefault(key(row)[:4], set()).add((row["batch"], row.get("image")))
    for where in (w for w in sizes[0] if w in sizes[1] and not sizes[0][w] & sizes[1][w]):
        (one, image), (other, its) = (min(s[where], key=str) for s in sizes)
        raise ValueError(
            f"different batches or images: {where[1]}, {where[2]} has batch {one}, image {image} in A and "
            f"batch {other}, image {its} in B; repeat one run with the other's --batch and --image"
        )


# ------------------------------------------------------------------------------------------------ command


def listed(found: list[Change], spread: float, anchor: str, chance: bool) -> Table:
    unit = "seconds" if anchor == "none" else f"÷ {anchor}"
    lines = []
    for c in found:
        shown = map(duration, c.medians) if anchor == "none" else (f"{m:.3f}" for m in c.medians)
        verdict = "chance" if chance else "slower" if c.log > 0 else "faster"
        lines.append((named(c.row), c.contender, *shown, f"{math.expm1(c.log):+.1%}", verdict, f"{c.p(spread):.0e}"))
    return Table(("row", "contender", f"A, {unit}", f"B, {unit}", "time", "", "p"), lines, frozenset({2, 3, 4, 6}))


def told(a: dict, b: dict, found: list[Change], arguments: argparse.Namespace) -> tuple[str, int]:
    """The table of what changed and a line that sums it up, as Markdown, and the exit code."""
    chance = [f"{which}: {reason}" for which, result in (("A", a), ("B", b)) for reason in doubts(result)]
    ours, controls = ([c for c in found if c.ours is own] for own in (True, False))
    spread = spread_of_runs(controls, arguments.least)
    changed = beyond_noise(ours, spread, arguments.least)
    shifted = beyond_noise(controls, spread, arguments.least)
    parts = [f"- {which}: {conditions(result)}" for which, result in (("A", a), ("B", b))]
    parts = ["\n".join(parts)]
    if changed or shifted:
        parts.append(listed([*changed, *shifted], spread, arguments.anchor, bool(chance)).markdown())
    if chance:
        parts.append(f"No verdict, it would be chance: {'; '.join(chance)}. Repeat the run on a quiet machine.")
        return "\n\n".join(parts) + "\n", UNKNOWN
    visible = statistics.median(c.visible(ALPHA / len(ours), spread) for c in ours)
    slower = sum(c.log > 0 for c in changed)
    source = (
        f"{len(controls)} controls" if len(controls) >= CONTROLS else f"assumed: {len(controls)} controls are too few"
    )
    least = f"{arguments.least:.0%}" if round(100 * arguments.least, 6).is_integer() else f"{arguments.least:.1%}"
    parts.append(
        f"{slower} slower and {len(changed) - slower} faster by {least} or more, of {len(ours)} comparisons of ours"
        + (f", and {len(shifted)} of what is not ours" if shifted else "")
        + f". Runs of the same code differ by {math.expm1(spread):.1%} beyond the noise of their rounds ({source}); "
        f"a change of {math.expm1(visible):.0%} would be seen in half of the rows."
    )
    return "\n\n".join(parts) + "\n", int(slower > 0)


def percent(text: str) -> float:
    try:
        value = float(text.removesuffix("%")) / 100
    except ValueError:
        value = math.nan
    if not 0 < value < 10:
        raise argparse.ArgumentTypeError(f"{text!r}: a percentage above 0 is needed, as in 5%")
    return value


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bcos_kernels bench compare",
        description="What got slower or faster from run A to run B, beyond noise; exits 1 if ours got slower, 2 if a "
        "verdict would be chance.",
    )
    parser.add_argument("a", type=Path, metavar="A", help="a result of bench")
    parser.add_argument("b", type=Path, metavar="B", help="another one of the same device")
    parser.add_argument(
        "--anchor", choices=ANCHORS, default="plain", help="what times are divided by; none: seconds (default plain)"
    )
    parser.add_argument(
        "--least", type=percent, default=0.05, metavar="PERCENT", help="the smallest change of interest (default 5%%)"
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="stores what is printed")
    return parser.parse_args(argv)


def compared(arguments: argparse.Namespace) -> tuple[str, int]:
    a, b = read(arguments.a), read(arguments.b)
    refuse_unlike(a, b)
    pairs, left_out = paired(a, b, arguments.anchor)
    if not any(name.partition("/")[0] == "ours" for _, name in pairs):
        raise ValueError(f"{arguments.a} and {arguments.b} have nothing of ours in common: {'; '.join(left_out[:4])}")
    text, code = told(a, b, changes(pairs), arguments)
    rest = f"; and {len(left_out) - SHOWN} more" if len(left_out) > SHOWN else ""
    return (f"Not compared: {'; '.join(left_out[:SHOWN])}{rest}.\n\n" if left_out else "") + text, code


def main(argv: list[str] | None = None) -> int:
    """Returns 1 if anything of ours got slower, 0 if not, 2 where files cannot be compared or it would be chance."""
    arguments = parse(argv)
    try:
        text, code = compared(arguments)
        if arguments.markdown is not None:
            arguments.markdown.write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        print(f"bcos_kernels bench compare: {error}", file=sys.stderr)
        return UNKNOWN
    print(text, end="")
    return code
