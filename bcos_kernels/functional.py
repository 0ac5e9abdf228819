"""The stateless B-cos layers: ``bcos_linear`` and ``bcos_conv2d``.

Both compute ``y = |cos(x, w)|^(b-1) · ŵᵀx`` (Böhle et al., B-cos Networks, CVPR 2022, eq. 3; TPAMI 2024) in one fused
call per direction, on the fastest backend that serves the call.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from contextlib import nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import _get_overloaded_args, handle_torch_function, has_torch_function_variadic

from . import autograd, checks, dispatch, tally
from .backends import reference
from .spec import Call, Spec

__all__ = ["bcos_conv2d", "bcos_linear"]


def bcos_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    b: float | Tensor = 2.0,
    max_out: int = 1,
    normalize_weights: bool = True,
    weight_in_norm: bool = False,
    norm_eps: tuple[float, float] = (0.0, 1e-12),
    cos_eps: float = 1e-6,
    exact_two: bool = True,
    detach: bool | MutableMapping = False,
    out_dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> Tensor:
    """B-cos linear layer: x ``[..., in_features]`` -> ``[..., out_features]``.

    ``weight`` is ``[out_features·max_out, in_features]``. The other arguments and the errors are those of
    :func:`bcos_conv2d`; by default the norm's epsilon stands beside the root, as in ``bcos``.
    """
    options = (max_out, normalize_weights, weight_in_norm, norm_eps, cos_eps, exact_two, out_dtype, backend)
    return transform(x, weight, bias, b, detach, (), options)


def bcos_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    b: float | Tensor = 2.0,
    max_out: int = 1,
    normalize_weights: bool = True,
    weight_in_norm: bool = False,
    norm_eps: tuple[float, float] = (1e-6, 0.0),
    cos_eps: float = 1e-6,
    exact_two: bool = True,
    detach: bool | MutableMapping = False,
    out_dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> Tensor:
    """B-cos 2-D convolution.

    ``y = s · l`` with ``l = x ⋆ ŵ + bias``, ``s = (|l|/n + cos_eps)^(b-1)`` and ``n`` the norm of the input patch
    (Böhle et al., CVPR 2022, eq. 3). No zero patch and no zero filter yields NaN, in any derivative.

    Args:
        x: ``[N, in_channels, H, W]`` or ``[in_channels, H, W]``; fp64, fp32, bf16 or fp16, any strides.
        weight: ``[out_channels·max_out, in_channels/groups, kH, kW]``, of x's dtype and device.
        bias: ``[out_channels·max_out]``, added to ``l`` (B-cosification), or None.
        stride, padding, dilation, groups, padding_mode: as of ``torch.nn.Conv2d``. The patch norm pads with zeros in
            every mode, as the reference does.
        b: exponent of at least 1, or a tensor of one value, which gets its gradient and is never read by the host.
        max_out: filters per output channel, of which the largest ``l`` is kept (filter index ``o·max_out + m``).
        normalize_weights: ``ŵ = w/‖w‖`` per filter; False takes w itself (B-cosification).
        weight_in_norm: multiplies n by ‖w‖ (model guidance's layers without unit weights); needs ``max_out=1``.
        norm_eps: ``n = √(Σx² + norm_eps[0]) + norm_eps[1]``; one of both is above 0.
        cos_eps: added to the cosine unless b is 1 or 2.
        exact_two: False keeps ``cos_eps`` at b = 2 as well.
        detach: True freezes the scale in the forward (explanation mode of ``bcos``); a mapping is the late mode of
            model guidance: ``detach["fixed_weights"]`` is read when the backward runs.
        out_dtype: dtype of y; default x's dtype, and under autocast fp32 as the reference's (b = 1: autocast's dtype).
        backend: ``"cpu"``, ``"gpu"`` (``"cuda"`` and ``"triton"``, each direction by the faster), ``"cuda"``,
            ``"triton"``, ``"reference"``, or None for the fastest that serves the call.

    Returns:
        ``[N, out_channels, OH, OW]`` (or without N), in the memory format that ``nn.Conv2d`` gives.

    Raises:
        TypeError, ValueError: an argument outside of the above, named with its value and what is allowed; also a
            ``backend`` that cannot serve the call, with its reasons.
    """
    geometry = (stride, padding, dilation, groups, padding_mode)
    options = (max_out, normalize_weights, weight_in_norm, norm_eps, cos_eps, exact_two, out_dtype, backend)
    return transform(x, weight, bias, b, detach, geometry, options)


class Plan(NamedTuple):
    """What the shapes, dtypes and options of a call decide, whatever its numbers."""

    spec: Spec
    backend: str
    padding: tuple[tuple[int, int, int, int], str] | None
    """``(top, bottom, left, right)`` and the mode, where the symmetric zero padding of the kernels does not do."""
    casts: tuple[torch.dtype, torch.dtype] | None
    """What autocast makes of x and of weight; None outside of it."""
    unbatched: bool
    weight_in_norm: bool


_PLANS: dict[tuple, Plan] = {}
_MOST_PLANS = 4096


def transform(x, weight, bias, b, detach, geometry: tuple, options: tuple) -> Tensor:
    """What both layers do; ``geometry`` is empty for the linear one."""
    inputs = (x, weight, bias, b)
    if has_torch_function_variadic(*inputs) and _get_overloaded_args(inputs):  # subclasses of Tensor keep their type
        return handle_torch_function(transform, inputs, *inputs, detach, geometry, options)
    plan = _plan(x, weight, bias, b, detach, geometry, options)
    spec, backend, state, normed, gain = plan.spec, plan.backend, checks.explanation_state(detach), None, None
    b = b if spec.b is None else None
    if plan.unbatched:
        x = x.unsqueeze(0)
    if plan.padding is not None:
        x, normed = _pad(x, *plan.padding)
    if plan.casts is not None:
        x, weight, bias, normed = _cast(x, weight, bias, normed, *plan.casts)
    if plan.weight_in_norm:
        weight, bias, gain = _weight_in_norm(weight, bias, not spec.unit)
    with nullcontext() if plan.casts is None else torch.autocast(x.device.type, enabled=False):
        if backend == "reference":
            if options[-1] is None and not torch.compiler.is_compiling():  # the caller did not ask for it
                tally.plain("bcos_linear" if spec.is_linear else "bcos_conv2d", "the backend 'reference' serves it")
            y = reference.bcos(x, weight, bias, b, spec, state, normed)
        elif spec.is_linear and x.dim() != 2:
            y = autograd.bcos(x.reshape(-1, x.shape[-1]), weight, bias, b, spec, state, backend)
            y = y.view(*x.shape[:-1], y.shape[-1])
        else:
            y = autograd.bcos(x, weight, bias, b, spec, state, backend)
        y = y if gain is None else y * gain.to(y.dtype)
    return y.squeeze(0) if plan.unbatched else y


def _plan(x, weight, bias, b, detach, geometry: tuple, options: tuple) -> Plan:
    """The plan of the call: made, and the arguments checked, once for all calls in which a plan reads the same."""
    if torch.compiler.is_compiling():  # sizes may be symbols there
        return _make_plan(x, weight, bias, b, detach, geometry, options)
    values = ((b.shape, b.dtype, b.device) if isinstance(b, Tensor) else b, *geometry, *options)
    try:
        key = (
            x.shape, x.dtype, x.device, x.layout, weight.shape, weight.dtype, weight.device, weight.layout,
            bias if bias is None else (bias.shape, bias.dtype, bias.device, bias.layout),
            checks.autocast_dtype(x.device.type), dispatch.FORCED, *dispatch.BACKENDS.values(), detach is True, values,
            # True, 1 and 1.0 are equal, but not all allowed
            type(detach), type(b), *map(type, values), *[type(v) for t in values if isinstance(t, tuple) for v in t],
        )  # fmt: skip
        plan = _PLANS.get(key)
    except (AttributeError, TypeError):  # no tensor, or no hash: a list, a size that is a symbol
        return _make_plan(x, weight, bias, b, detach, geometry, options)
    if plan is None:
        trace = torch._C._get_tracing_state()
        if trace is not None:  # sizes are tensors while torch.jit.trace runs
            return _untraced(trace, x, weight, bias, b, detach, geometry, options)
        plan = _make_plan(x, weight, bias, b, detach, geometry, options)
        if len(_PLANS) >= _MOST_PLANS:
            _PLANS.clear()
        _PLANS[key] = plan
    return plan


def _untraced(trace, *args) -> Plan:
    """A plan whose making is not recorded: a trace holds what is computed."""
    torch._C._set_tracing_state(None)
    try:
        return _make_plan(*args)
    finally:
        torch._C._set_tracing_state(trace)


def _make_plan(x, weight, bias, b, detach, geometry: tuple, options: tuple) -> Plan:
    """Checks every argument and chooses the backend."""
    max_out, normalize_weights, weight_in_norm, norm_eps, cos_eps, exact_two, out_dtype, backend = options
    if geometry:
        checks.tensors(x, weight, bias, 4)
        stride, pads, dilation, groups = checks.conv2d_geometry(x, weight, *geometry)
        checks.filters(weight, bias, max_out, groups)
        zero_padded = geometry[-1] == "zeros" or not any(pads)
        padding = None if zero_padded and pads[::2] == pads[1::2] else (pads, geometry[-1])
        shape = _padded_shape(x, pads, zero_padded)
        convolution = {"stride": stride, "padding": (pads[0], pads[2]), "dilation": dilation, "groups": groups}
    else:
        checks.tensors(x, weight, bias, 2)
        checks.filters(weight, bias, max_out)
        if x.dim() == 0 or x.shape[-1] != weight.shape[1]:
            raise ValueError(f"x has shape {tuple(x.shape)}: (..., {weight.shape[1]}) is needed, as weight takes")
        shape, zero_padded, padding, convolution = tuple(x.shape), True, None, {}
    exponent, _ = checks.exponent(b, x)
    state = checks.explanation_state(detach)
    checks.flag("normalize_weights", normalize_weights)
    if checks.flag("weight_in_norm", weight_in_norm):
        checks.single_filters(max_out)
    casts, dtype, weight_dtype, y_dtype = _dtypes(x, weight, exponent)
    spec = Spec(
        **convolution,
        max_out=max_out,
        b=exponent,
        unit=normalize_weights != weight_in_norm,
        norm_eps=checks.norm_epsilons(norm_eps),
        cos_eps=checks.epsilon("cos_eps", cos_eps),
        exact_two=checks.flag("exact_two", exact_two),
        detach=state is None and detach,
        out_dtype=checks.out_dtype(out_dtype, dtype) or y_dtype,
    )
    call = Call(spec, x.device.type, dtype, weight_dtype, shape, tuple(weight.shape), zero_padded)
    name = dispatch.choose(call, backend)
    unbatched = geometry != () and x.dim() == 3
    return Plan(spec, name, padding, (dtype, weight_dtype) if casts else None, unbatched, weight_in_norm)


def _padded_shape(x: Tensor, pads: tuple[int, int, int, int], zero_padded: bool) -> tuple[int, ...]:
    """Shape of the kernel's input, as :func:`_pad` makes it."""
    top, bottom, left, right = pads
    *batch, channels, height, width = x.shape
    more = (bottom - top, right - left) if zero_padded else (top + bottom, left + right)
    return *(batch or (1,)), channels, height + more[0], width + more[1]


def _pad(x: Tensor, pads: tuple[int, int, int, int], padding_mode: str) -> tuple[Tensor, Tensor | None]:
    """The input of the convolution and, where it is another, of the norm: what symmetric zero padding cannot do."""
    top, bottom, left, right = pads
    zero_padded = F.pad(x, (0, right - left, 0, bottom - top)) if (bottom, right) != (top, left) else x
    if padding_mode == "zeros" or not any(pads):
        return zero_padded, None
    return F.pad(x, (left, right, top, bottom), mode=padding_mode), zero_padded


def _dtypes(x: Tensor, weight: Tensor, exponent: float | None):
    """Whether autocast is on, and the dtypes of x, weight and y: autocast casts as for nn.Conv2d.

    The weight stays wide, so that its norm and gradient do.
    """
    dtype = checks.autocast_dtype(x.device.type)
    if dtype is None or x.dtype == torch.float64:
        return dtype is not None, x.dtype, weight.dtype, x.dtype
    weight_dtype = torch.float32 if weight.dtype == torch.float32 else dtype
    return True, dtype, weight_dtype, dtype if exponent == 1 else torch.float32


def _cast(x: Tensor, weight: Tensor, bias: Tensor | None, normed: Tensor | None, dtype, weight_dtype):
    bias, normed = None if bias is None else bias.to(weight_dtype), None if normed is None else normed.to(dtype)
    return x.to(dtype), weight.to(weight_dtype), bias, normed


def _weight_in_norm(weight: Tensor, bias: Tensor | None, normalize_weights: bool):
    """``(weight, bias, gain)`` of an equal transform without ‖w‖ in its norm.

    Dividing l and n·‖w‖ by ‖w‖ leaves the cosine as it is and takes a factor ‖w‖ out of y = s·l.
    """
    norm = reference.weight_norm(weight)
    inverse = torch.where(norm == 0, 0, 1 / torch.where(norm == 0, 1, norm))
    shape = (-1, *[1] * (weight.dim() - 1))
    if normalize_weights:
        weight = weight * inverse.square().view(shape).to(weight.dtype)
    bias = None if bias is None else bias * inverse.to(bias.dtype)
    return weight, bias, norm.view(shape[:-1])
