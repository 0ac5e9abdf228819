"""How well explanations localise: the grid pointing game and the energy pointing game, as the authors compute them.

The grid pointing game (GridPG) explains grids of images of different classes: which share of the positive contributions
to a class lies in the cell of its image? (Böhle et al., Convolutional Dynamic Alignment Networks, CVPR 2021, section
4.2; B-cos Networks, CVPR 2022, section 4). The energy pointing game (EPG) asks for their share in the bounding boxes of
the class (Wang et al., Score-CAM, CVPR workshops 2020; Rao et al., Studying How to Efficiently and Effectively Guide
Models with Explanations, ICCV 2023, section 3.4).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from .core.checks import check_tensor
from .core.formula import accumulated
from .explanation.result import averaged, check_smooth
from .text import many

__all__ = ["energy_pointing", "grid_pointing", "make_grid", "scaled_boxes", "select_grids"]

SEED = 42
"""With it the authors draw the classes of their grids."""
LEAST_ENERGY = 1e-7
"""The sum of positive contributions below which the authors call a share undefined."""


def select_grids(
    logits: Tensor, labels: Tensor, cells: int, count: int | None = None, threshold: float = 0.5
) -> list[list[int]]:
    """The images of each grid, by the authors' selection.

    Of each class the correctly classified images are taken in the order of their confidence, the sigmoid of their
    logit. Blocks of ``cells`` classes are drawn at random, with the authors' seed, as long as more than that many still
    have an image above the threshold. A grid takes the next images of different classes from these blocks, and leaves
    out the one that follows, as the authors' code does.

    Args:
        logits: ``[N, K]`` of all images.
        labels: ``[N]`` int64, their classes.
        cells: the number of images of a grid: 4 or 9 (or another square).
        count: the number of grids, 500 or 250 in the papers; None gives all that there are.
        threshold: the confidence that an image needs, 0 for the authors' configurations ``noconfthresh``.

    Returns:
        For each grid the indices of its images, in the order of :func:`make_grid`.

    Raises:
        TypeError: ``logits`` or ``labels`` is not a tensor.
        ValueError: an argument is not as described above, or there are less than ``count`` grids.
    """
    _side(cells)
    check_tensor("logits", logits)
    check_tensor("labels", labels)
    if logits.dim() != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(f"logits has shape {tuple(logits.shape)} and labels {tuple(labels.shape)}: [N, K] and [N]")
    blocks = _blocks(_by_confidence(logits, labels), cells, threshold)
    grids: list[list[int]] = []
    start, classes = 0, labels.tolist()
    while count is None or len(grids) < count:
        grid, end = _next_grid(blocks, start, classes, cells)
        if len(grid) < cells:
            break
        grids.append(grid)
        start = end + 1
    if count is not None and len(grids) < count:
        raise ValueError(
            f"count={count}: {len(labels)} images make only {many(len(grids), 'grid')} of {cells} cells, which take "
            f"images of different classes that are classified correctly with a confidence above {threshold}"
        )
    return grids


def _by_confidence(logits: Tensor, labels: Tensor) -> list[list[tuple[int, float]]]:
    """For each class its correctly classified images with their logits, the most confident one first."""
    best, predicted = (t.cpu() for t in logits.detach().max(1))
    found: list[list[tuple[int, float]]] = [[] for _ in range(logits.shape[1])]
    for image, (logit, chosen, label) in enumerate(zip(best.tolist(), predicted, labels.cpu(), strict=True)):
        if chosen == label:
            found[int(label)].append((image, logit))
    return [sorted(images, key=lambda pair: pair[1], reverse=True) for images in found]


def _blocks(ordered: list[list[tuple[int, float]]], cells: int, threshold: float) -> list[int]:
    """The images of all blocks, one block after the other."""
    import numpy as np  # whose generator the authors use

    following = [iter(images) for images in ordered]

    def next_of(label: int) -> tuple[int, float] | None:
        pair = next(following[label], None)
        confident = pair is not None and torch.tensor(pair[1], dtype=torch.float32).sigmoid().item() > threshold
        return pair if confident else None

    ready = [next_of(label) for label in range(len(ordered))]
    classes, generator = np.arange(len(ordered)), np.random.RandomState(SEED)
    images: list[int] = []
    while (mask := np.array([pair is not None for pair in ready], dtype=bool)).sum() > cells:
        for label in generator.choice(classes[mask], size=cells, replace=False):
            pair = ready[label]
            assert pair is not None
            images.append(pair[0])
            ready[label] = next_of(label)
    return images


def _next_grid(blocks: list[int], start: int, classes: list[int], cells: int) -> tuple[list[int], int]:
    """The next images of different classes from ``start`` on, and where they end."""
    grid: list[int] = []
    at = start
    while at < len(blocks) and len(grid) < cells:
        if classes[blocks[at]] not in [classes[image] for image in grid]:
            grid.append(blocks[at])
        at += 1
    return grid, at


def make_grid(images: Tensor) -> Tensor:
    """Images of different classes as one: from top to bottom, and then from left to right, as the authors place them.

    Args:
        images: ``[..., n², C, H, W]``, of any dtype; n is at least 2.

    Returns:
        ``[..., C, n·H, n·W]``.

    Raises:
        TypeError: ``images`` is not a tensor.
        ValueError: ``images`` has fewer than four dimensions, or the number of images is not such a square.
    """
    check_tensor("images", images)
    if images.dim() < 4:
        raise ValueError(f"images has shape {tuple(images.shape)}: [..., n², C, H, W] is needed")
    n = _side(images.shape[-4])
    *lead, _, channels, height, width = images.shape
    cells = images.reshape(*lead, n, n, channels, height, width)  # column, row
    return cells.movedim((-3, -4, -2, -5, -1), (-5, -4, -3, -2, -1)).reshape(*lead, channels, n * height, n * width)


def grid_pointing(contributions: Tensor, smooth: int = 0) -> Tensor:
    """GridPG: for each image of a grid the share of its class's positive contributions that lies in its cell.

    Args:
        contributions: ``[..., n², n·H, n·W]``: those of the grid to the class of each of its images, in the order of
            :func:`make_grid`; what ``explain(model, grids, labels).contributions`` holds.
        smooth: the odd side of the window over which contributions are averaged first, zeros outside included; 0 for
            none. The papers take 15.

    Returns:
        ``[..., n²]``, from 0 to 1, for half precision in float32; 0 where no contribution is positive, NaN where one
        is NaN.

    Raises:
        TypeError: ``contributions`` is not a tensor.
        ValueError: an argument is not as described above.
    """
    check_tensor("contributions", contributions)
    if contributions.dim() < 3:
        raise ValueError(f"contributions has shape {tuple(contributions.shape)}: [..., n², n·H, n·W] is needed")
    *lead, count, height, width = contributions.shape
    n = _side(count)
    if height % n or width % n:
        raise ValueError(f"contributions has shape {tuple(contributions.shape)}: {n} cells do not divide its sides")
    positive = _positive(contributions, smooth)
    means = positive.reshape(*lead, count, n, height // n, n, width // n).mean((-3, -1))
    of_cells = means.transpose(-1, -2).flatten(-2)  # of each column its rows, as make_grid places images
    total = of_cells.sum(-1, keepdim=True)
    shares = torch.where(total * of_cells == 0, 0, of_cells / total)  # what is not finite stays so
    return shares.diagonal(dim1=-2, dim2=-1)


def energy_pointing(
    contributions: Tensor,
    boxes: Sequence[Sequence[Sequence[int]]],
    *,
    smooth: int = 0,
    min_box_size: int | None = None,
    max_box_size: int | None = None,
) -> Tensor:
    """EPG: the share of each map's positive contributions that lies in the bounding boxes of its class.

    Args:
        contributions: maps ``[P, H, W]``, such as those of ``explain`` with pairs of images and classes.
        boxes: for each map its boxes ``(xmin, ymin, xmax, ymax)`` in pixels, without the column xmax and the row ymax.
            Where they overlap, they count once.
        smooth: as in :func:`grid_pointing`; model guidance takes none.
        min_box_size, max_box_size: maps whose boxes cover less than the first or at least the second number of pixels
            get NaN.

    Returns:
        ``[P]``, from 0 to 1, for half precision in float32; 0 where the positive contributions sum to less than 1e-7.
        ``torch.nanmean`` of it is model guidance's figure.

    Raises:
        TypeError: ``contributions`` is not a tensor.
        ValueError: an argument is not as described above.
    """
    check_tensor("contributions", contributions)
    if contributions.dim() != 3 or len(boxes) != len(contributions):
        shape = tuple(contributions.shape)
        raise ValueError(f"contributions has shape {shape} and boxes {len(boxes)} lists: [P, H, W] and P are needed")
    positive = _positive(contributions, smooth)
    inside = torch.zeros_like(positive, dtype=torch.bool)
    for mask, of_map in zip(inside, boxes, strict=True):
        for box in of_map:
            left, top, right, bottom = _checked_box(box)
            mask[top:bottom, left:right] = True
    total = positive.sum((1, 2))
    shares = torch.where(total < LEAST_ENERGY, 0, (positive * inside).sum((1, 2)) / total)
    size = inside.sum((1, 2))
    least, most = (min_box_size or 0), (math.inf if max_box_size is None else max_box_size)
    return torch.where((size < least) | (size >= most), math.nan, shares)


def _checked_box(box: Sequence[int]) -> tuple[int, int, int, int]:
    try:
        values = tuple(map(operator.index, box))  # also of NumPy and of tensors, as data sets of boxes have them
    except TypeError:
        values = ()
    if len(values) != 4 or min(values) < 0:
        raise ValueError(f"boxes: {box!r} is not (xmin, ymin, xmax, ymax), four ints of at least 0")
    if values[0] > values[2] or values[1] > values[3]:
        raise ValueError(f"boxes: {box!r} ends before it starts: (xmin, ymin, xmax, ymax) is needed")
    return values


def scaled_boxes(
    boxes: Sequence[Sequence[float]], size: tuple[int, int], new_size: tuple[int, int]
) -> list[tuple[int, ...]]:
    """Boxes in pixels of an image, in pixels of the same image of another size; as model guidance scales them.

    They are rounded down and end within the image (Rao et al., ICCV 2023, and their code).

    Args:
        boxes: ``(xmin, ymin, xmax, ymax)`` each, in pixels.
        size: the width and the height that they belong to.
        new_size: the width and the height of the resized image.

    Returns:
        The boxes ``(xmin, ymin, xmax, ymax)`` as ints, in their order.

    Raises:
        ValueError: a size has other than two entries, or a box other than four.
    """
    scales = [new / old for new, old in zip(new_size, size, strict=True)] * 2
    last = [side - 1 for side in new_size] * 2
    return [
        tuple(int(min(max(v * scale, 0), end)) for v, scale, end in zip(box, scales, last, strict=True))
        for box in boxes
    ]


def _positive(maps: Tensor, smooth: int) -> Tensor:
    """The positive values of the smoothed maps. Those of half precision become fp32: a sum in fp16 may be infinite."""
    check_smooth(smooth)
    maps = accumulated(maps.detach())
    return (averaged(maps, smooth) if smooth else maps).clamp(min=0)


def _side(cells: int) -> int:
    """n of n² cells."""
    n = math.isqrt(cells)
    if n * n != cells or n < 2:
        raise ValueError(f"a grid of {cells} images: a square number of at least 4 is needed")
    return n
