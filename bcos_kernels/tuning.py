"""Measures which GPU kernels serve a model's calls best on this device; nothing else ever does."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from .commandline import DTYPES, factory, json_object, progress, shape
from .core import env
from .core.candidate import DIRECTIONS, Candidate, Tile
from .text import aligned
from .transform import TRANSFORM

__all__ = ["Row", "Tuning", "main", "tune"]

_progress = partial(progress, "tune")


@dataclass(frozen=True)
class Row:
    """One direction of one call: how long each way to serve it took."""

    call: str
    direction: str
    trials: tuple
    """:class:`bcos_kernels.gpu.timing.Trial`, each with its seconds or the reason of its refusal."""
    predicted: tuple[Candidate, Tile | None]
    """The candidate and the tile that the cost model would have chosen."""

    @property
    def winner(self):
        """The fastest trial; None where all were refused."""
        return min((t for t in self.trials if t.seconds is not None), key=lambda t: t.seconds, default=None)

    @property
    def gain(self) -> float | None:
        """The predicted choice's time ÷ the winner's; None where one of them has no time."""
        seconds = next((t.seconds for t in self.trials if t[:2] == self.predicted), None)
        return seconds / self.winner.seconds if seconds is not None else None


@dataclass(frozen=True)
class Tuning:
    """What :func:`tune` measured; ``str()`` is a table."""

    rows: tuple[Row, ...]
    calls: int
    """Directions of calls that there were to measure; more than rows after an interrupt."""
    device: str
    path: Path
    """The file that the winners were stored in."""

    def __str__(self) -> str:
        columns = [c for c in TRANSFORM.candidates if any(t.candidate is c for row in self.rows for t in row.trials)]
        head = ("call", "direction", *(f"{c}, µs" for c in columns), "winner", "cost model", "gain")
        lines = [aligned([head, *(_cells(row, columns) for row in self.rows)])]
        for row in self.rows:
            refused = (f"{_words(*t[:2])}: {t.refusal}" for t in row.trials if t.refusal is not None)
            lines += [f"refused, {row.direction} of {row.call}: {refusal}" for refusal in refused]
        measured = sum(row.winner is not None for row in self.rows)
        state = "interrupted: " if len(self.rows) < self.calls else ""
        lines.append(f"{state}{measured} of {self.calls} measured on {self.device}, stored in {self.path}")
        return "\n".join(lines)


def _cells(row: Row, columns: list[Candidate]) -> tuple[str, ...]:
    best: dict[Candidate, float] = {}
    for t in row.trials:
        if t.seconds is not None:
            best[t.candidate] = min(t.seconds, best.get(t.candidate, t.seconds))
    times = (f"{1e6 * best[c]:.1f}" if c in best else "–" for c in columns)
    winner = _words(*row.winner[:2]) if row.winner else "–"
    return row.call, row.direction, *times, winner, _words(*row.predicted), f"{row.gain:.2f}" if row.gain else "–"


def _words(candidate: Candidate | str, tile: Tile | None) -> str:
    return f"{candidate} {tile.m}×{tile.n}×{tile.k}" if tile else str(candidate)


def tune(
    model: nn.Module, example_input: torch.Tensor | tuple, *, directions: tuple[str, ...] = DIRECTIONS, progress=True
) -> Tuning:
    """Measures, for every distinct call that GPU kernels serve in ``model``, which kernels are fastest.

    The model runs once on the example, in its present mode and under the present autocast, without gradients; every
    direction of each distinct call is then timed on random tensors in every way that there is, with torch's present
    settings (tf32, ``cudnn.benchmark``). Winners are stored for this device and these versions, and serve every later
    call like it, in this process and in later ones. Parameters, gradients, buffers and random numbers stay as they
    are. An interrupt (Ctrl-C) keeps what was measured so far.

    Args:
        example_input: a tensor as the model takes it, or a tuple of the model's arguments, on the model's device.
        directions: of ``"forward"``, ``"explanation"`` (the input's gradient with the scale frozen) and
            ``"training"`` (all gradients).
        progress: shows the progress and the remaining time on stderr (a bar if ``rich`` is installed).

    Raises:
        TypeError: ``model`` is no module, or ``example_input`` neither a tensor nor a tuple with one.
        ValueError: an unknown direction, no call that GPU kernels serve, or an unreadable file of choices.
        RuntimeError: there is no GPU (and no interpreter).
        OSError: the file of choices cannot be written.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model={model!r}: a torch.nn.Module is needed, not {type(model).__name__}")
    from . import adopt  # not with the package: what nobody calls costs no time at import

    args = adopt.arguments(example_input)
    if not (isinstance(directions, (tuple, list)) and directions and all(d in DIRECTIONS for d in directions)):
        raise ValueError(f"directions={directions!r}: allowed are tuples of {', '.join(map(repr, DIRECTIONS))}")
    _check_device()
    from .core import choice, tuned  # not with the package: most never tune
    from .gpu import timing

    tuned.store({})  # what cannot be stored need not be measured
    calls = _calls(model, args, directions)
    device = _device(model, args)
    steps = sum(len(timing.listed(what)) for what in calls)
    rows = []
    with _progress(steps, progress) as advance:
        try:
            for what in calls:
                call = _described(what.call)
                measured = timing.measure(what, device, partial(advance, f"{what.direction} of {call}"))
                timing.keep(what, measured)
                guess = choice.predicted(*what)
                rows.append(Row(call, what.direction, tuple(measured), (guess.candidate, guess.tile)))
        except KeyboardInterrupt:
            pass
    return Tuning(tuple(rows), len(calls), tuned.device(), tuned.PATH)


def _check_device() -> None:
    if not torch.cuda.is_available() and not env.INTERPRETED:
        raise RuntimeError("tune measures on the GPU that is to run the model, and torch sees none")


def _device(model: nn.Module, args: tuple) -> torch.device:
    tensors = (*model.parameters(), *args)
    return next((t.device for t in tensors if isinstance(t, torch.Tensor) and t.is_cuda), torch.device("cpu"))


def _calls(model: nn.Module, args: tuple, directions: tuple[str, ...]) -> list:
    """The distinct calls of the directions of every call in a run of the model; their forwards say all of them."""
    from . import adopt
    from .gpu import timing

    with timing.noting() as noted, torch.no_grad():
        adopt.run_once(model, args)
    if not noted:
        raise ValueError(_unserved(model))
    return list(dict.fromkeys(what.of(direction) for what in noted for direction in directions))


def _unserved(model: nn.Module) -> str:
    from . import adopt

    rows = adopt.report(model).rows
    if not rows:
        return "model has no B-cos layers"
    counts = Counter(f"served by {row.backend}" if row.backend else row.reason for row in rows)
    listed = "; ".join(f"{count} {text}" for text, count in counts.items())
    return f"no call is served by GPU kernels, which need an accelerated model on a GPU: B-cos layers {listed}"


def _described(call) -> str:
    """A call for a table."""
    sizes = "×".join(map(str, call.x_shape))
    window = "" if call.is_linear else " k" + "×".join(map(str, call.kernel))
    facts = {
        "stride": (call.stride, (1, 1)), "padding": (call.padding, (0, 0)), "dilation": (call.dilation, (1, 1)),
        "groups": (call.groups, 1), "max_out": (call.max_out, 1), "b": (call.spec.b or "learned", 2.0),
    }  # fmt: skip
    unusual = "".join(f" {name}={_short(value)}" for name, (value, usual) in facts.items() if value != usual)
    options = (" bias" if call.bias else "") + ("" if call.unit else " raw")
    dtype = "tf32" if call.precision == "tf32" else str(call.dtype).removeprefix("torch.")
    return f"{'linear' if call.is_linear else 'conv2d'} {sizes} -> {call.filters}{window}{unusual}{options} {dtype}"


def _short(value) -> str:
    return str(value[0]) if isinstance(value, tuple) and len(set(value)) == 1 else str(value).replace(" ", "")


def main(argv: list[str]) -> int:
    """Tunes a model that the command line names, and prints the table; or shows or deletes what is stored."""
    parser = _parser()
    options = parser.parse_args(argv)
    if not (options.list or options.clear) and (options.model is None or options.input is None):
        parser.error("--model and --input are needed, or --list, or --clear")
    from .core import tuned

    try:
        if options.list:
            print(_stored(tuned))
        elif options.clear:
            print(f"{tuned.delete()} choices of {tuned.device()} deleted from {tuned.PATH}")
        else:
            return _tune(options)
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        print(f"bcos_kernels tune: {error}", file=sys.stderr)
        return 2
    return 0


def _tune(options: argparse.Namespace) -> int:
    from . import adopt

    build = factory("--model", options.model)
    _check_device()
    device, dtype = "cuda" if torch.cuda.is_available() else "cpu", DTYPES[options.dtype]
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    model = build(**options.factory_args)
    if not isinstance(model, nn.Module):
        raise TypeError(f"--model {options.model} gave {type(model).__name__}, not a torch.nn.Module")
    model = adopt.accelerate(model).eval().to(device, memory_format=layout)  # type: ignore[call-overload]
    images = torch.randn(options.input, device=device)
    images = images.contiguous(memory_format=layout) if images.dim() == 4 else images
    if not options.amp:
        model, images = model.to(dtype), images.to(dtype)
    with torch.autocast(device, dtype) if options.amp else nullcontext():
        tuning = tune(model, images, directions=options.directions)
    print(tuning)
    return 0 if len(tuning.rows) == tuning.calls else 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bcos_kernels tune", description=__doc__)
    parser.add_argument("--model", metavar="PKG.MODULE:FACTORY", help="what builds the model when called")
    parser.add_argument("--factory-args", metavar="JSON", type=json_object, default={}, help="its arguments by name")
    parser.add_argument("--input", metavar="N,C,H,W", type=shape, help="shape of the model's input")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="of the model and its input (default fp32)")
    parser.add_argument("--amp", action="store_true", help="autocast to --dtype, with the model in fp32")
    parser.add_argument("--channels-last", action=argparse.BooleanOptionalAction, default=True, help="memory format")
    parser.add_argument("--directions", nargs="+", choices=DIRECTIONS, default=DIRECTIONS, help="default: all")
    parser.add_argument("--list", action="store_true", help="shows what is stored, and where")
    parser.add_argument("--clear", action="store_true", help="deletes what is stored for this device")
    return parser


def _stored(tuned) -> str:
    """The file of choices as a table for each device."""
    parts = [f"{tuned.PATH}" if tuned.PATH.exists() else f"{tuned.PATH}: not there, nothing was tuned"]
    for device, known in tuned.read().items():
        columns = [f"{backend} {name}" for backend, name in dict.fromkeys(
            (backend, name) for stored in known.values() for backend, best in stored.items() for name in best["seconds"]
        )]  # fmt: skip
        rows = [("fastest", *(f"{column}, µs" for column in columns), "call")]
        for call, stored in known.items():
            times = {f"{backend} {c}": t for backend, best in stored.items() for c, t in best["seconds"].items()}
            backend, best = min(stored.items(), key=lambda item: item[1]["seconds"][item[1]["candidate"]])
            cells = (f"{1e6 * times[column]:.1f}" if column in times else "–" for column in columns)
            rows.append((_words(f"{backend} {best['candidate']}", tuned.tile(best)), *cells, call))
        parts.append(f"{device}: {len(known)} choices\n{aligned(rows)}")
    return "\n\n".join(parts)
