"""Notes the calls of a run on a GPU, and times each way to serve one; nothing else in the package times kernels."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import astuple
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core import choice, env, tuned
from ..core.candidate import DIRECTIONS, Candidate, Tile
from ..core.choice import Choice
from ..core.op import Op
from .triton import INSTALLED

__all__ = [
    "Noted", "Trial", "compile_all", "compile_kernels", "compiled", "keep", "kernels", "listed", "measure",
    "measure_beside", "noting", "served",
]  # fmt: skip

ROUNDS = 12
ROUNDS_INTERPRETED = 2  # in the interpreter times mean nothing
FLUSHED = 256 << 20  # bytes written between two calls, more than any second-level cache holds
LEAD = 4  # such writes before a call, during which the host starts its kernels, so that the device never waits
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}
TOLERANCE_TF32 = 4e-3
"""The relative difference in the 2-norm, for b up to 2, that rounding may cause between two ways to serve a call."""
MEASURE = "vendor"
"""The candidate with whose results all others are compared; of an op that has none of this name, the first one is."""


class Trial(NamedTuple):
    """One way to serve one direction of a call."""

    candidate: Candidate
    tile: Tile | None
    seconds: float | None = None
    refusal: str | None = None
    """The reason why it must not be chosen; such a trial has no time."""


class Noted(NamedTuple):
    """One direction of a call, with its op and the backends that may serve it."""

    op: Op
    backend: str
    call: Any
    direction: str

    @property
    def device(self) -> torch.device:
        """Where its tensors lie."""
        where = self.call.device
        return torch.device(where) if self.call.index is None else torch.device(where, self.call.index)

    def of(self, direction: str) -> Noted:
        """The given direction of the call whose forward this is."""
        call = self.call if direction == "forward" else self.call.of_backward(self.call.needs(direction))
        return self._replace(call=call, direction=direction)


def listed(what: Noted) -> list[Trial]:
    """Every way to serve it, as trials without times."""
    return [Trial(*way) for way in choice.ways(*what)]


def compiled(calls: Iterable[Noted]) -> list[tuple[Noted, Candidate]]:
    """The candidates that have to compile these calls before they serve them."""
    return [
        (what, candidate) for what in calls for candidate in dict.fromkeys(t.candidate for t in listed(what))
        if candidate.compiles
    ]  # fmt: skip


def compile_all(wanted: list[tuple[Noted, Candidate]], device: torch.device, done: Callable[[], None]) -> None:
    """Lets the candidates compile, in a thread for each processor; ``done`` is called after each."""
    _in_threads([partial(c.refusal, what.call, what.direction, True) for what, c in wanted], device, done)


@torch.no_grad()
def kernels(calls: Iterable[Noted]) -> list:
    """Every distinct kernel of Triton that the ways to serve these calls start, to be compiled; none is started.

    A way that fails is left out: its reason is told when it is measured.
    """
    if env.INTERPRETED or not INSTALLED:
        return []
    from . import aot, launches  # imported here because they import Triton

    found: dict = {}
    for what in calls:
        for candidate, tile, *_ in listed(what):
            with suppress(Exception):
                if candidate.backend == "triton":
                    started = launches.launches(what.op, what.call, what.direction, candidate.name, tile)
                    found |= dict.fromkeys(aot.specialise(each, what.call.arch) for each in started)
    return list(found)


def compile_kernels(found: list, device: torch.device, done: Callable[[], None]) -> None:
    """Compiles what :func:`kernels` found, in a thread for each processor; ``done`` is called after each.

    Triton keeps them for the launches that come, in this process and on disk. One that fails to compile fails again,
    and is refused, when it is measured.
    """

    def attempt(kernel) -> None:
        from .aot import compile_here

        with suppress(Exception):
            compile_here(kernel)

    _in_threads([partial(attempt, kernel) for kernel in found], device, done)


def _in_threads(tasks: list[Callable[[], object]], device: torch.device, done: Callable[[], None]) -> None:
    def carry_out(task: Callable[[], object]) -> None:
        with _on(device):
            task()

    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        for _ in pool.map(carry_out, tasks):
            done()
    finally:
        pool.shutdown(cancel_futures=True)


def _on(device: torch.device) -> AbstractContextManager:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def served(what: Noted) -> tuple[Choice, ...]:
    """The choice for each direction of a call whose forward was noted, in the order of ``DIRECTIONS``."""
    return tuple(choice.choose(*what.of(direction)) for direction in DIRECTIONS)


def keep(what: Noted, trials: list[Trial]) -> None:
    """Stores the fastest way of each backend, if any has a time, so that later calls are served that way."""
    best: dict[str, dict] = {}
    for t in sorted((t for t in trials if t.seconds is not None), key=lambda t: t.seconds or 0):
        first: dict[str, Any] = {"candidate": t.candidate.name, "tile": t.tile and list(astuple(t.tile)), "seconds": {}}
        best.setdefault(t.candidate.backend, first)["seconds"].setdefault(t.candidate.name, t.seconds)
    if best:
        tuned.store({tuned.key(what.call, what.direction): best}, what.call.index)
        for chosen in (choice.choose, choice.taking_map):
            chosen.cache_clear()


@contextmanager
def noting() -> Iterator[dict[Noted, None]]:
    """A context that notes the distinct calls in it for which there is a choice of candidates, in their order."""
    usual = choice.choose
    noted: dict[Noted, None] = {}

    def note(op: Op, backend: str, call, direction: str) -> Choice:
        if op.has_choice(backend):
            noted[Noted(op, backend, call, direction)] = None
        return usual(op, backend, call, direction)

    with choice.choosing(note):
        yield noted


def measure(what: Noted, device: torch.device, done: Callable[[], None]) -> list[Trial]:
    """Times every way to serve one direction, on random tensors; each trial has its time or its refusal.

    A way is refused if it fails, or if its result differs from the vendor's by more than rounding may cause. ``done``
    is called after the first call of each, which compiles its kernels.
    """
    return measure_beside(what, device, done, [])[0]


@torch.no_grad()
def measure_beside(
    what: Noted, device: torch.device, done: Callable[[], None], others: list[Callable[[], object]]
) -> tuple[list[Trial], list[float]]:
    """As :func:`measure`, and the times of ``others``, which are called in turn with what is measured."""
    with _on(device), torch.autocast(device.type, enabled=False):
        trials = listed(what)
        try:
            first = _first(what)
            run = _runner(what, first, device)
            truth = run(first, None)
        except Exception as error:  # the vendor's libraries can raise anything, usually that memory is exhausted
            refusal = f"the vendor, with which it must be compared, fails: {_line(error)}"
            return [trial._replace(refusal=refusal) for trial in trials], []
        for i, trial in enumerate(trials):
            trials[i] = trial._replace(refusal=_refusal(what, trial, run, truth))
            done()
        del truth
        right = [i for i, trial in enumerate(trials) if trial.refusal is None]
        ways = [partial(run, trials[i].candidate, trials[i].tile) for i in right]
        times = _medians([*others, *ways], device)
    for i, seconds in zip(right, times[len(others) :], strict=True):
        trials[i] = trials[i]._replace(seconds=seconds)
    return trials, times[: len(others)]


def _first(what: Noted) -> Candidate:
    candidates = what.op.candidates_of(what.backend)
    return next((c for c in candidates if c.name == MEASURE), candidates[0])


Run = Callable[[Candidate, Tile | None], dict[str, Tensor]]


def _runner(what: Noted, first: Candidate, device: torch.device) -> Run:
    """``run(candidate, tile)``, which computes one direction on random tensors and returns the results by name.

    For a backward, the candidate ``first`` serves the forward before it.
    """
    op, _, call, direction = what
    inputs, grad = call.example(device)

    def forward(candidate: Candidate, tile: Tile | None) -> dict[str, Tensor]:
        assert candidate.forward is not None
        return dict(zip(op.outputs._fields, candidate.forward(inputs, call, tile), strict=True))

    if direction == "forward":
        return forward
    result, *others = forward(first, None).values()
    saved = op.outputs._make((result if call.spec.saves_output else None, *others))
    frozen, needs = direction == "explanation", call.needs(direction)

    def backward(candidate: Candidate, tile: Tile | None) -> dict[str, Tensor]:
        grads = candidate.backward(grad, inputs, saved, call, tile, frozen, needs)
        return {f"d{name}": g for name, g in zip(op.inputs._fields, grads, strict=True) if g is not None}

    return backward


def _refusal(what: Noted, trial: Trial, run: Run, truth: dict[str, Tensor]) -> str | None:
    try:
        if refused := trial.candidate.refusal(what.call, what.direction, True):
            return refused
        return _disagreement(what.call, run(trial.candidate, trial.tile), truth)
    except Exception as error:  # a compiler or a driver can raise anything
        return _line(error)


def _disagreement(call, results: dict[str, Tensor], truth: dict[str, Tensor]) -> str | None:
    tolerance = TOLERANCE_TF32 if call.tf32 and call.dtype == torch.float32 else TOLERANCE[call.dtype]
    tolerance *= call.amplification
    for name, theirs in truth.items():
        # winner, which is not floating-point, is not compared: near a tie both answers are right
        if not theirs.is_floating_point() or theirs.numel() == 0 or call.is_rounding(name):
            continue
        wide = torch.promote_types(theirs.dtype, torch.float32)
        theirs = theirs.to(wide)
        error = ((results[name].to(wide) - theirs).norm() / theirs.norm()).item()
        if not error <= tolerance:
            return f"its {name} differs from the vendor's by {error:.1e}, and {tolerance:.1e} is allowed"
    return None


def _line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


def _medians(calls: list[Callable[[], object]], device: torch.device) -> list[float]:
    """The median seconds of each, in rounds of one call of each."""
    on_cuda = device.type == "cuda"
    flushed = torch.empty(FLUSHED, dtype=torch.int8, device=device) if on_cuda else None
    rounds = [[_seconds(call, flushed) for call in calls] for _ in range(ROUNDS if on_cuda else ROUNDS_INTERPRETED)]
    return [statistics.median(samples) for samples in zip(*rounds, strict=True)]


def _seconds(call: Callable[[], object], flushed: Tensor | None) -> float:
    if flushed is None:
        began = time.perf_counter()
        call()
        return time.perf_counter() - began
    for _ in range(LEAD):
        flushed.zero_()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3
