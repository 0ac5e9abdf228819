"""Measures which GPU kernels serve a model's calls best on this device; only :func:`tune` starts such measurements."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .core import env
from .core.candidate import DIRECTIONS, Candidate, Tile
from .core.checks import check_model
from .dynamic_alignment import DYNAMIC_ALIGNMENT
from .norm import NORM
from .text import aligned, progress
from .transform import TRANSFORM

__all__ = ["Measurement", "Tuning", "check_device", "tune", "words"]

_progress = partial(progress, "tune")


@dataclass(frozen=True)
class Measurement:
    """The times of every way to serve one direction of one call."""

    call: str
    direction: str
    trials: tuple
    """A :class:`bcos_kernels.gpu.timing.Trial` for each way, with its seconds or the reason of its refusal."""
    predicted: tuple[Candidate, Tile | None]
    """The candidate and the tile that the cost model would have chosen."""

    @property
    def winner(self):
        """The fastest trial; None if all were refused."""
        return min((t for t in self.trials if t.seconds is not None), key=lambda t: t.seconds, default=None)

    @property
    def gain(self) -> float | None:
        """The predicted choice's time ÷ the winner's time; None if the predicted choice was refused."""
        seconds = next((t.seconds for t in self.trials if t[:2] == self.predicted), None)
        return seconds / self.winner.seconds if seconds is not None else None


@dataclass(frozen=True)
class Tuning:
    """What :func:`tune` measured; ``str(tuning)`` is a table."""

    rows: tuple[Measurement, ...]
    calls: int
    """The number of directions of calls to measure; after an interrupt there are fewer rows."""
    device: str
    path: Path
    """The file in which the winners were stored."""

    def __str__(self) -> str:
        known = (*TRANSFORM.candidates, *NORM.candidates, *DYNAMIC_ALIGNMENT.candidates)
        columns = [c for c in known if any(t.candidate is c for row in self.rows for t in row.trials)]
        head = ("call", "direction", *(f"{c}, µs" for c in columns), "winner", "cost model", "gain")
        lines = [aligned([head, *(_cells(row, columns) for row in self.rows)])]
        for row in self.rows:
            refused = (f"{words(*t[:2])}: {t.refusal}" for t in row.trials if t.refusal is not None)
            lines += [f"refused, {row.direction} of {row.call}: {refusal}" for refusal in refused]
        measured = sum(row.winner is not None for row in self.rows)
        state = "interrupted: " if len(self.rows) < self.calls else ""
        lines.append(f"{state}{measured} of {self.calls} measured on {self.device}, stored in {self.path}")
        return "\n".join(lines)


def _cells(row: Measurement, columns: list[Candidate]) -> tuple[str, ...]:
    best: dict[Candidate, float] = {}
    for t in row.trials:
        if t.seconds is not None:
            best[t.candidate] = min(t.seconds, best.get(t.candidate, t.seconds))
    times = (f"{1e6 * best[c]:.1f}" if c in best else "–" for c in columns)
    winner = words(*row.winner[:2]) if row.winner else "–"
    return row.call, row.direction, *times, winner, words(*row.predicted), f"{row.gain:.2f}" if row.gain else "–"


def words(candidate: Candidate | str, tile: Tile | None) -> str:
    return f"{candidate} {tile.m}×{tile.n}×{tile.k}" if tile else str(candidate)


def tune(
    model: nn.Module, example_input: torch.Tensor | tuple, *, directions: tuple[str, ...] = DIRECTIONS, progress=True
) -> Tuning:
    """Measures, for every distinct call that GPU kernels serve in ``model``, which kernels are fastest.

    The model runs once on the example, in its present mode and under the present autocast, without gradients. Then
    every way to serve each direction of each distinct call is timed on random tensors, with torch's present settings
    (tf32, ``cudnn.benchmark``). The graphs that cuDNN compiles, in a second or more each, and the kernels that Triton
    does are compiled first, in a thread for each processor. The plans of the graphs are stored, as are the winners for
    this device and these versions of torch and Triton. Both serve all later calls of the same kind, in this process
    and in later ones. Parameters, gradients, buffers and the random number generators stay as they are. An interrupt
    (Ctrl-C) keeps what was measured so far.

    Args:
        model: an accelerated model, on a GPU or on several, each of which then has its own calls measured.
        example_input: a tensor that the model takes, such as images ``[N, C, H, W]``, or a tuple of the model's
            arguments, on the model's device. Kernels are chosen for its shape, dtype and memory format.
        directions: a tuple of ``"forward"``, ``"explanation"`` (the gradient of the input alone, with the scale frozen)
            and ``"training"`` (all gradients); by default all three.
        progress: whether to show the progress and the remaining time on stderr, with a bar if ``rich`` is installed.

    Raises:
        TypeError: ``model`` is not a module, or ``example_input`` is neither a tensor nor a tuple with a tensor in it.
        ValueError: a direction is unknown, GPU kernels serve no call, or the file of choices is unreadable.
        RuntimeError: there is no GPU, and Triton's interpreter is off.
        OSError: the file of choices cannot be written.
    """
    check_model(model)
    from . import adopt  # imported here so that ``import bcos_kernels`` stays fast

    args = adopt.arguments(example_input)
    if not (isinstance(directions, (tuple, list)) and directions and all(d in DIRECTIONS for d in directions)):
        raise ValueError(f"directions={directions!r}: allowed are tuples of {', '.join(map(repr, DIRECTIONS))}")
    check_device()
    from .core import choice, tuned
    from .gpu import timing

    tuned.store({})  # fails now rather than after measuring if the file cannot be written
    calls = _calls(model, args, directions)
    of_device: dict[torch.device, list] = {}
    for what in calls:
        of_device.setdefault(what.device, []).append(what)
    graphs = {device: timing.compiled(here) for device, here in of_device.items()}
    kernels = {device: timing.kernels(here) for device, here in of_device.items()}
    steps = sum(len(timing.listed(what)) for what in calls) + sum(len(graphs[d]) + len(kernels[d]) for d in of_device)
    rows = []
    with _progress(steps, progress) as advance:
        try:
            for device, here in of_device.items():
                timing.compile_all(graphs[device], device, partial(advance, "graphs by cuDNN"))
                timing.compile_kernels(kernels[device], device, partial(advance, "kernels by Triton"))
                for what in here:
                    label = what.call.label
                    measured = timing.measure(what, device, partial(advance, f"{what.direction} of {label}"))
                    timing.keep(what, measured)
                    guess = choice.predicted(*what)
                    rows.append(Measurement(label, what.direction, tuple(measured), (guess.candidate, guess.tile)))
        except KeyboardInterrupt:
            pass
    names = dict.fromkeys(tuned.device(device.index) for device in of_device)
    return Tuning(tuple(rows), len(calls), " and ".join(names), tuned.PATH)


def check_device() -> None:
    if not torch.cuda.is_available() and not env.INTERPRETED:
        raise RuntimeError("tune measures on the GPU that will run the model, and torch finds no GPU")


def _calls(model: nn.Module, args: tuple, directions: tuple[str, ...]) -> list:
    """The distinct calls of a run of the model, in each of the directions; they follow from the noted forwards.

    A call that several GPUs of one name serve is measured on the first of them.
    """
    from . import adopt
    from .core import tuned
    from .gpu import timing

    with timing.noting() as noted, torch.no_grad():
        adopt.run_once(model, args)
    if not noted:
        raise ValueError(_unserved(model))
    found: dict[tuple, Any] = {}
    for what in (what.of(direction) for what in noted for direction in directions):
        stored_under = tuned.device(what.call.index), tuned.key(what.call, what.direction)
        found.setdefault((*stored_under, what.op, what.backend, what.call.spec), what)
    return list(found.values())


def _unserved(model: nn.Module) -> str:
    from . import adopt

    rows = adopt.report(model).layers
    if not rows:
        return "model has no B-cos layers"
    counts = Counter(f"served by {row.backend}" if row.backend else row.reason for row in rows)
    listed = "; ".join(f"{count} {text}" for text, count in counts.items())
    return f"no call is served by GPU kernels, which need an accelerated model on a GPU: B-cos layers {listed}"
