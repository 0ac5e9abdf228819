"""The stateless B-cos layers: ``bcos_linear`` and ``bcos_conv2d``.

Both compute ``y = |cos(x, w)|^(b-1) · ŵᵀx`` (Böhle et al., B-cos Networks, CVPR 2022, eq. 3; TPAMI 2024) in one fused
call per direction, on the fastest backend that serves the call.
"""

from __future__ import annotations

from collections.abc import MutableMapping

import torch
from torch import Tensor

from .transform.functional import transform

__all__ = ["bcos_conv2d", "bcos_linear"]


def __dir__() -> list[str]:
    return __all__


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
    options = max_out, normalize_weights, weight_in_norm, norm_eps, cos_eps, exact_two, out_dtype, backend
    return transform(x, weight, bias, b, detach, (), options)


def bcos_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] | str = 0,
    dilation: int | tuple[int, ...] = 1,
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
        backend: ``"cpu"``, ``"cuda"``, ``"triton"``, ``"cuda,triton"`` (each direction by the faster),
            ``"reference"``, or None for the fastest that serves the call.

    Returns:
        ``[N, out_channels, OH, OW]`` (or without N), in the memory format that ``nn.Conv2d`` gives.

    Raises:
        TypeError, ValueError: an argument outside of the above, named with its value and what is allowed; also a
            ``backend`` that cannot serve the call, with its reasons.
    """
    geometry = stride, padding, dilation, groups, padding_mode
    options = max_out, normalize_weights, weight_in_norm, norm_eps, cos_eps, exact_two, out_dtype, backend
    return transform(x, weight, bias, b, detach, geometry, options)
