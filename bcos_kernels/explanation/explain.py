"""``explain``: the rows of the dynamic linear map of a batch of images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..core import _torch
from ..core.checks import check_model, flag, in_training, integer
from . import passes
from .modes import explanation_mode, has_explanation_mode
from .result import Explanation
from .targets import parse

__all__ = ["explain"]

Output = str | Callable[[nn.Module, Tensor], Any] | None


def explain(
    model: nn.Module,
    images: Tensor,
    targets: Any = None,
    *,
    output: Output = None,
    create_graph: bool = False,
    chunk: int | None = None,
    weights: bool = True,
) -> Explanation:
    """Explains a batch of images: one forward for all classes, and backwards of ``chunk`` classes each.

    In explanation mode a B-cos network computes ``logits = W(x) x (+ bias)``, and row k of W(x) is the gradient of
    logit k with every scale held constant (Böhle et al., B-cos Networks, CVPR 2022, section 3.2.2). The model may be
    accelerated or not, of the early or the late explanation mode. Its modes, its training flags and the flags
    ``requires_grad`` of its parameters are afterwards what they were before, also after an error; no gradient of a
    parameter is formed.

    Args:
        model: a B-cos network in evaluation mode; in training mode only with ``create_graph``. Of what
            ``torch.compile`` returned, the model that it compiles runs, in eager mode.
        images: ``[N, C, H, W]`` as the model takes them; ``[N, L, D]`` for embeddings of tokens, ``[N, D]`` for
            vectors. N is at least 1.
        targets: which rows are formed. T is their number for each image.

            - None: that of the predicted class; ``"top5"``: those of the five largest logits (or any other number).
            - an int: the same class for every image; ints ``[N]`` or ``[N, T]``: the classes of each image.
            - a list of tuples ``[(image, class), ...]``: another number of classes for each image.
            - floats ``[T, K]``: directions d, whose rows are those of ``d · logits``, such as embeddings of texts.
        output: what is explained in place of ``model(images)``: the name of a module, for its output; or a function
            ``output(model, images)``. A result ``[N, K, ...]`` is summed over its positions, one ``[N, L, K]`` over its
            tokens, in float32 where it has half precision, and ``targets`` counts its K channels. Of a result that has
            ``logits``, as an attribute or in a dict, these are taken.
        create_graph: whether the result can be differentiated, for losses on explanations. A model of the late mode
            is then differentiated through its scales as well, and the result depends on directions, too.
        chunk: how many rows of every image one backward forms. None takes as many as are fast and fit into memory.
        weights: whether the result holds the weights; without them it holds the contributions alone, which take
            less memory by a factor of C.

    Returns:
        The explanation, which holds logits, targets, weights and contributions; ``.rgba()`` and ``.plot()`` show it.

    Raises:
        TypeError, ValueError: an argument is not as described above; the error names it, its value and what is
            allowed.
        RuntimeError: the model has no backward of several rows at once, as one with checkpoints; ``chunk=1`` needs
            none.
    """
    flag("create_graph", create_graph)
    flag("weights", weights)
    model = _torch.uncompiled(model)  # a compiled backward forms one row and has no derivative
    _check(model, images, output, create_graph)
    chunk = None if chunk is None else integer("chunk", chunk, 1)
    chosen = parse(targets, len(images), create_graph)
    x = images if create_graph and images.requires_grad else images.detach()
    with torch.inference_mode(False), torch.enable_grad(), explanation_mode(model):
        x = (x.clone() if x.is_inference() else x).requires_grad_()
        logits = _logits(model, x, output)
        rows = chosen.rows(logits)
        found = passes.form(logits, x, rows, chunk, create_graph, weights)
    kept = (lambda t: t) if create_graph else Tensor.detach
    return Explanation(kept(x), kept(logits), rows.named, found.weights, found.contributions)


def _check(model: Any, images: Any, output: Any, create_graph: bool) -> None:
    """Raises TypeError or ValueError for what can be wrong before the forward."""
    check_model(model)
    if not has_explanation_mode(model):
        raise ValueError(f"model: {type(model).__name__} has no B-cos layers, and only these have an explanation mode")
    for name, module in model.named_modules():
        where = f"its module {name!r} is" if name else "it is"
        if in_training(module) and not create_graph:
            raise ValueError(f"model: {where} in training mode: call model.eval() first")
        if create_graph and (wrapper := _torch.wrapper_without_second_backward(module)):
            raise ValueError(
                f"create_graph=True: model: {where} wrapped by {wrapper}, which loses gradients of a second backward: "
                "wrap a module whose forward calls explain, and nothing inside of it"
            )
    if not isinstance(images, Tensor):
        raise TypeError(f"images={type(images).__name__}: a tensor is needed")
    if not images.is_floating_point():
        raise TypeError(f"images has dtype {images.dtype}: a floating-point dtype is needed; of tokens the embeddings")
    if images.dim() not in (2, 3, 4) or not images.numel():
        shape = tuple(images.shape)
        raise ValueError(f"images has shape {shape}: not empty ones [N, C, H, W], [N, L, D] or [N, D] are needed")
    first = _first_convolution(model) if images.dim() == 3 else None
    if first is not None and first.weight.shape[1] in (len(images), 2 * len(images)):  # which takes a single image, too
        shape = tuple(images.shape)
        raise ValueError(f"images has shape {shape}: one image needs the dimension of a batch, as in images[None]")
    if isinstance(output, str):
        names = dict(model.named_modules())
        if not output or output not in names:
            raise ValueError(f"output={output!r}: the model has no module of this name")
    elif output is not None and not callable(output):
        raise TypeError(f"output={output!r}: the name of a module, a function or None is needed")


def _logits(model: nn.Module, x: Tensor, output: Output) -> Tensor:
    """What is explained, as ``[N, K]``."""
    with _telling_of_channels(model, x):
        if isinstance(output, str):
            found = _of_module(model, x, output)
        else:
            found = model(x) if output is None else output(model, x)
    found = found["logits"] if isinstance(found, Mapping) and "logits" in found else getattr(found, "logits", found)
    if not isinstance(found, Tensor):
        kind = type(found).__name__
        raise TypeError(f"the model returns {kind}, not a tensor: choose one by output=lambda model, images: ...")
    if found.dim() < 2 or len(found) != len(x):
        shape = tuple(found.shape)
        raise ValueError(f"the explained output has shape {shape}: for {len(x)} images [{len(x)}, K, ...] is needed")
    if not found.requires_grad:
        raise ValueError("the explained output has no graph: it was computed without gradients, or is detached")
    if found.dim() == 2:
        return found
    dtype = torch.promote_types(found.dtype, torch.float32)  # a sum of many positions in fp16 may be infinite
    return found.sum(1, dtype=dtype) if found.dim() == 3 else found.flatten(2).sum(2, dtype=dtype)


def _of_module(model: nn.Module, x: Tensor, name: str) -> Any:
    """The output of a module during a forward of the model; that of its last call."""
    seen: list[Any] = []
    hook = model.get_submodule(name).register_forward_hook(lambda module, args, result: seen.append(result))
    try:
        model(x)
    finally:
        hook.remove()
    if not seen:
        raise ValueError(f"output={name!r}: the model does not call this module")
    return seen[-1]


@contextmanager
def _telling_of_channels(model: nn.Module, x: Tensor):
    """Turns the error of a model that takes [x, 1 - x] and is given x into one that says so."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        first = _first_convolution(model)
        if first is None or x.dim() != 4 or first.weight.shape[1] != 2 * x.shape[1]:
            raise
        raise ValueError(
            f"images has shape {tuple(x.shape)}: the first convolution takes {first.weight.shape[1]} channels, which "
            "are [x, 1 - x]: apply AddInverse to the images, bcos_kernels.AddInverse()(images)"
        ) from error


def _first_convolution(model: nn.Module) -> nn.Conv2d | None:
    return next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
