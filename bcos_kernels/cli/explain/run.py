"""What ``explain`` does: it loads, explains and writes images, a shard at a time."""

from __future__ import annotations

import io
import json
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ...explanation import Explanation, explain
from .. import loading
from ..sources import Loaded, Source
from .shards import Folder, shard_writer

__all__ = ["check", "run"]

Files = list[tuple[str, bytes]]
"""The files of an image: the ending and the content of each."""


def check(model: nn.Module, source: Source, job: Namespace) -> None:
    """Explains the first image of the first batch that can be read, to find what makes every image fail.

    Raises:
        ValueError: the model has fewer classes than are to be explained, or no colours, and pictures are asked for.
        TypeError, ValueError: :func:`bcos_kernels.explain` refuses the model or its images.
    """
    first = map(source.__getitem__, range(min(job.batch, len(source))))
    image = next((item.image for item in first if item.image is not None), None)
    if image is None:
        return
    found = explain(model, loading.stacked([image], model), weights=False, output=loading.logits)
    if job.top > (count := found.logits.shape[1]):
        raise ValueError(f"--top {job.top}: the model has {count} classes")
    if "rgba" in job.save and len(image) != 6:
        raise ValueError(f"--save rgba: colours need six channels, and the model takes images of {len(image)}")


def run(
    model: nn.Module, source: Source, folder: Folder, numbers: list[int], job: Namespace
) -> Iterator[tuple[int, float]]:
    """Explains the shards of these numbers; yields the images of each batch, and the seconds that the model took."""
    if not numbers:
        return
    batches = {number: _batches(number, len(source), job) for number in numbers}
    sampler = [batch for of_shard in batches.values() for batch in of_shard]
    loaded = iter(DataLoader(source, batch_sampler=sampler, num_workers=job.workers, collate_fn=list))
    with ThreadPoolExecutor(max(1, job.workers)) as pool:
        for number, of_shard in batches.items():
            yield from _write(model, islice(loaded, len(of_shard)), folder, number, job, pool)


def _batches(number: int, images: int, job: Namespace) -> list[list[int]]:
    """The batches of one shard."""
    first, last = number * job.shard, min((number + 1) * job.shard, images)
    return [list(range(start, min(start + job.batch, last))) for start in range(first, last, job.batch)]


def _write(
    model: nn.Module,
    batches: Iterable[list[Loaded]],
    folder: Folder,
    number: int,
    job: Namespace,
    pool: ThreadPoolExecutor,
) -> Iterator[tuple[int, float]]:
    """Explains one shard and writes it, while the next batch is explained."""
    names: list[str] = []
    skipped: list[dict[str, str]] = []
    pending: list[Future[tuple[str, Files]]] = []
    with shard_writer(folder.shard(number)) as add:
        for batch in batches:
            skipped += [{"name": item.name, "reason": item.reason} for item in batch if item.image is None]
            items = [item for item in batch if item.image is not None]
            found, in_model = _explained(model, items, job) if items else (None, 0.0)
            finite = [] if found is None else found.logits.isfinite().all(1).tolist()
            skipped += [
                {"name": item.name, "reason": "the model's logits are not finite"}
                for item, known in zip(items, finite, strict=True)
                if not known
            ]
            for future in pending:
                add(*future.result())
            pending = []
            if found is not None:
                explained = [(item, found.of(i)) for i, item in enumerate(items) if finite[i]]
                pending = [pool.submit(_encoded, item, rows, job) for item, rows in explained]
                names += [item.name for item, _ in explained]
            yield len(batch), in_model
        for future in pending:
            add(*future.result())
    folder.finish(number, {"images": names, "skipped": skipped})


class Rows(NamedTuple):
    """The rows of one image or of a batch, on the CPU."""

    logits: Tensor
    classes: Tensor
    contributions: Tensor
    weights: Tensor | None
    pictures: Tensor | None

    def of(self, number: int) -> Rows:
        """Those of one image of the batch."""
        return Rows(*(None if t is None else t[number] for t in self))  # type: ignore[arg-type]


def _explained(model: nn.Module, items: list[Loaded], job: Namespace) -> tuple[Rows, float]:
    """The rows of a batch, and the seconds that the model's passes took."""
    images = loading.stacked((item.image for item in items), model)
    keeps = "weights" in job.save or "rgba" in job.save
    started = time.perf_counter()
    options: dict[str, Any] = {"chunk": job.chunk, "weights": keeps, "output": loading.logits}
    found: Explanation = explain(model, images, f"top{job.top}", **options)
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    in_model = time.perf_counter() - started
    pictures = found.rgba(job.smooth) if "rgba" in job.save else None
    pictures = None if pictures is None else pictures.mul(255).round().to(torch.uint8).cpu()
    weights = found.weights.cpu() if "weights" in job.save and found.weights is not None else None
    return Rows(found.logits.cpu(), found.targets, found.contributions.cpu(), weights, pictures), in_model


def _encoded(item: Loaded, rows: Rows, job: Namespace) -> tuple[str, Files]:
    """The key and the files of one image: a record, arrays, and a picture for each class."""
    record: dict[str, Any] = {
        "name": item.name,
        "label": item.label,
        "size": item.size,
        "classes": rows.classes.tolist(),
        "logits": rows.logits[rows.classes].tolist(),
    }
    parts: Files = []
    for name, rowed in (("map", rows.contributions), ("weights", rows.weights)):
        if name in job.save and rowed is not None:
            array, scales = _stored(rowed, job.dtype)
            record[f"{name}_scale"] = scales
            parts.append((f"{name}.npy", _npy(array)))
    if rows.pictures is not None:
        parts += [(f"{rank}.rgba.png", _png(picture)) for rank, picture in enumerate(rows.pictures)]
    return (f"{item.number:08d}", [("json", json.dumps(record).encode()), *parts])


def _stored(rows: Tensor, dtype: str) -> tuple[np.ndarray, list[float]]:
    """Rows ``[T, ...]`` as they are stored, and the factor of each by which they must be multiplied.

    In fp16 the largest value of a row becomes 1: contributions of single pixels may be below the smallest number of
    fp16, and sums of many above the largest.
    """
    if dtype == "fp32":
        return rows.float().numpy(), [1.0] * len(rows)
    largest = rows.flatten(1).abs().amax(1).double()
    scales = torch.where(largest > 0, largest, 1)
    return (rows.double() / scales.view(-1, *[1] * (rows.dim() - 1))).half().numpy(), scales.tolist()


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _png(picture: Tensor) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture.numpy()).save(file, "png", compress_level=1)
    return file.getvalue()
