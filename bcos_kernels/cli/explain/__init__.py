"""``python -m bcos_kernels explain``: explains whole data sets, in one process or in those that torchrun starts."""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
import time
from pathlib import Path

from ... import __version__
from ...text import many, progress
from .. import loading, sources
from ..sources import Source
from ..terminal import at_least, refused
from .processes import Processes, connected
from .run import check, run
from .shards import Folder, fingerprint

__all__ = ["configure", "main"]

KEPT = ("map", "rgba", "weights")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Explains images by the most likely classes, and writes numbered WebDataset shards and an index. "
        "A run that was interrupted goes on from its last whole shard when it is started again. "
        "Several processes: torchrun --nproc-per-node N -m bcos_kernels explain ..."
    )
    parser.usage = "%(prog)s [options] IMAGES... --out DIR"
    parser.epilog = "Exit status: 0; 1 where images were skipped; 2 for bad input; 130 after an interrupt."
    sources.configure(parser)
    loading.configure(parser)
    results = parser.add_argument_group("results")
    results.add_argument("--out", metavar="DIR", type=Path, required=True, help="the folder of the results")
    results.add_argument(
        "--top", metavar="N", type=at_least(1), default=1, help="classes that are explained (default 1)"
    )
    results.add_argument(
        "--save",
        metavar="LIST",
        default="map",
        help="what is kept: contributions (map), pictures (rgba), rows (weights), as in map,rgba (default map)",
    )
    results.add_argument("--dtype", choices=("fp16", "fp32"), default="fp16", help="dtype of arrays (default fp16)")
    results.add_argument("--smooth", metavar="N", type=int, default=15, help="smoothing of pictures (default 15)")
    results.add_argument("--shard", metavar="N", type=at_least(1), default=1000, help="images a shard (default 1000)")


def main(options: argparse.Namespace) -> int:
    """Returns the exit status that the command's help describes."""
    loading.check(options)
    save = tuple(name for name in KEPT if name in options.save.split(","))
    if not save or set(options.save.split(",")) - set(KEPT):
        options.error(f"--save {options.save}: allowed are {', '.join(KEPT)}, separated by commas")
    options.save = save
    try:
        with connected() as processes:
            return _explain(options, processes)
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        return refused("explain", error)
    except KeyboardInterrupt:
        print("bcos_kernels explain: interrupted; the same command goes on from the last whole shard", file=sys.stderr)
        return 130


def _explain(options: argparse.Namespace, processes: Processes) -> int:
    source = sources.open_source(options)
    model = loading.load_model(options, loading.device(processes.local_rank))
    source.transform = loading.transform_of(model, options.image_size)
    folder = Folder(options.out, _settings(options, source))
    processes.of_first(lambda: folder.claim(lambda: check(model, source, options)))
    shards = -(-len(source) // options.shard)
    mine = [n for n in range(shards) if n % processes.count == processes.rank and not folder.is_complete(n)]
    done, in_model, started = 0, 0.0, time.perf_counter()
    images = sum(min(options.shard, len(source) - n * options.shard) for n in mine)
    with progress("explain", max(1, images), show=processes.rank == 0 and images > 0) as advance:
        for count, spent in run(model, source, folder, mine, options):
            done, in_model = done + count, in_model + spent
            advance(f"{processes.count * done / (time.perf_counter() - started):.1f} images/s", count)
    seconds = time.perf_counter() - started
    processes.wait()
    index = processes.of_first(lambda: folder.write_index(shards))
    if processes.rank == 0:
        _tell(options.out, index, shards, done, seconds, in_model)
    return 1 if index["skipped"] else 0


def _settings(options: argparse.Namespace, source: Source) -> dict:
    """All that decides what the shards hold."""
    weights = options.weights
    return {
        "version": __version__,
        "model": options.model or f"bcos.models.pretrained:{options.hub}",
        "factory_args": options.factory_args,
        "weights": None if weights is None else hashlib.sha256(weights.read_bytes()).hexdigest()[:16],
        "transform": re.sub(r" at 0x[0-9a-f]+", "", " ".join(repr(source.transform).split())),
        "images": f"{len(source)} images, {fingerprint(entry.identity() for entry in source.entries)}",
        **{name: getattr(options, name) for name in ("top", "save", "dtype", "smooth", "shard")},
    }


def _tell(out: Path, index: dict, shards: int, done: int, seconds: float, in_model: float) -> None:
    skipped = index["skipped"]
    sources.tell_skipped([(image["name"], image["reason"]) for image in skipped], f": see {out / 'index.json'}")
    print(f"{many(index['images'], 'image')} in {many(shards, 'shard')} of {out}, {len(skipped)} skipped")
    if done:
        share = f"{100 * in_model / seconds:.0f} % of it in the model"
        print(f"this run: {many(done, 'image')} in {seconds:.1f} s, {done / seconds:.1f} images/s, {share}")
    else:
        print("this run: nothing was left to do")
