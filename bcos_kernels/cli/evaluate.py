"""``python -m bcos_kernels evaluate``: GridPG and EPG of a model on images, see :mod:`bcos_kernels.metrics`."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from .. import metrics
from ..explanation import explain
from ..text import aligned, many, progress
from . import loading, sources
from .sources import Loaded, Source
from .terminal import at_least, draft_of, refused, unwritable

__all__ = ["configure", "main"]

PERCENTILES = (25, 50, 75, 100)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Measures how well explanations localise. gridpg: the share of positive contributions in an image's cell of a "
        "grid; a class is the place of its folder among the folders. epg: the share in the bounding boxes of a class."
    )
    parser.usage = "%(prog)s [options] (gridpg | epg) IMAGES..."
    parser.epilog = "Exit status: 0; 1 where images were skipped; 2 for bad input; 130 after an interrupt."
    parser.add_argument("metric", choices=("gridpg", "epg"), help="what is measured")
    sources.configure(parser)
    loading.configure(parser)
    parser.add_argument("--smooth", metavar="N", type=int, help="window that averages maps (default: gridpg 15, epg 0)")
    parser.add_argument("--out", metavar="FILE", type=Path, help="also write every value to this JSON file")
    grid = parser.add_argument_group("gridpg")
    grid.add_argument("--cells", metavar="N", type=int, default=9, help="images of a grid: 4 or 9 (default 9)")
    grid.add_argument("--grids", metavar="N", type=at_least(1), help="number of grids (default: all that there are)")
    grid.add_argument("--threshold", metavar="P", type=float, default=0.5, help="least confidence (default 0.5)")
    grid.add_argument("--rescale", action="store_true", help="shrink images, so that a grid has the size of one")
    epg = parser.add_argument_group("epg")
    epg.add_argument(
        "--boxes", metavar="FILE", type=Path, help='JSON, in pixels: {"name": [[class, xmin, ymin, xmax, ymax], ...]}'
    )


def main(options: argparse.Namespace) -> int:
    """Returns the exit status that the command's help describes."""
    loading.check(options)
    if options.metric == "epg" and options.boxes is None:
        options.error("epg needs --boxes")
    _check(options)
    try:
        return _evaluate(options)
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        return refused("evaluate", error)


def _check(options: argparse.Namespace) -> None:
    """Ends with status 2 where a value is not allowed, before anything is loaded."""
    if options.cells < 4 or math.isqrt(options.cells) ** 2 != options.cells:
        options.error(f"--cells {options.cells}: a square number of at least 4 is needed")
    if not 0 <= options.threshold < 1:
        options.error(f"--threshold {options.threshold}: must be at least 0 and below 1")
    if options.out is not None and (reason := unwritable(options.out)):
        options.error(f"--out {options.out}: {reason}")


def _evaluate(options: argparse.Namespace) -> int:
    source = sources.open_source(options)
    boxes = _boxes(options.boxes) if options.metric == "epg" else {}
    model = loading.load_model(options, loading.device())
    skipped: dict[str, str] = {}
    try:
        if options.metric == "gridpg":
            rows = _grids(model, source, options, skipped)
        else:
            rows = _energies(model, source, boxes, options, skipped)
    finally:  # an error may follow from what was skipped
        sources.tell_skipped(list(skipped.items()))
    values = torch.tensor([value for row in rows for value in row["values"]], dtype=torch.float64)
    names = {"gridpg": f"GridPG, {options.cells} images a grid", "epg": "EPG"}
    table = [("metric", "values", "mean", *(f"{p} %" for p in PERCENTILES))]
    quantiles = torch.quantile(values, torch.tensor(PERCENTILES, dtype=torch.float64) / 100).tolist()
    figures = [f"{figure:.4f}" for figure in (values.mean().item(), *quantiles)]
    print(aligned([*table, (names[options.metric], str(len(values)), *figures)]))
    if options.out is not None:
        found = {"metric": options.metric, "mean": values.mean().item(), "rows": rows, "skipped": skipped}
        with draft_of(options.out) as draft:
            draft.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return 1 if skipped else 0


