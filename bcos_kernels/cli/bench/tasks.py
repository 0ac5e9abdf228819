"""The tasks of a run in order of importance: layers, whole models, curves. A task yields its rows when it is run."""

from __future__ import annotations

import copy
import re
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ...adopt import report
from ..terminal import factory, module_of
from . import coda, layers, models
from .contenders import FOLDED, Contender, Contest, build, in_a_line
from .devices import DeviceLost
from .results import EVERY
from .rows import failed, measured
from .settings import QUICK_IMAGE, QUICK_MEASURE, QUICK_MODEL, Settings
from .workloads import IMAGE, MODELS, OF_AXES, TRANSFORMERS, Workload, network
from .workloads import workloads as read

__all__ = ["Bench", "Task", "task_of"]

CHECKED = 8
"""Number of images that are checked where checking the whole batch would take too long."""
LEAST, LEAST_OF_MODELS = 5, 4
"""The fewest rounds of a row."""
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
IMAGES = (64, 128, 192, 256, 384, 512)
CURVES = {"resnet50/56x56-64-k3s1-64": "forward", "vit_s/1568-384-1536": "forward", "resnet50": "inference"}
"""Workload -> measure of the scaling curves."""
CURVE_IMAGES = 8  # of the curves over the image's size
LONGEST_ROUND = 1.5
"""Seconds of a round of all contenders, beyond which a curve ends."""


@dataclass(frozen=True)
class Task:
    """Something that is measured or left out as a whole."""

    name: str
    kind: str
    """Tasks of a kind take about as long."""
    weight: int
    """Its duration, relative to that of a layer."""
    rows: Callable[[], Iterator[dict]]
    prepare: Callable[[], None] | None = None
    """Fills the compilers' caches on disk for the rows; times nothing."""


