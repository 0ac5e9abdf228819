"""What a run measures and how: the defaults of a device, which the command line overrides."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from ..terminal import DTYPES, add_factory, at_least, shape
from . import layers, models
from .coda import CODA_NETS
from .contenders import COMPILED, FOLDED, PAIRS, known
from .devices import opened
from .workloads import IMAGE, MODELS, TRANSFORMERS

__all__ = ["Settings", "configure"]

QUICK_LAYERS = (
    r"resnet50/(56x56-64-k3s1-64|14x14-1024-k1s1-256)$|resnext50/28x28-256-g32k3s1|convnext_t/28x28-192-dw|"
    r"vit_s/\d+-384-1536$"
)
QUICK_MODEL, QUICK_MEASURE, QUICK_IMAGE, QUICK_BATCH = "resnet50", "explanation", 64, 2


@dataclass(frozen=True)
class Defaults:
    """The settings of a kind of device that the command line does not override."""

    batch: int
    models_batch: int
    transformers: float
    """Batch of the transformers ÷ that of the other models."""
    halved: tuple[str, ...]
    """Models with half the batch, because the whole one does not fit into 24 GiB."""
    dtype: str
    seconds: float
    compiled: str
    """Layers with torch.compile as a contender: a sample of all kinds and sizes, because each takes 5 to 20 seconds."""
    compiled_measures: tuple[str, ...]
    compiled_models: tuple[str, ...]
    """Models that torch.compile compiles: the reference's, ours and the plain one; on a CPU each takes minutes."""
    compiled_model_measures: tuple[str, ...]
    second_order: tuple[int, int] | None
    """Batch and image of the explanation loss, where a step of the models' own would take too long."""


CPU = Defaults(
    batch=8, models_batch=4, transformers=1.0, halved=("vgg11",), dtype="fp32", seconds=0.4,
    compiled=r"resnet50/.*(k[37]s1|k1s1-(64|256|1024))-?\d*$|convnext_t/.*dw7|vit_s/",
    compiled_measures=("training",), compiled_models=("resnet50", "densenet121", "vit_s"),
    compiled_model_measures=("training",), second_order=(2, 128),
)  # fmt: skip
GPU = Defaults(
    batch=256, models_batch=256, transformers=0.25, halved=(), dtype="bf16", seconds=0.2,
    compiled=(
        r"resnet50/(56x56-(64-k3s1-64|64-k1s1-256|256-k1s1-64)|14x14-(1024-k1s1-256|256-k3s1-256)|7x7-512-k3s1-512)$"
        r"|vit_s/\d+-(384-1536|1536-384)$|convnext_t/(56x56-96|14x14-384)-dw7"
    ),
    compiled_measures=("forward", "training"), compiled_models=tuple(MODELS),
    compiled_model_measures=models.COMPILABLE,
    second_order=None,
)  # fmt: skip


