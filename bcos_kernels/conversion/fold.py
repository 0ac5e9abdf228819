"""Folds what is constant in evaluation into the weights: the norms of the filters, and the batch norms behind them.

In evaluation an uncentered batch norm multiplies each channel by a constant f. At b = 2 the B-cos transform has degree
2 in its weights, so that the weights ``±√|f| · ŵ``, taken as they are, give the norm's output, and its explanation.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..adopt import layer as layers
from ..adopt import norm as norms
from ..adopt.accelerate import plan_of
from ..core import _torch
from ..core.checks import check_model, in_training
from ..modules import COS_EPS, BcosConv1d, BcosConv2d, BcosConv3d, BcosLayer, BcosLinear, Detachable
from ..transform.reference import unit_weight
from .readers import Readers, is_layer, is_norm
from .report import Report, Row

__all__ = ["fold"]


def fold(model: nn.Module) -> nn.Module:
    """A copy of a B-cos network that takes fewer passes in evaluation, for inference and for explanations in bulk.

    Every filter is divided by its norm once. Where b is 1 or 2, an uncentered batch norm that alone reads the output of
    a layer becomes a factor of the layer's weights (with b = 2 its root) and does nothing any more: the output of that
    layer is then the norm's. :mod:`torch.fx` finds which norm reads which layer; where it cannot trace a forward, all
    that this forward may call stays, as does everything else that is in doubt. The attribute ``folding`` of the copy is
    a :class:`bcos_kernels.conversion.Report` of every layer and every norm.

    Args:
        model: a B-cos network in evaluation, best an accelerated one. Layers stay as they are that have the late
            explanation mode, or that of the first version, which another method switches.

    Returns:
        The copy, with dtype, device and explanation modes of ``model``. Up to rounding its forward computes what that
        of ``model`` does, in evaluation. Its folded layers are :class:`bcos_kernels.BcosConv2d` and
        :class:`bcos_kernels.BcosLinear` with constant weights and with the ``out_dtype`` and ``backend`` that they were
        accelerated with; it needs this package. It loads the state dicts of folded copies alone.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: a module of ``model`` is in training mode or holds a tensor with a graph, as pruning leaves it, or
            ``model`` has no B-cos layer that can be folded.
    """
    check_model(model)
    for name, module in model.named_modules():
        if in_training(module):
            raise ValueError(f"model: {name or type(model).__name__} is in training mode: call model.eval() first")
        for held, value in vars(module).items():
            if isinstance(value, Tensor) and not value.is_leaf:
                raise ValueError(
                    f"model: {held} of {name or type(model).__name__} is computed from other tensors, which no copy "
                    "keeps: make it permanent first, as torch.nn.utils.prune.remove and remove_weight_norm do"
                )
    with torch.inference_mode(False):  # its weights could not be saved for a backward, which explanations need
        folded = copy.deepcopy(model)
        report = Report(tuple(_Folding(folded).run()))
    if not report.converted:
        why = "; ".join(f"{count}: {reason}" for reason, count in Counter(row.reason for row in report.rows).items())
        raise ValueError(f"model: {type(model).__name__} has no B-cos layer that can be folded: {why or 'it has none'}")
    folded.folding = report  # type: ignore[assignment]
    return folded


class _Formula(NamedTuple):
    """What a layer computes: ``|cos|^(b-1) · (ŵᵀx + bias) / scale``, with w itself where it is not ``unit``."""

    linear: Any
    b: float
    max_out: int
    unit: bool
    scale: float


SHARED = "it or the layer before it stands at several places"


class FoldedNorm(nn.Identity):
    """What a norm became that is part of the layer before it: the identity, in explanation mode as well."""

    def forward(self, input: Tensor) -> Tensor:
        """The input. Raises RuntimeError in training mode, in which the norm would have had other statistics."""
        if self.training:
            raise RuntimeError(
                "a folded network cannot be trained, because its norms are constants in its weights: "
                "call eval() on it, or train the network that it was made of"
            )
        return input

    def set_explanation_mode(self, activate: bool = True) -> None:
        """Changes nothing."""


class _Folding:
    """The folding of one copy of a model, which collects the rows of its report.

    Modules stay the objects that they are, because a model may hold some of them elsewhere, too: the models of ``bcos``
    keep a list of those with an explanation mode.
    """

    def __init__(self, model: nn.Module) -> None:
        self.rows: list[Row] = []
        self.modules: dict[str, Any] = dict(model.named_modules())
        self.places = Counter(map(id, (module for _, module in model.named_modules(remove_duplicate=False))))
        self.readers = Readers(model)

    def run(self) -> list[Row]:
        """Folds what can be folded."""
        read = set(self.readers.behind.values())
        for name, module in self.modules.items():
            if is_layer(module):
                self._fold(name, module)
            elif name not in read and is_norm(module):
                self._row(name, type(module), None, self._unread(name))
        return self.rows

    def _unread(self, name: str) -> str:
        """Why a norm is not known to be the one reader of a layer's output."""
        return self.readers.staying.get(name, "no B-cos layer is known whose output it reads alone")

    def _fold(self, name: str, layer: Any) -> None:
        """Folds a layer, and the norm behind it."""
        behind = self.readers.behind.get(name)
        norm = None if behind is None else self.modules[behind]
        cls, found = type(layer), self.readers.staying.get(name) or _formula(layer)
        if isinstance(found, str):
            self._row(name, cls, None, found)
            if norm is not None:
                self._row(behind, type(norm), None, "the layer before it stays as it is")
            return
        one = torch.ones((), dtype=torch.float64, device="cpu")
        factor: Tensor | str = one
        if norm is not None:
            factor = _factor(norm, found) if self.places[id(norm)] == self.places[id(layer)] == 1 else SHARED
        folds = norm is not None and isinstance(factor, Tensor)
        made = _layer(layer, found, factor if isinstance(factor, Tensor) else one)
        _become(layer, made)
        self._row(name, cls, type(made), "with the norm behind it" if folds else "")
        if isinstance(factor, str):
            self._row(behind, type(norm), None, factor)
        elif folds:
            self._row(behind, type(norm), FoldedNorm, "in the layer before it")
            _become(norm, FoldedNorm().eval())

    def _row(self, name: str | None, cls: type, became: type | None, reason: str) -> None:
        title = None if became is None else became.__name__
        self.rows.append(Row(name or "(model)", cls.__name__, title, reason))


