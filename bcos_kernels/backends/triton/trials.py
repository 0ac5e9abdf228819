"""Which calls a run makes of these kernels, and how long each way to serve one takes: the only place that times."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import astuple, replace
from typing import NamedTuple

import torch
from torch import Tensor

from . import choices, layer, plan
from .plan import Choice, Tile
from .problem import Problem

__all__ = ["Trial", "keep", "listed", "measure", "noting", "of", "predicted", "served"]

ROUNDS = 12
ROUNDS_INTERPRETED = 2  # there a time means nothing
FLUSHED = 256 << 20  # bytes written between two calls: more than any second-level cache holds
LEAD = 4  # such writes before a call: the host starts its kernels meanwhile, so that the device never waits for it
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}
TOLERANCE_TF32 = 4e-3
"""Relative differences in the 2-norm between two ways to serve a call, at b up to 2: rounding, not a wrong kernel."""


class Trial(NamedTuple):
    """One way to serve one direction of a call."""

    candidate: str
    tile: Tile | None
    seconds: float | None = None
    refusal: str | None = None
    """Why it must not be chosen; then without a time."""


def listed(p: Problem, direction: str) -> list[Trial]:
    """Every way to serve one direction, untimed."""
    return [
        Trial(name, tile)
        for name in plan.candidates(p, direction)
        for tile in (plan.tiles(p, direction, name) if plan.has_tile(p, name) else [None])
    ]


def predicted(p: Problem, direction: str) -> Trial:
    """What the byte model chooses, whatever was measured."""
    times = {name: plan.predict(p, direction, name) for name in plan.candidates(p, direction)}
    best = min(times, key=times.get)
    return next(trial for trial in listed(p, direction) if trial.candidate == best)


def served(p: Problem) -> tuple[Choice, ...]:
    """What serves each direction of a call whose forward is ``p``, in the order of ``plan.DIRECTIONS``."""
    return tuple(layer.choose(of(p, direction), direction) for direction in plan.DIRECTIONS)


def of(p: Problem, direction: str) -> Problem:
    """The problem of one direction of a call whose forward is ``p``: an explanation wants no gradient of the bias."""
    return replace(p, bias=False) if direction == "explanation" else p


def keep(p: Problem, direction: str, trials: list[Trial]) -> None:
    """Stores the fastest of the timed trials, so that the next call is served that way; nothing if there is none."""
    timed = sorted((t for t in trials if t.seconds is not None), key=lambda t: t.seconds)
    if timed:
        tile = timed[0].tile
        seconds = {t.candidate: t.seconds for t in reversed(timed)}
        choice = {"candidate": timed[0].candidate, "tile": tile and list(astuple(tile)), "seconds": seconds}
        choices.store({choices.key(p, direction): choice})
        layer.choose.cache_clear()


@contextmanager
def noting() -> Iterator[dict[tuple[Problem, str], None]]:
    """Within the context the distinct (problem, direction) that are served are noted, in their order."""
    usual, noted = layer.choose, {}

    def note(p: Problem, direction: str) -> Choice:
        noted[p, direction] = None
        return usual(p, direction)

    with layer.choosing(note):
        yield noted


def _served_by(candidate: str, tile: Tile | None):
    choice = Choice(candidate, tile, "on trial")
    return layer.choosing(lambda p, direction: choice)


@torch.no_grad()
def measure(p: Problem, direction: str, device: torch.device, done: Callable[[], None]) -> list[Trial]:
    """The trials of one direction on random tensors, each with its time or the reason of its refusal.

    Refused are those that fail, and those whose result is not the vendor's up to rounding. ``done`` is called after
    the first call of each, which compiles its kernels.
    """
    on_cuda = device.type == "cuda"
    with torch.cuda.device(device) if on_cuda else nullcontext(), torch.autocast(device.type, enabled=False):
        trials = listed(p, direction)
        try:
            with _served_by("vendor", None):
                call = _call(p, direction, device)
                truth = call()
        except Exception as error:  # the vendor's libraries raise what they like; out of memory is the usual one
            refusal = f"there is nothing to compare with: {_line(error)}"
            return [trial._replace(refusal=refusal) for trial in trials]
        for i, trial in enumerate(trials):
            trials[i] = trial._replace(refusal=_refusal(p, trial, call, truth))
            done()
        del truth
        times = {trial: [] for trial in trials if trial.refusal is None}
        flushed = torch.empty(FLUSHED, dtype=torch.int8, device=device) if on_cuda else None
        for _ in range(ROUNDS if on_cuda else ROUNDS_INTERPRETED):
            for trial, samples in times.items():
                with _served_by(trial.candidate, trial.tile):
                    samples.append(_seconds(call, flushed))
    return [t._replace(seconds=statistics.median(times[t])) if t in times else t for t in trials]


def _call(p: Problem, direction: str, device: torch.device) -> Callable[[], dict[str, Tensor]]:
    """One direction of the call on random tensors; returns what it computes, by name."""
    generator = torch.Generator(device).manual_seed(0)

    def random(shape: tuple[int, ...], dtype: torch.dtype, scale: float = 1.0) -> Tensor:
        values = torch.randn(shape, generator=generator, device=device).mul_(scale).to(dtype)
        return values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values

    x = random(p.x_shape, p.dtype)
    weight = random(p.weight_shape, p.weight_dtype, (p.group_channels * p.taps) ** -0.5)
    bias = random((p.filters,), p.weight_dtype) if p.bias else None
    b = torch.full((), 2.0, device=device) if p.tensor_b else None

    def forward() -> dict[str, Tensor]:
        return layer.Saved(*layer.forward(p, x, weight, bias, b))._asdict()

    if direction == "forward":
        return forward
    saved = layer.Saved(**forward())
    grad = random(saved.y.shape, p.out_dtype)
    saved = saved._replace(y=saved.y if p.power == 2 else None)
    training = direction == "training"
    needs = (True, training, training and p.bias, training and p.tensor_b)

    def backward() -> dict[str, Tensor]:
        grads = layer.backward(p, grad, x, weight, b, saved, not training, needs)
        return {name: g for name, g in zip(("dx", "dw", "dbias", "db"), grads, strict=True) if g is not None}

    return backward


def _refusal(p: Problem, trial: Trial, call: Callable[[], dict[str, Tensor]], truth: dict[str, Tensor]) -> str | None:
    try:
        with _served_by(trial.candidate, trial.tile):
            results = call()
        return _disagreement(p, results, truth)
    except Exception as error:  # a compiler's or a driver's
        return _line(error)


def _disagreement(p: Problem, results: dict[str, Tensor], truth: dict[str, Tensor]) -> str | None:
    tolerance = TOLERANCE_TF32 if p.tf32 and p.dtype == torch.float32 else TOLERANCE[p.dtype]
    tolerance *= max(1.0, p.exponent / 2)
    for name, theirs in truth.items():
        # near ties may fall either way; the gradient of a unit filter of one entry is 0, but for rounding
        if name == "winner" or theirs.numel() == 0 or (name == "dw" and p.unit and theirs[0].numel() == 1):
            continue
        theirs = theirs.float()
        error = ((results[name].float() - theirs).norm() / theirs.norm()).item()
        if not error <= tolerance:
            return f"its {name} is {error:.1e} away from the vendor's, {tolerance:.1e} is allowed"
    return None


def _line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


def _seconds(call: Callable[[], object], flushed: Tensor | None) -> float:
    if flushed is None:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    for _ in range(LEAD):
        flushed.zero_()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3