class Bench:
    """The tasks of a run. ``rates`` are set before the first one; ``ended`` collects where curves ended and why."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.rates: dict[str, float] = {}
        self.ended: list[str] = []
        self.own: nn.Module | None = None
        """The user's model, if one is measured."""
        self._built: tuple[object, dict[str, Contender]] = (None, {})

    # -------------------------------------------------------------------------------------------- tasks

    def tasks(self) -> list[Task]:
        """Of each model its layers, then itself; then the curves. Raises ValueError where nothing was chosen."""
        s = self.settings
        if s.module is not None:
            self.own = own_module(s)
            return [self._model_task(s.module, measure) for measure in self._measures_of_model(s.module)]
        chosen = self.workloads() if s.layers is not None else []
        found = []
        for model in s.models:
            found += [self._layer_task(layer) for layer in chosen if layer.model == model]
            if s.whole_models and (not s.quick or model == QUICK_MODEL):
                measures = self._measures_of_model(model) if not s.quick else (QUICK_MEASURE,)
                found += [self._model_task(model, measure) for measure in measures]
        found += [self._layer_task(layer) for layer in chosen if layer in OF_AXES]
        if s.scaling:
            found += [self._curve_task(*curve, over) for curve in CURVES.items() for over in ("batch", "image")]
        if not found:
            raise ValueError("nothing to measure is left by these options; --list shows what there is")
        return found

    def workloads(self) -> list[Workload]:
        """The chosen layers, where a measure of layers is chosen; raises ValueError where the pattern matches none."""
        s = self.settings
        named = [model for model in s.models if model in MODELS]
        if not s.measures_of("layers") or not named:
            return []
        batch = s.batches["layers"]
        found = read(s.layers or "", batch, s.batch("layers", "vit_s"), named)
        if not found:
            raise ValueError(f"--layers {s.layers!r} matches no layer of {', '.join(s.models)}; --list shows them")
        return found

    def _layer_task(self, layer: Workload) -> Task:
        compiles = "compiled" in self.settings.contenders_of("layers", layer.name)
        return Task(
            layer.name, "compiled layer" if compiles else "layer", 8 if compiles else 1,
            lambda: self._layer_rows(layer), lambda: self._prepare(layer),
        )  # fmt: skip

    def _model_task(self, model: str, measure: str) -> Task:
        compiles = "compiled" in self.settings.contenders_of("models", model, measure)
        shape = self._shape(model, measure)
        return Task(
            f"{model}, {measure}", "compiled model" if compiles else "model", 40 if compiles else 10,
            lambda: iter([self._model_row(model, measure, shape)]),
        )  # fmt: skip

    def _shape(self, model: str, measure: str) -> tuple[int, ...]:
        """The shape of a model's input in a measure."""
        s = self.settings
        if s.input is not None:
            return s.input
        image = coda.CODA_NETS[model].image if model in coda.CODA_NETS else QUICK_IMAGE if s.quick else IMAGE
        batch = s.batch("models", model)
        if measure == "explanation loss" and model in MODELS and s.defaults.second_order and not s.chosen_batch:
            batch, image = s.defaults.second_order
        if measure in models.EXPLAINED and not s.chosen_batch:
            batch = models.EXPLAINED[measure][0]
        return batch, 6, image, image

    def _curve_task(self, workload: str, measure: str, over: str) -> Task:
        name = f"{workload}, {measure}, scaling of the {over}"
        return Task(name, "curve", 20, lambda: self._curve_rows(workload, measure, over))

    def _measures_of_model(self, model: str) -> list[str]:
        """The measures of a model; without a choice of measures, explanations of a few models alone."""
        measures = self.settings.measures_of("models")
        if model in coda.CODA_NETS:  # whose authors have no explain of images one by one
            return [measure for measure in measures if measure not in models.EXPLAINED]
        left_out = self.settings.measures is None and model not in models.EXPLAINED_MODELS
        return [measure for measure in measures if not (left_out and measure in models.EXPLAINED)]

    # -------------------------------------------------------------------------------------------- layers

    def _layer_contenders(self, layer: Workload, wanted: frozenset[str]) -> dict[str, Contender]:
        s = self.settings
        torch.compiler.reset()  # each layer compiles the same code: a limit on how often counts
        torch.manual_seed(0)
        reference, plain = (module.to(s.like.device, s.like.dtype) for module in (layer.reference(), layer.plain()))
        return build(reference, plain, wanted, s.contenders is not None)

    def _layer_rows(self, layer: Workload) -> Iterator[dict]:
        contenders = self._layer_contenders(layer, self.settings.contenders_of("layers", layer.name))
        for measure in self.settings.measures_of("layers"):
            wanted = self.settings.contenders_of("layers", layer.name, measure)
            yield self._layer_row(layer, contenders, measure, wanted, self.settings.on_gpu)

    def _contest(self, layer: Workload, contenders: dict[str, Contender], measure: str, sparse: bool) -> Contest:
        every = max(1, layer.x_shape[0] // CHECKED) if sparse else 1
        return layers.contest(layer, contenders, measure, self.settings.like, every, self.settings.on_gpu)

    def _layer_row(
        self, layer: Workload, contenders: dict[str, Contender], measure: str, wanted, sparse: bool, image: int = IMAGE
    ) -> dict:
        s = self.settings
        taking_part = {k: c for k, c in contenders.items() if k in wanted or k == "reference"}

        def measure_it() -> dict:
            contest = self._contest(layer, taking_part, measure, sparse)
            floor = layers.floor(layer, measure, s.like.element_size(), self.rates, s.on_gpu)
            return measured(contest, wanted, s.device, s.seconds, LEAST) | {"floor": floor}

        facts = {"model": layer.model, "models": layer.models, "group": layer.group, "batch": layer.batch}
        row = {"scope": "layer", "workload": layer.name, "measure": measure, "image": image} | facts
        return row | {"scaling": None, "floor": None} | self._tried(measure_it, wanted, taking_part)

    def _prepare(self, layer: Workload) -> None:
        contenders = self._layer_contenders(layer, self.settings.contenders_of("layers", layer.name))
        for measure in self.settings.measures_of("layers"):
            self._contest(layer, contenders, measure, True).admitted()

    def _tried(self, measure_it: Callable[[], dict], wanted, built: dict[str, Contender]) -> dict:
        """The result of ``measure_it`` or its failure, and the contenders that were asked for but do not exist here."""
        try:
            found = measure_it()
        except DeviceLost:
            raise
        except Exception as failure:  # of the reference, without which there is no bound
            if not self.settings.device.is_alive():
                raise DeviceLost(str(failure)) from failure
            return failed(failure)
        if self.settings.contenders is not None:
            there = set(built) - ({FOLDED} - found["contenders"].keys())
            absent = dict.fromkeys(wanted - there - {"plain"}, "cannot serve this workload here")
            found["refused"] = {**found["refused"], **absent}
        return found

    # -------------------------------------------------------------------------------------------- models

    def _model_contenders(self, model: str, image: int, wanted: frozenset[str]) -> dict[str, Contender]:
        """Those of the user's model, of a CoDA-Net or of one of the reference's; the latest ones are kept."""
        key = model, image if model in TRANSFORMERS else None, wanted  # torchvision's transformers learn positions
        if self._built[0] != key:
            self._built = (None, {})
            torch.compiler.reset()
            torch.manual_seed(0)
            self._built = (key, self._made(model, image, wanted))
        return self._built[1]

    def _made(self, model: str, image: int, wanted: frozenset[str]) -> dict[str, Contender]:
        ready = partial(_ready, like=self.settings.like)
        if model in coda.CODA_NETS:
            return coda.contenders(model, ready, wanted)
        own, lone = self.own, self.settings.contenders is not None
        plain = ready(models.plain(model, image)) if own is None else None
        return build(ready(_reference(model) if own is None else own), plain, wanted, lone)

    def _model_row(self, model: str, measure: str, shape: tuple[int, ...], only: frozenset[str] | None = None) -> dict:
        s = self.settings
        every = frozenset().union(*(s.contenders_of("models", model, m) for m in models.MEASURES))
        wanted = only or s.contenders_of("models", model, measure)
        taking_part: dict[str, Contender] = {}

        def measure_it() -> dict:
            built = self._model_contenders(model, shape[-1], only or every)
            taking_part.update((k, c) for k, c in built.items() if k in wanted or k == "reference")
            torch.manual_seed(0)
            x = torch.rand(shape, dtype=s.like.dtype, device=s.like.device)
            x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
            contest = models.contest(taking_part, x, measure, CHECKED)
            return measured(contest, wanted, s.device, s.seconds, LEAST_OF_MODELS)

        title = coda.CODA_NETS[model].title if model in coda.CODA_NETS else MODELS.get(model, ("", model))[1]
        image = shape[-1] if len(shape) == 4 else None
        names = {"scope": "model", "workload": model, "model": model, "group": title, "measure": measure}
        facts = {"batch": shape[0], "image": image, "scaling": None, "floor": None}
        return names | facts | self._tried(measure_it, wanted, taking_part)

    # -------------------------------------------------------------------------------------------- curves

    def _curve_rows(self, workload: str, measure: str, over: str) -> Iterator[dict]:
        """Rows of growing size, until a round would take longer than ``LONGEST_ROUND``."""
        taking_part = frozenset(("plain", "reference", "ours"))
        sizes = [(n, IMAGE) for n in BATCHES] if over == "batch" else [(CURVE_IMAGES, n) for n in IMAGES]
        work, took = 0, 0.0
        for i, (batch, image) in enumerate(sizes):
            expected = took * batch * image**2 / work if work else 0.0
            if expected > LONGEST_ROUND:
                left = ", ".join(str(size[over == "image"]) for size in sizes[i:])
                reason = f"a round would take {expected:.1f} s, {LONGEST_ROUND} are allowed"
                self.ended.append(f"{workload}, {measure}, {over} {left}: {reason}")
                return
            row = self._point(workload, measure, batch, image, taking_part) | {"scaling": over}
            yield row
            if EVERY in row["refused"] or not row["contenders"]:
                self.ended.append(f"{workload}, {measure}, {over} above {(batch, image)[over == 'image']}: it failed")
                return
            work, took = batch * image**2, sum(statistics.median(c["samples"]) for c in row["contenders"].values())

    def _point(self, workload: str, measure: str, batch: int, image: int, wanted: frozenset[str]) -> dict:
        if workload in MODELS:
            return self._model_row(workload, measure, (batch, 6, image, image), wanted)
        (layer,) = read(f"^{re.escape(workload)}$", batch=CURVE_IMAGES, models=[workload.partition("/")[0]])
        layer = layer.resized(batch, image)
        row = self._layer_row(layer, self._layer_contenders(layer, wanted), measure, wanted, True, image)
        return row | {"workload": workload}


def task_of(row: dict) -> str:
    """The name of the task to which a row belongs."""
    if row["scaling"]:
        return f"{row['workload']}, {row['measure']}, scaling of the {row['scaling']}"
    return row["workload"] if row["scope"] == "layer" else f"{row['workload']}, {row['measure']}"


def _reference(model: str) -> nn.Module:
    """The reference's model, with values between its layers as a trained one has them."""
    ready = models.signalling if model == "vgg11" else models.settled
    return ready(network(model), torch.rand(2, 6, IMAGE, IMAGE))


def _ready(module: nn.Module, like: Tensor) -> nn.Module:
    module = models.still(module).to(like.device, like.dtype)
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch declares no memory_format


def own_module(s: Settings) -> nn.Module:
    """The user's model; raises ImportError, TypeError or ValueError where there is none that can be measured."""
    name, shape = s.module, s.input
    assert name is not None and shape is not None
    made = module_of(f"--module {name}", factory("--module", name), s.factory_args)
    found = report(made)
    if not (found.layers or found.of("alignment")):
        raise ValueError(f"--module {name}: it has no B-cos layers")
    try:
        with torch.no_grad():
            models.logits(copy.deepcopy(made).eval(), torch.rand(shape))
    except Exception as failure:  # the model may raise anything
        size = ",".join(map(str, shape))
        raise ValueError(f"--input {size}: {name} cannot take it: {in_a_line(failure)}") from failure
    return made
