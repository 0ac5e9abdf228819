"""Measures which kernels of the Triton backend serve a model's calls best on this GPU; nothing else ever does."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from . import compat
from .backends.triton import INTERPRETED, choices
from .backends.triton.plan import CANDIDATES, DIRECTIONS, Tile
from .backends.triton.problem import Problem
from .integration import accelerate, arguments, report, run_once
from .text import aligned

__all__ = ["Row", "Tuning", "main", "tune"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Row:
    """One direction of one call: how long each way to serve it took."""

    call: str
    direction: str
    trials: tuple
    """:class:`bcos_kernels.backends.triton.trials.Trial`, each with its seconds or the reason of its refusal."""
    predicted: tuple
    """Candidate and tile that the byte model would have chosen."""

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
        head = ("call", "direction", *(f"{name}, µs" for name in CANDIDATES), "winner", "byte model", "gain")
        lines = [aligned([head, *map(_cells, self.rows)])]
        for row in self.rows:
            refused = (f"{_way(*t[:2])}: {t.refusal}" for t in row.trials if t.refusal is not None)
            lines += [f"refused, {row.direction} of {row.call}: {refusal}" for refusal in refused]
        measured = sum(row.winner is not None for row in self.rows)
        state = "interrupted: " if len(self.rows) < self.calls else ""
        lines.append(f"{state}{measured} of {self.calls} measured on {self.device}, stored in {self.path}")
        return "\n".join(lines)


def _cells(row: Row) -> tuple[str, ...]:
    best = {}
    for t in row.trials:
        if t.seconds is not None:
            best[t.candidate] = min(t.seconds, best.get(t.candidate, t.seconds))
    times = (f"{1e6 * best[name]:.1f}" if name in best else "–" for name in CANDIDATES)
    winner = _way(*row.winner[:2]) if row.winner else "–"
    return row.call, row.direction, *times, winner, _way(*row.predicted), f"{row.gain:.2f}" if row.gain else "–"


def _way(candidate: str, tile) -> str:
    return f"{candidate} {tile.m}×{tile.n}×{tile.k}" if tile else candidate


def tune(
    model: nn.Module, example_input: torch.Tensor | tuple, *, directions: tuple[str, ...] = DIRECTIONS, progress=True
) -> Tuning:
    """Measures, for every distinct call that the Triton backend serves in ``model``, which kernels are fastest.

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
        ValueError: an unknown direction, no call that the Triton backend serves, or an unreadable file of choices.
        RuntimeError: there is no GPU (and no interpreter), or Triton is not installed.
        OSError: the file of choices cannot be written.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model={model!r}: a torch.nn.Module is needed, not {type(model).__name__}")
    args = arguments(example_input)
    if not (isinstance(directions, (tuple, list)) and directions and all(d in DIRECTIONS for d in directions)):
        raise ValueError(f"directions={directions!r}: allowed are tuples of {', '.join(map(repr, DIRECTIONS))}")
    _check_device()
    from .backends.triton import trials  # imports Triton

    choices.store({})  # what cannot be stored need not be measured
    problems = _problems(model, args, directions)
    device = _device(model, args)
    steps = sum(len(trials.listed(*problem)) for problem in problems)
    rows = []
    with _progress(steps, progress) as advance:
        try:
            for p, direction in problems:
                call = _words(p)
                measured = trials.measure(p, direction, device, partial(advance, f"{direction} of {call}"))
                trials.keep(p, direction, measured)
                rows.append(Row(call, direction, tuple(measured), trials.predicted(p, direction)[:2]))
        except KeyboardInterrupt:
            pass
    return Tuning(tuple(rows), len(problems), choices.device(), choices.PATH)


def _check_device() -> None:
    if not torch.cuda.is_available() and not INTERPRETED:
        raise RuntimeError("tune measures on the GPU that is to run the model, and torch sees none")
    if find_spec("triton") is None:
        raise RuntimeError("tune measures Triton kernels, and the package triton is not installed")


def _device(model: nn.Module, args: tuple) -> torch.device:
    tensors = (*model.parameters(), *args)
    return next((t.device for t in tensors if isinstance(t, torch.Tensor) and t.is_cuda), torch.device("cpu"))


def _problems(model: nn.Module, args: tuple, directions: tuple[str, ...]) -> list[tuple[Problem, str]]:
    """The distinct problems of the directions of every call in a run of the model; their forwards say all of them."""
    from .backends.triton import trials

    with trials.noting() as noted, torch.no_grad():
        run_once(model, args)
    if not noted:
        raise ValueError(_unserved(model))
    return list(dict.fromkeys((trials.of(p, direction), direction) for p, _ in noted for direction in directions))


def _unserved(model: nn.Module) -> str:
    rows = report(model).rows
    if not rows:
        return "model has no B-cos layers"
    counts = Counter(f"served by {row.backend}" if row.backend else row.reason for row in rows)
    listed = "; ".join(f"{count} {text}" for text, count in counts.items())
    return f"no call of the model is served by Triton, which needs an accelerated model on a GPU: B-cos layers {listed}"


