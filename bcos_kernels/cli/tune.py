"""``python -m bcos_kernels tune``: tunes a model from the command line, and shows or deletes the stored choices."""

from __future__ import annotations

import argparse
from contextlib import nullcontext

import torch

from .. import adopt, tuning
from ..core import env, tuned
from ..core.candidate import DIRECTIONS
from ..gpu import plans
from ..text import aligned, many
from ..tuning import words
from .terminal import DTYPES, add_factory, factory, module_of, refused, shape

__all__ = ["configure", "main"]


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = "Measures which GPU kernels serve the calls of a model best, once for every later run."
    add_factory(parser, "--model", "the callable that builds the model")
    parser.add_argument("--input", metavar="N,C,H,W", type=shape, help="shape of the model's input")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="dtype of model and input (default fp32)")
    parser.add_argument("--amp", action="store_true", help="autocast to --dtype, with the model in fp32")
    parser.add_argument("--channels-last", action=argparse.BooleanOptionalAction, default=True, help="memory format")
    parser.add_argument(
        "--directions",
        nargs="+",
        choices=DIRECTIONS,
        default=DIRECTIONS,
        metavar="D",
        help=f"which are tuned, of {', '.join(DIRECTIONS)} (default all)",
    )
    parser.add_argument("--list", action="store_true", help="show the stored choices and their file")
    parser.add_argument("--clear", action="store_true", help="delete the stored choices and plans of this device")


def main(options: argparse.Namespace) -> int:
    """Returns 0; 2 where the model or its choices cannot be used; 130 after an interrupt."""
    if not (options.list or options.clear) and (options.model is None or options.input is None):
        options.error("--model and --input are needed, or --list, or --clear")
    try:
        if options.list:
            print(_stored())
        elif options.clear:
            print(f"{many(tuned.delete(), 'choice')} of {tuned.device()} deleted from {tuned.PATH}")
            if torch.cuda.is_available():
                print(f"{many(plans.delete(torch.cuda.get_device_name()), 'plan')} deleted from {env.PLANS}")
        else:
            return _tune(options)
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        return refused("tune", error)
    return 0


def _tune(options: argparse.Namespace) -> int:
    build = factory("--model", options.model)
    tuning.check_device()
    device, dtype = "cuda" if torch.cuda.is_available() else "cpu", DTYPES[options.dtype]
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    model = module_of(f"--model {options.model}", build, options.factory_args)
    model = adopt.accelerate(model).eval()
    model = model.to(device, memory_format=layout)  # type: ignore[call-overload]  # torch declares no memory_format
    images = torch.randn(options.input, device=device)
    images = images.contiguous(memory_format=layout) if images.dim() == 4 else images
    if not options.amp:
        model, images = model.to(dtype), images.to(dtype)
    with torch.autocast(device, dtype) if options.amp else nullcontext():
        measured = tuning.tune(model, images, directions=options.directions)
    print(measured)
    return 0 if len(measured.rows) == measured.calls else 130


def _stored() -> str:
    """The file of stored choices as a table for each device."""
    parts = [f"{tuned.PATH}" if tuned.PATH.exists() else f"{tuned.PATH}: not there, nothing was tuned"]
    for device, known in tuned.read().items():
        times = {
            call: {f"{backend} {name}": t for backend, best in stored.items() for name, t in best["seconds"].items()}
            for call, stored in known.items()
        }
        columns = list(dict.fromkeys(column for row in times.values() for column in row))
        rows = [("fastest", *(f"{column}, µs" for column in columns), "call")]
        for call, stored in known.items():
            backend, best = min(stored.items(), key=lambda item: item[1]["seconds"][item[1]["candidate"]])
            cells = (f"{1e6 * times[call][column]:.1f}" if column in times[call] else "–" for column in columns)
            rows.append((words(f"{backend} {best['candidate']}", tuned.tile(best)), *cells, call))
        parts.append(f"{device}: {many(len(known), 'choice')}\n{aligned(rows)}")
    return "\n\n".join(parts)