class Settings:
    """All settings of one run, as a command line gives them; raises ValueError that names the wrong option."""

    def __init__(self, o: argparse.Namespace) -> None:
        self.device = opened(o.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.defaults = d = GPU if self.on_gpu else CPU
        _check(o)
        self.dtype: str = o.dtype or d.dtype
        self.seconds: float = o.seconds if o.seconds is not None else 0.05 if o.quick else d.seconds
        self.limit: float | None = None if o.limit is None else 60 * o.limit
        """Seconds for the whole run."""
        batch = o.batch or (QUICK_BATCH if o.quick else None)
        self.batches: dict[str, int] = {"layers": batch or d.batch, "models": batch or d.models_batch}
        """Number of images; transformers take ``defaults.transformers`` times as many."""
        self.chosen_batch = bool(o.batch)
        """Whether the command line names the batch, which then holds for every measure."""
        self.models = _allowed("--models", o.models, (*MODELS, *CODA_NETS)) or tuple(MODELS)
        self.layers: str | None = None if o.no_layers or o.module else o.layers or (QUICK_LAYERS if o.quick else "")
        """Pattern of the layers' names; None for no layers."""
        self.whole_models = not o.no_models and (o.layers is None or o.models is not None)
        measures = o.measures and [name.replace("-", " ") for name in o.measures]
        self.measures = _allowed("--measures", measures, (*layers.MEASURES, *models.MEASURES))
        self.contenders = _allowed("--contenders", o.contenders, known())
        self.scaling, self.quick = o.scaling, o.quick
        self.processes: int = (o.processes or os.cpu_count() or 1) if self.on_gpu else 0
        self.module, self.factory_args, self.input, self.out = o.module, o.factory_args, o.input, o.out

    @property
    def on_gpu(self) -> bool:
        return self.device.name == "cuda"

    @property
    def like(self) -> torch.Tensor:
        """An empty tensor of the device and dtype that is measured."""
        return torch.empty(0, device=self.device.name, dtype=DTYPES[self.dtype])

    def batch(self, scope: str, model: str) -> int:
        """Images of a row; ``scope`` is ``layers`` or ``models``."""
        if model in CODA_NETS and not self.chosen_batch:
            return CODA_NETS[model].batch
        share = self.defaults.transformers if model in TRANSFORMERS else 1
        share /= 2 if scope == "models" and model in self.defaults.halved and not self.chosen_batch else 1
        return max(1, round(self.batches[scope] * share))

    def measures_of(self, scope: str) -> tuple[str, ...]:
        """The chosen measures of ``layers`` or ``models``, most important first."""
        every = layers.MEASURES if scope == "layers" else models.MEASURES
        return tuple(name for name in every if self.measures is None or name in self.measures)

    def contenders_of(self, scope: str, workload: str, measure: str | None = None) -> frozenset[str]:
        """The contenders of a workload in one of its measures, or in any of them."""
        if self.contenders is not None:
            return frozenset(self.contenders)
        found = {name for name in known() if scope == "layers" or name.count("/") < 2} - {PAIRS, FOLDED}
        d = self.defaults
        if scope == "layers":
            allowed = {"compiled"}
            compiled = re.search(d.compiled, workload) and measure in (None, *d.compiled_measures)
        else:
            allowed = set(COMPILED)
            compiled = workload in d.compiled_models and measure in d.compiled_model_measures
        return frozenset(found - set(COMPILED) | (allowed if compiled and not self.quick else set()))

    def described(self) -> dict:
        """The settings as a result stores them."""
        d = self.defaults
        return {
            "batch": self.batches,
            "transformers": f"{d.transformers:g} times the batch",
            "image": IMAGE,
            "explanation loss": d.second_order and dict(zip(("batch", "image"), d.second_order, strict=True)),
            "dtype": self.dtype,
            "memory_format": "channels_last",
            "seconds": self.seconds,
            "limit": self.limit,
            "explanation": "dx of a graph that is kept" if self.on_gpu else "y and dx",
            "compiled": {"layers": d.compiled, "measures": d.compiled_measures, "models": d.compiled_models,
                         "measures of models": d.compiled_model_measures},
        }  # fmt: skip


def configure(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what is measured (default: everything but the scaling curves)")
    what.add_argument("--quick", action="store_true", help="a few layers and one small model, within a minute")
    what.add_argument(
        "--models",
        nargs="+",
        metavar="NAME",
        help=f"measure these models of the reference and their layers, or a CoDA-Net: {', '.join(CODA_NETS)}",
    )
    what.add_argument(
        "--layers", metavar="REGEX", help="layers whose name matches, and no models unless --models names them"
    )
    what.add_argument("--measures", nargs="+", metavar="NAME", help='such as training, or "class explanations"')
    what.add_argument("--contenders", nargs="+", metavar="NAME", help="such as plain ours compiled (see --list)")
    what.add_argument("--no-models", action="store_true", help="leave whole models out")
    what.add_argument("--no-layers", action="store_true", help="leave single layers out")
    what.add_argument("--scaling", action="store_true", help="add curves over the batch and over the size of the image")
    add_factory(what, "--module", "measure your own model, which this callable builds")
    what.add_argument("--input", metavar="N,C,H,W", type=shape, help="shape of its input")
    how = parser.add_argument_group("how")
    how.add_argument("--device", metavar="D", help="cpu, cuda or cuda:<index> (default: the GPU if there is one)")
    how.add_argument("--dtype", choices=DTYPES, help=f"(default: {CPU.dtype} on a CPU, {GPU.dtype} on a GPU)")
    batch = f"(default {CPU.batch} for layers and {CPU.models_batch} for models on a CPU, {GPU.batch} on a GPU)"
    how.add_argument(
        "--batch", metavar="N", type=at_least(1), help=f"number of images; on a GPU a quarter for transformers {batch}"
    )
    rows = f"seconds of each row (default {CPU.seconds} CPU, {GPU.seconds} GPU)"
    how.add_argument("--seconds", metavar="S", type=at_least(0, float), help=rows)
    how.add_argument("--limit", type=float, metavar="MINUTES", help="of the whole run, which names what it left out")
    compilers = "processes that compile kernels before a run on a GPU (default: one a core)"
    how.add_argument("--processes", metavar="N", type=at_least(1), help=compilers)
    how.add_argument(
        "--out", type=Path, metavar="FILE", help="the file of the result (default: named after the device)"
    )
    how.add_argument("--list", action="store_true", help="show the workloads and the contenders, measure nothing")
    how.add_argument(
        "--resume", type=Path, metavar="FILE", help="measure what this unfinished run left out, and add it"
    )
    how.add_argument("--where", action="store_true", help="print the file in which a run is stored, measure nothing")
    parser.add_argument("--warm-up", metavar="I/N", help=argparse.SUPPRESS)


def _allowed(option: str, names: Iterable[str] | None, allowed: Iterable[str]) -> tuple[str, ...] | None:
    if names is None:
        return None
    allowed = list(dict.fromkeys(allowed))
    for name in names:
        if name not in allowed:
            raise ValueError(f"{option} {name}: allowed are {', '.join(allowed)}")
    return tuple(names)


def _check(o: argparse.Namespace) -> None:
    """Raises ValueError for options that are wrong, or that have no place beside each other."""
    if o.limit is not None and not o.limit > 0:
        raise ValueError(f"--limit {o.limit}: must be above 0")
    if (o.module is None) != (o.input is None):
        raise ValueError("--module and --input belong together: --module pkg.module:factory --input N,C,H,W")
    if o.module and (o.models or o.layers or o.scaling or o.quick or o.batch):
        raise ValueError(
            "--module is measured alone, on --input: leave out --models, --layers, --scaling, --quick and --batch"
        )
    if o.out is not None and o.out.is_dir():
        raise ValueError(f"--out {o.out}: it is a folder")
    try:
        re.compile(o.layers or "")
    except re.error as error:
        raise ValueError(f"--layers {o.layers!r}: no regular expression: {error}") from None
