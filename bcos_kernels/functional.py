"""The stateless B-cos layers: ``bcos_linear`` and ``bcos_conv2d``.

Both compute ``y = |cos(x, w)|^(b-1) · ŵᵀx`` (Böhle et al., B-cos Networks, CVPR 2022, eq. 3; TPAMI 2024) in one fused
call per direction, on the fastest backend that serves the call.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from . import autograd, checks, dispatch
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
    checks.tensors(x, weight, bias, 2)
    checks.filters(weight, bias, max_out)
    if x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"x has shape {tuple(x.shape)}: (..., {weight.shape[1]}) is needed, as weight takes")
    return _transform(
        x, weight, bias, b, {}, max_out, normalize_weights, weight_in_norm, norm_eps, cos_eps, exact_two, detach,
        out_dtype, backend,
    )  # fmt: skip


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
        backend: ``"cpu"``, ``"reference"`` or None for the fastest that serves the call.

    Returns:
        ``[N, out_channels, OH, OW]`` (or without N), in the memory format that ``nn.Conv2d`` gives.

    Raises:
        TypeError, ValueError: an argument outside of the above, named with its value and what is allowed; also a
            ``backend`` that cannot serve the call, with its reasons.
    """
    checks.tensors(x, weight, bias, 4)
    stride, pads, dilation, groups = checks.conv2d_geometry(x, weight, stride, padding, dilation, groups, padding_mode)
    checks.filters(weight, bias, max_out, groups)
    unbatched = x.dim() == 3
    x = x.unsqueeze(0) if unbatched else x
    x, normed = _pad(x, pads, padding_mode)
    geometry = {"stride": stride, "padding": (pads[0], pads[2]), "dilation": dilation, "groups": groups}
    y = _transform(
        x, weight, bias, b, geometry, max_out, normalize_weights, weight_in_norm, norm_eps, cos_eps, exact_two, detach,
        out_dtype, backend, normed,
    )  # fmt: skip
    return y.squeeze(0) if unbatched else y


def _pad(x: Tensor, pads: tuple[int, int, int, int], padding_mode: str) -> tuple[Tensor, Tensor | None]:
    """The input of the convolution and, where it is another, of the norm: what symmetric zero padding cannot do."""
    top, bottom, left, right = pads
    zero_padded = F.pad(x, (0, right - left, 0, bottom - top)) if (bottom, right) != (top, left) else x
    if padding_mode == "zeros" or not any(pads):
        return zero_padded, None
    return F.pad(x, (left, right, top, bottom), mode=padding_mode), zero_padded


def _transform(
    x, weight, bias, b, geometry, max_out, normalize_weights, weight_in_norm, norm_eps, cos_eps, exact_two, detach,
    out_dtype, backend, normed=None,
) -> Tensor:  # fmt: skip
    """The part that both layers share: dtypes, the exponent, the choice of the backend, the call."""
    exponent, b = checks.exponent(b, x)
    state = checks.explanation_state(detach)
    checks.flag("normalize_weights", normalize_weights)
    x, weight, bias, normed, default_dtype = _autocast(x, weight, bias, normed, exponent)
    gain = None
    if checks.flag("weight_in_norm", weight_in_norm):
        checks.single_filters(max_out)
        weight, bias, gain = _weight_in_norm(weight, bias, normalize_weights)
        normalize_weights = not normalize_weights
    spec = Spec(
        **geometry,
        max_out=max_out,
        b=exponent,
        unit=normalize_weights,
        norm_eps=checks.norm_epsilons(norm_eps),
        cos_eps=checks.epsilon("cos_eps", cos_eps),
        exact_two=checks.flag("exact_two", exact_two),
        detach=state is None and detach,
        out_dtype=checks.out_dtype(out_dtype, x) or default_dtype,
    )
    call = Call(spec, x.device.type, x.dtype, weight.dtype, tuple(x.shape), tuple(weight.shape), normed is None)
    name = dispatch.choose(call, backend)
    with _without_autocast(x.device.type):
        if name == "reference":
            y = reference.bcos(x, weight, bias, b, spec, state, normed)
        elif spec.is_linear:
            rows = x.reshape(-1, x.shape[-1])
            y = autograd.bcos(rows, weight, bias, b, spec, state, name)
            y = y.view(*x.shape[:-1], weight.shape[0] // max_out)
        else:
            y = autograd.bcos(x, weight, bias, b, spec, state, name)
        return y if gain is None else y * gain.to(y.dtype)


def _without_autocast(device: str) -> AbstractContextManager:
    return torch.autocast(device, enabled=False) if checks.autocasts(device) else nullcontext()


def _autocast(x: Tensor, weight: Tensor, bias: Tensor | None, normed: Tensor | None, exponent: float | None):
    """Casts as autocast does for nn.Conv2d; the weight stays wide, so that its norm and gradient do; and y's dtype."""
    device = x.device.type
    y_dtype = x.dtype
    if checks.autocasts(device) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        x, normed = x.to(dtype), None if normed is None else normed.to(dtype)
        weight = weight if weight.dtype == torch.float32 else weight.to(dtype)
        y_dtype = dtype if exponent == 1 else torch.float32
    return x, weight, None if bias is None else bias.to(weight.dtype), normed, y_dtype


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