def _become(module: Any, other: nn.Module) -> None:
    """Makes a module what ``other`` is; it stays the same object."""
    module.__class__ = type(other)
    module.__dict__ = vars(other)


# what a layer and a norm compute


def _formula(module: Any) -> _Formula | str:
    """The formula of a layer; or the reason why it stays as it is."""
    own = isinstance(module, BcosLayer)
    if own and type(module).__module__ != BcosLayer.__module__:
        return f"class {type(module).__name__} is derived from a layer of this package and may hold more"
    variant = layers.KIND.ours(module) if own else layers.find(module)
    if isinstance(variant, str):
        return variant
    if (reason := _hooked(module)) is not None:
        return reason
    if own:
        (b, exact_two), max_out, unit = module.exponent(), module.max_out, module.has_unit_filters()
        linear, scale = module.linear, getattr(module, "scale", 1.0)
    elif (reason := _unlike_ours(module, variant.attributes)) is not None:
        return reason
    else:
        (b, exact_two), unit = layers.exponent(module, variant), variant.normalize_weights
        max_out = module.max_out if "max_out" in variant.attributes else 1
        linear, scale = layers.weighted(module), layers.scale(module, variant) or 1.0
    b = float(b.detach() if isinstance(b, Tensor) else b)
    if b == 2 and not exact_two:
        return "it adds an ε to the cosine at b = 2, which the layers of this package do not"
    norm_eps = BcosLinear.norm_eps if isinstance(linear, nn.Linear) else BcosConv2d.norm_eps
    if variant.norm_eps != norm_eps or (b != 2 and variant.cos_eps != COS_EPS):
        return "its ε are not those of the layers of this package"
    if scale != 1 and b not in DEGREES:
        return f"its output is divided by {scale}, and b is neither 1 nor 2"
    return _Formula(linear, b, max_out, unit, scale)


def _unlike_ours(module: Any, has: frozenset[str]) -> str | None:
    """What a published layer has that the layers of this package have not."""
    if "dynamic_multiplication" in has:
        return "its explanation mode is the late one, which the backward reads"
    if not hasattr(module, "set_explanation_mode"):
        return "its explanation mode is not switched by set_explanation_mode, as that of a folded layer is"
    if "normalized_weights" in has and not module.normalized_weights:
        return "‖w‖ is part of its norm"
    return None


DEGREES = (1, 2)
"""The values of b at which the transform is homogeneous in its weights; at others an ε is added to the cosine."""


def _hooked(module: nn.Module) -> str | None:
    """The reason not to replace a module whose parts have hooks, which would be lost."""
    return "it has hooks, which would be lost" if any(map(_torch.has_hook, module.modules())) else None