def _batches(
    source: Source, batches: list[list[int]], options: argparse.Namespace, skipped: dict[str, str]
) -> Iterator[list[Loaded]]:
    """The readable images of each batch; the others are noted."""
    for batch in DataLoader(source, batch_sampler=batches, num_workers=options.workers, collate_fn=list):
        skipped.update((item.name, item.reason) for item in batch if item.image is None)
        yield [item for item in batch if item.image is not None]


def _in_parts(values: list, size: int) -> list[list]:
    return [values[start : start + size] for start in range(0, len(values), size)]


# ------------------------------------------------------------------------------------------------ GridPG


def _grids(
    model: nn.Module, source: Source, options: argparse.Namespace, skipped: dict[str, str]
) -> list[dict[str, Any]]:
    """The names and the values of each grid."""
    source.transform = loading.transform_of(model, options.image_size)
    numbers, labels, logits, side = _confidences(model, source, options, skipped)
    chosen = metrics.select_grids(logits, labels, options.cells, threshold=options.threshold)
    if len(chosen) < (options.grids or 1):
        asked = f"--cells {options.cells}" + (f" --grids {options.grids}" if options.grids else "")
        raise ValueError(
            f"{asked}: the {len(labels)} images make {many(len(chosen), 'grid')}, which take images of different "
            f"classes that are classified correctly with a confidence above {options.threshold}"
        )
    chosen = chosen[: options.grids]
    if options.rescale:
        source.transform = loading.transform_of(model, max(1, side // math.isqrt(options.cells)))
    smooth = 15 if options.smooth is None else options.smooth
    at_once = max(1, options.batch // options.cells)
    batches = [[numbers[i] for grid in some for i in grid] for some in _in_parts(chosen, at_once)]
    classes = {number: int(label) for number, label in zip(numbers, labels, strict=True)}
    rows: list[dict[str, Any]] = []
    with progress("grids", len(chosen)) as advance:
        for items in _batches(source, batches, options, skipped):
            images = loading.stacked((item.image for item in items), model).unflatten(0, (-1, options.cells))
            targets = torch.tensor([classes[item.number] for item in items]).view(-1, options.cells)
            found = explain(
                model, metrics.make_grid(images), targets, chunk=options.chunk, weights=False, output=loading.logits
            )
            values = metrics.grid_pointing(found.contributions, smooth)
            for grid, of_grid in zip(_in_parts(items, options.cells), values, strict=True):
                rows.append({"images": [item.name for item in grid], "values": of_grid.tolist()})
            advance(f"{len(rows)} grids", len(values))
    return rows


def _confidences(
    model: nn.Module, source: Source, options: argparse.Namespace, skipped: dict[str, str]
) -> tuple[list[int], Tensor, Tensor, int]:
    """The numbers, labels and logits of all readable images, and the side that the model gets them with."""
    numbers: list[int] = []
    labels: list[int] = []
    logits: list[Tensor] = []
    side = 0
    with progress("confidences", len(source)) as advance, torch.no_grad():
        for items in _batches(source, _in_parts(list(range(len(source))), options.batch), options, skipped):
            without = next((item.name for item in items if item.label is None), None)
            if without is not None:
                raise ValueError(f"{without} has no class: a folder for each class is needed, or a data set of classes")
            if items:
                images = loading.stacked((item.image for item in items), model)
                logits.append(loading.logits(model, images).cpu())
                side = images.shape[-1]
            numbers += [item.number for item in items]
            labels += [item.label for item in items if item.label is not None]
            advance(f"{len(numbers)} images", options.batch)
    if not logits:
        raise ValueError("no image can be read")
    found = torch.cat(logits)
    if found.dim() != 2:
        raise TypeError(f"the model returns shape {tuple(found.shape)}: a tensor of logits [N, K] is needed")
    classes, known = source.classes or len(set(labels)), found.shape[1]
    if max(labels) >= known:
        raise ValueError(f"an image is of class {max(labels)}, counted from 0, and the model has {known} classes")
    if classes != known:
        told = f"the images have {classes} classes and the model {known}: class k of the images is taken as its logit k"
        print(f"bcos_kernels evaluate: {told}", file=sys.stderr)
    return numbers, torch.tensor(labels), found, side


# ------------------------------------------------------------------------------------------------ EPG


def _boxes(path: Path) -> dict[str, list[list[int]]]:
    """``name -> [[class, xmin, ymin, xmax, ymax], ...]``"""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"--boxes {path}: {error}") from None
    fits = isinstance(found, dict) and all(
        isinstance(boxes, list) and all(isinstance(b, list) and len(b) == 5 for b in boxes) for boxes in found.values()
    )
    if not fits:
        raise ValueError(f'--boxes {path}: not of the form {{"name": [[class, xmin, ymin, xmax, ymax], ...]}}')
    for name, boxes in found.items():
        for box in boxes:
            if reason := _objection(*box):
                raise ValueError(f"--boxes {path}: {name}: {box}: {reason}")
    return found


def _objection(label, *ends) -> str | None:
    """Why a box is none; None where it is one."""
    if type(label) is not int or label < 0:
        return "the class must be an int of at least 0"
    if not all(type(end) in (int, float) and math.isfinite(end) for end in ends):
        return "xmin, ymin, xmax and ymax must be numbers"
    left, top, right, bottom = ends
    return "it ends before it starts" if left > right or top > bottom else None


def _energies(
    model: nn.Module, source: Source, boxes: dict[str, list[list[int]]], options: argparse.Namespace, skipped
) -> list[dict[str, Any]]:
    """The name, the classes and the values of each image that has boxes."""
    numbers = [number for number, entry in enumerate(source.entries) if boxes.get(entry.name)]
    if not numbers:
        raise ValueError(f"--boxes {options.boxes}: it names none of the images, such as {source.entries[0].name}")
    names = Counter(source.entries[number].name for number in numbers)
    if (twice := next((name for name, count in names.items() if count > 1), None)) is not None:
        raise ValueError(f"--boxes {options.boxes}: {twice} is the name of {names[twice]} images")
    source.transform = loading.transform_of(model, options.image_size, whole=True)
    rows: list[dict[str, Any]] = []
    with progress("images", len(numbers)) as advance:
        for items in _batches(source, _in_parts(numbers, options.batch), options, skipped):
            if items:
                rows += _of_images(model, items, boxes, options)
            advance(f"{len(rows)} images", options.batch)
    return rows


def _of_images(model: nn.Module, items: list[Loaded], boxes, options: argparse.Namespace) -> list[dict[str, Any]]:
    images = loading.stacked((item.image for item in items), model)
    size = images.shape[-1], images.shape[-2]
    pairs, scaled = [], []
    for image, item in enumerate(items):
        for box in boxes[item.name]:
            if box[1] >= item.size[0] or box[2] >= item.size[1] or box[3] <= 0 or box[4] <= 0:
                size_of = " x ".join(map(str, item.size))
                raise ValueError(
                    f"--boxes {options.boxes}: {item.name}: {box}: it lies outside of the image, {size_of}"
                )
        for label, of_class in groupby(sorted(boxes[item.name]), key=lambda box: box[0]):
            pairs.append((image, label))
            scaled.append(metrics.scaled_boxes([box[1:] for box in of_class], item.size, size))
    found = explain(model, images, pairs, chunk=options.chunk, weights=False, output=loading.logits)
    values = metrics.energy_pointing(found.contributions, scaled, smooth=options.smooth or 0).tolist()
    rows = []
    for image, item in enumerate(items):
        own = [(label, value) for (of, label), value in zip(pairs, values, strict=True) if of == image]
        rows.append({"image": item.name, "classes": [label for label, _ in own], "values": [value for _, value in own]})
    return rows
