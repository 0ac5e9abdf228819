"""Which calls a run makes of a GPU, and how long each way to serve one takes: the only place that times."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import astuple, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from . import choice, choices
from .choice import Choice
from .problem import Problem
from .serve import kernels
from .tile import DIRECTIONS, Tile

__all__ = ["Noted", "Trial", "keep", "listed", "measure", "noting", "of", "served"]

ROUNDS = 12
ROUNDS_INTERPRETED = 2  # there a time means nothing
FLUSHED = 256 << 20  # bytes written between two calls: more than any second-level cache holds
LEAD = 4  # such writes before a call: the host starts its kernels meanwhile, so that the device never waits for it
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}
TOLERANCE_TF32 = 4e-3
"""Relative differences in the 2-norm between two ways to serve a call, at b up to 2: rounding, not a wrong kernel."""


class Trial(NamedTuple):
    """One way to serve one direction of a call."""

    backend: str
    candidate: str
    tile: Tile | None
    seconds: float | None = None
    refusal: str | None = None
    """Why it must not be chosen; then without a time."""


def listed(p: Problem, direction: str, backends: tuple[str, ...]) -> list[Trial]:
    """Every way to serve one direction, untimed."""
    return [Trial(*way) for way in choice.ways(p, direction, backends)]


def served(p: Problem, backends: tuple[str, ...]) -> tuple[Choice, ...]:
    """What serves each direction of a call whose forward is ``p``, in the order of ``DIRECTIONS``."""
    return tuple(choice.choose(of(p, direction), direction, backends) for direction in DIRECTIONS)


def of(p: Problem, direction: str) -> Problem:
    """The problem of one direction of a call whose forward is ``p``: an explanation wants no gradient of the bias."""
    return replace(p, bias=False) if direction == "explanation" else p


def keep(p: Problem, direction: str, trials: list[Trial]) -> None:
    """Stores what each backend does best, so that the next call is served that way; nothing where nothing was timed."""
    best: dict[str, dict] = {}
    for t in sorted((t for t in trials if t.seconds is not None), key=lambda t: t.seconds):
        first = {"candidate": t.candidate, "tile": t.tile and list(astuple(t.tile)), "seconds": {}}
        best.setdefault(t.backend, first)["seconds"].setdefault(t.candidate, t.seconds)
    if best:
        choices.store({choices.key(p, direction): best})
        choice.choose.cache_clear()


class Noted(NamedTuple):
    """A call that was served: its problem, its direction, and the backends that it was left to."""

    problem: Problem
    direction: str
    backends: tuple[str, ...]


@contextmanager
def noting() -> Iterator[dict[Noted, None]]:
    """Within the context the distinct calls that are served are noted, in their order."""
    usual, noted = choice.choose, {}

    def note(p: Problem, direction: str, backends: tuple[str, ...]) -> Choice:
        noted[Noted(p, direction, backends)] = None
        return usual(p, direction, backends)

    with choice.choosing(note):
        yield noted


@torch.no_grad()
def measure(
    p: Problem, direction: str, backends: tuple[str, ...], device: torch.device, done: Callable[[], None]
) -> list[Trial]:
    """The trials of one direction on random tensors, each with its time or the reason of its refusal.

    Refused are those that fail, and those whose result is not the vendor's up to rounding. ``done`` is called after
    the first call of each, which compiles its kernels.
    """
    on_cuda = device.type == "cuda"
    with torch.cuda.device(device) if on_cuda else nullcontext(), torch.autocast(device.type, enabled=False):
        trials = listed(p, direction, backends)
        try:
            vendor = Choice(backends[0], "vendor", None, "the measure of all others")
            call = _call(p, direction, device, vendor)
            truth = call(vendor)
        except Exception as error:  # the vendor's libraries raise what they like; out of memory is the usual one
            refusal = f"there is nothing to compare with: {_line(error)}"
            return [trial._replace(refusal=refusal) for trial in trials]
        for i, trial in enumerate(trials):
            trials[i] = trial._replace(refusal=_refusal(p, trial, call, truth))
            done()
        del truth
        times = {trial: [] for trial in trials if trial.refusal is None}
        calls = {trial: partial(call, _on_trial(trial)) for trial in times}
        flushed = torch.empty(FLUSHED, dtype=torch.int8, device=device) if on_cuda else None
        for _ in range(ROUNDS if on_cuda else ROUNDS_INTERPRETED):
            for trial, samples in times.items():
                samples.append(_seconds(calls[trial], flushed))
    return [t._replace(seconds=statistics.median(times[t])) if t in times else t for t in trials]


def _on_trial(trial: Trial) -> Choice:
    return Choice(trial.backend, trial.candidate, trial.tile, "on trial")


def _call(p: Problem, direction: str, device: torch.device, first: Choice) -> Callable[[Choice], dict[str, Tensor]]:
    """One direction of the call on random tensors, served by a choice; ``first`` serves the forward of a backward.

    Results are by name.
    """
    generator = torch.Generator(device).manual_seed(0)

    def random(shape: tuple[int, ...], dtype: torch.dtype, scale: float = 1.0) -> Tensor:
        values = torch.randn(shape, generator=generator, device=device).mul_(scale).to(dtype)
        return values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values

    dims = 2 if p.is_linear else 4
    x = random(p.x_shape[:dims], p.dtype)
    weight = random(p.weight_shape[:dims], p.weight_dtype, (p.group_channels * p.taps) ** -0.5)
    bias = random((p.filters,), p.weight_dtype) if p.bias else None
    b = torch.full((), 2.0, device=device) if p.tensor_b else None

    def forward(chosen: Choice) -> dict[str, Tensor]:
        outputs = kernels(chosen.backend).forward(p, chosen, x, weight, bias, b)
        return dict(zip(("y", "n", "l", "winner"), outputs, strict=True))

    if direction == "forward":
        return forward
    y, *kept = forward(first).values()
    grad = random(y.shape, p.out_dtype)
    saved = (y if p.power == 2 else None, *kept)
    training = direction == "training"
    needs = (True, training, training and p.bias, training and p.tensor_b)

    def backward(chosen: Choice) -> dict[str, Tensor]:
        grads = kernels(chosen.backend).backward(p, chosen, grad, x, weight, b, saved, not training, needs)
        return {name: g for name, g in zip(("dx", "dw", "dbias", "db"), grads, strict=True) if g is not None}

    return backward


def _refusal(
    p: Problem, trial: Trial, call: Callable[[Choice], dict[str, Tensor]], truth: dict[str, Tensor]
) -> str | None:
    try:
        return _disagreement(p, call(_on_trial(trial)), truth)
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