def _words(p: Problem) -> str:
    """A call for a table."""
    sizes = "×".join(map(str, p.x_shape[:2] if p.is_linear else p.x_shape))
    window = "" if p.is_linear else " k" + "×".join(map(str, p.weight_shape[2:]))
    facts = {
        "stride": (p.stride, (1, 1)), "padding": (p.padding, (0, 0)), "dilation": (p.dilation, (1, 1)),
        "groups": (p.groups, 1), "max_out": (p.max_out, 1), "b": (p.exponent or "learned", 2.0),
    }  # fmt: skip
    unusual = "".join(f" {name}={_short(value)}" for name, (value, usual) in facts.items() if value != usual)
    options = (" bias" if p.bias else "") + ("" if p.unit else " raw")
    dtype = "tf32" if p.precision == "tf32" else str(p.dtype).removeprefix("torch.")
    return f"{'linear' if p.is_linear else 'conv2d'} {sizes} -> {p.filters}{window}{unusual}{options} {dtype}"


def _short(value) -> str:
    return str(value[0]) if isinstance(value, tuple) and len(set(value)) == 1 else str(value).replace(" ", "")


@contextmanager
def _progress(steps: int, show: bool) -> Iterator[Callable[[str], None]]:
    """Yields what is called after each of ``steps`` with what was done."""
    if not show:
        yield lambda name: None
        return
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        count = iter(range(1, steps + 1))
        yield lambda name: print(f"tune: {next(count)} of {steps}: {name}", file=sys.stderr)
        return
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("tune", total=steps)
        yield lambda name: bar.update(task, advance=1, description=name)


def main(argv: list[str]) -> int:
    """Tunes a model that the command line names, and prints the table; or shows or deletes what is stored."""
    parser = _parser()
    options = parser.parse_args(argv)
    if not (options.list or options.clear) and (options.model is None or options.input is None):
        parser.error("--model and --input are needed, or --list, or --clear")
    try:
        if options.list:
            print(_stored())
        elif options.clear:
            print(f"{choices.delete()} choices of {choices.device()} deleted from {choices.PATH}")
        else:
            return _tune(options)
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        print(f"bcos_kernels tune: {error}", file=sys.stderr)
        return 2
    return 0


def _tune(options: argparse.Namespace) -> int:
    factory = _factory(options.model)
    _check_device()
    device, dtype = "cuda" if torch.cuda.is_available() else "cpu", DTYPES[options.dtype]
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    model = factory(**options.factory_args)
    if not isinstance(model, nn.Module):
        raise TypeError(f"--model {options.model} gave {type(model).__name__}, not a torch.nn.Module")
    model = accelerate(model).eval().to(device, memory_format=layout)
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
    parser.add_argument("--factory-args", metavar="JSON", type=_object, default={}, help="its arguments by name")
    parser.add_argument("--input", metavar="N,C,H,W", type=_shape, help="shape of the model's input")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="of the model and its input (default fp32)")
    parser.add_argument("--amp", action="store_true", help="autocast to --dtype, with the model in fp32")
    parser.add_argument("--channels-last", action=argparse.BooleanOptionalAction, default=True, help="memory format")
    parser.add_argument("--directions", nargs="+", choices=DIRECTIONS, default=DIRECTIONS, help="default: all")
    parser.add_argument("--list", action="store_true", help="shows what is stored, and where")
    parser.add_argument("--clear", action="store_true", help="deletes what is stored for this device")
    return parser


def _shape(text: str) -> tuple[int, ...]:
    shape = tuple(int(size) if size.isdecimal() else 0 for size in text.split(","))
    if 0 in shape:
        raise argparse.ArgumentTypeError(f"{text!r}: positive sizes are needed, as in 256,6,224,224")
    return shape


def _object(text: str) -> dict:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"""{text!r}: a JSON object is needed, as in '{{"num_classes": 10}}'""")
    return value


def _factory(name: str) -> Callable:
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise ValueError(f"--model {name}: pkg.module:factory is needed")
    found = _imported(module)
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ValueError(f"--model {name}: {module} has no {attribute}")
        found = getattr(found, part)
    if not callable(found):
        raise TypeError(f"--model {name}: {attribute} is {type(found).__name__}, not callable")
    return found


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    compat.import_reference()
    return importlib.import_module(name)


def _stored() -> str:
    """The file of choices as a table for each device."""
    parts = [f"{choices.PATH}" if choices.PATH.exists() else f"{choices.PATH}: not there, nothing was tuned"]
    for device, known in choices.read().items():
        rows = [("winner", *(f"{name}, µs" for name in CANDIDATES), "call")]
        for call, choice in known.items():
            times = (choice["seconds"].get(name) for name in CANDIDATES)
            winner = _way(choice["candidate"], choice["tile"] and Tile(*choice["tile"]))
            rows.append((winner, *("–" if t is None else f"{1e6 * t:.1f}" for t in times), call))
        parts.append(f"{device}: {len(known)} choices\n{aligned(rows)}")
    return "\n\n".join(parts)
