"""One row of a result: the contenders that passed the parity check, their times in turns, and their memory."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor

from ..measure import interleave, saved_bytes
from .contenders import Contender, Contest, in_a_line, served
from .devices import Cpu, DeviceLost
from .results import EVERY

__all__ = ["failed", "measured"]

MOST = 60
"""The most rounds of a row; more would only lengthen the file."""


def measured(contest: Contest, wanted: Collection[str], device: Cpu, seconds: float, least: int) -> dict[str, dict]:
    """``contenders``, ``served`` and ``refused`` of a row of at least ``least`` rounds and about ``seconds``.

    A contender that fails or is less exact than the reference is not timed; ``refused`` says why. Raises DeviceLost
    where the device no longer responds, and whatever the reference raises in the check.
    """
    errors, refused = contest.admitted()
    calls, peaks = {}, {}
    for name in [name for name in errors if name in wanted]:
        try:
            call = contest.call(name)
            call()
            peaks[name] = device.peak(call)
            calls[name] = call
        except Exception as failure:  # one contender's; the others are timed
            refused[name] = in_a_line(failure)
    if refused and not device.is_alive():
        raise DeviceLost(next(iter(refused.values())))
    times = interleave(calls, seconds, least, MOST, device.time, warm_up=0) if calls else {}
    contenders = {}
    for name, samples in times.items():
        found = errors[name]
        contenders[name] = {
            "samples": [float(f"{sample:.5g}") for sample in samples],
            "errors": found and [float(f"{error:.4g}") for error in found],
            "peak": peaks[name],
            "saved": _saved(contest, name),
        }
    ours = {name: contest.contenders[name] for name in times if name.startswith("ours")}
    ways = {name: served(contender, contest.x, contest.direction) for name, contender in ours.items()}
    return {"contenders": contenders, "served": ways, "refused": refused}


def _saved(contest: Contest, name: str) -> int | None:
    """Bytes kept for the backward, without the parameters and the output, which exist without autograd, too."""
    graph = contest.graph
    if graph is None:
        return None
    contender: Contender = contest.contenders[name]
    excluded: list[Tensor] = list(contender.module.parameters())

    def call() -> Tensor:
        excluded.append(graph(contender.module))
        return excluded[-1]

    with contender.within():
        return saved_bytes(call, excluded)


def failed(failure: Exception) -> dict[str, dict]:
    """The same keys for a row in which nothing could be timed."""
    return {"contenders": {}, "served": {}, "refused": {EVERY: in_a_line(failure)}}