def _factor(norm: Any, layer: _Formula) -> Tensor | str:
    """What a norm multiplies each channel by, ``[C]`` of fp64; or the reason why it stays."""
    if layer.b not in DEGREES:
        return f"b of the layer before it is {layer.b}, neither 1 nor 2"
    found: Any = norms.KIND.ours(norm) if isinstance(norm, Detachable) else norms.find(norm)
    if isinstance(found, str):
        return found
    variant = found[0].variant
    if variant.centered or variant.over not in ("batch", "all") or 4 not in variant.ranks:
        return "it is no uncentered batch norm of images"
    if isinstance(layer.linear, nn.Linear):
        return "the layer before it is linear, whose last axis is not that of the norm's channels"
    if norm.running_var is None:
        return "it has no running variance"
    if norm.bias is not None:
        return "it has a bias"
    if (reason := _hooked(norm)) is not None:
        return reason
    channels = len(layer.linear.weight) // layer.max_out
    if variant.over == "batch" and norm.num_features != channels:
        return f"it has {norm.num_features} channels, and the layer before it {channels}"
    one = torch.ones(1, channels, 1, 1, dtype=torch.float64, device=layer.linear.weight.device)
    with torch.no_grad():
        factor = copy.deepcopy(norm).double()(one).flatten()
    if not factor.isfinite().all():
        return "its factors are not finite"
    if layer.max_out > 1 and bool((factor < 0).any()):
        return "a factor is negative, and the layer before it keeps the largest of several outputs"
    return factor


CONVOLUTIONS: dict[type, Any] = {nn.Conv1d: BcosConv1d, nn.Conv2d: BcosConv2d, nn.Conv3d: BcosConv3d}


def _layer(module: Any, found: _Formula, factor: Tensor) -> BcosLayer:
    """The layer with weights that give ``factor`` times what ``module`` computes."""
    linear, plan = found.linear, plan_of(module)
    root = factor.to(linear.weight.device) / found.scale
    root = root.sign() * root.abs() ** (1 / found.b) if found.b in DEGREES else root
    root = root.expand(len(linear.weight) // found.max_out).repeat_interleave(found.max_out)
    weight = linear.weight.detach().double()
    weight = unit_weight(weight) if found.unit else weight
    options: dict[str, Any] = {
        "b": found.b,
        "max_out": found.max_out,
        "normalize_weights": False,
        "out_dtype": plan.out_dtype if plan else getattr(module, "out_dtype", None),
        "backend": plan.backend if plan else getattr(module, "backend", None),
        "device": "meta",
    }
    convolution = next((made for plain, made in CONVOLUTIONS.items() if isinstance(linear, plain)), None)
    if convolution is not None:
        names = "in_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"
        geometry = {name: getattr(linear, name) for name in names}
        made: Any = convolution(out_channels=linear.out_channels // found.max_out, **geometry, **options)
    else:
        made = BcosLinear(linear.in_features, linear.out_features // found.max_out, **options)
    made.linear.weight = _constant(weight * root.view(-1, *[1] * (weight.dim() - 1)), linear.weight)
    if linear.bias is not None:
        made.linear.bias = _constant(linear.bias.detach().double() * root, linear.bias)
    made.linear.register_state_dict_post_hook(_save_as_folded)
    made.linear.register_load_state_dict_pre_hook(_load_folded)
    made.set_explanation_mode(bool(module.detach))
    return made.eval()


FOLDED = "folded_"
"""What the names of folded weights begin with in state dicts, so that they are not taken for a model's own weights."""


def _save_as_folded(linear: nn.Module, state_dict: dict, prefix: str, local_metadata: dict) -> None:
    """Gives the folded weight and bias their names in a state dict."""
    for name in linear._parameters:
        if prefix + name in state_dict:
            state_dict[f"{prefix}{FOLDED}{name}"] = state_dict.pop(prefix + name)


def _load_folded(
    linear: nn.Module,
    state_dict: dict,
    prefix: str,
    local_metadata,
    strict,
    missing_keys,
    unexpected_keys,
    errors: list,
) -> None:
    """Finds the folded weight and bias in a state dict; those of a model that is not folded are an error."""
    for name in linear._parameters:
        if state_dict.pop(prefix + name, None) is not None:
            errors.append(
                f"{prefix}{name} is of a model that is not folded: load it into that model and fold it again."
            )
        if (value := state_dict.pop(f"{prefix}{FOLDED}{name}", None)) is not None:
            state_dict[prefix + name] = value


def _constant(value: Tensor, like: Tensor) -> nn.Parameter:
    """The value in the dtype and the memory format of a parameter."""
    return nn.Parameter(torch.empty_like(like).copy_(value), requires_grad=False)
