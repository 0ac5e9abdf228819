"""The B-cos layers, the norms between them and dynamic alignment units as functions.

``bcos_linear``, ``bcos_conv1d``, ``bcos_conv2d``, ``bcos_conv3d``, ``norm`` and ``dynamic_alignment``.

The layers compute ``y = |cos(x, w)|^(b-1) · ŵᵀx`` (Böhle et al., B-cos Networks, CVPR 2022, eq. 3; TPAMI 2024). Each is
one fused call per direction, on the fastest backend that serves the call.
"""

from __future__ import annotations

from collections.abc import MutableMapping

import torch
from torch import Tensor

from .dynamic_alignment.functional import dynamic_alignment as _dynamic_alignment
from .norm.functional import norm as _norm
from .transform.functional import transform

__all__ = ["bcos_conv1d", "bcos_conv2d", "bcos_conv3d", "bcos_linear", "dynamic_alignment", "norm"]


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
    """The B-cos linear layer: x ``[..., in_features]`` -> ``[..., out_features]``.

    ``weight`` is ``[out_features·max_out, in_features]``. The other arguments and the errors are those of
    :func:`bcos_conv2d`. By default the norm's epsilon is added to the root and not inside it, as in ``bcos``.
    """
    options = max_out, normalize_weights, weight_in_norm, norm_eps, cos_eps, exact_two, out_dtype, backend
    return transform(x, weight, bias, b, detach, (), options)


def bcos_conv1d(
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
    """The B-cos 1-D convolution: x ``[N, in_channels, L]`` -> ``[N, out_channels, OL]``.

    ``weight`` is ``[out_channels·max_out, in_channels/groups, kL]``, and x may lack N. ``stride``, ``padding`` and
    ``dilation`` are as in ``torch.nn.Conv1d``. The formula, the other arguments and the errors are those of
    :func:`bcos_conv2d`.
    """
    geometry = 1, stride, padding, dilation, groups, padding_mode
    options = max_out, normalize_weights, weight_in_norm, norm_eps, cos_eps, exact_two, out_dtype, backend
    return transform(x, weight, bias, b, detach, geometry, options)


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
    """The B-cos 2-D convolution.

    ``y = s · l`` with ``l = x ⋆ ŵ + bias``, ``s = (|l|/n + cos_eps)^(b-1)`` and ``n`` the norm of the input patch
    (Böhle et al., CVPR 2022, eq. 3). Neither y nor any derivative is NaN at a zero patch or a zero filter.

    Args:
        x: ``[N, in_channels, H, W]`` or ``[in_channels, H, W]``; fp64, fp32, bf16 or fp16, any strides.
        weight: ``[out_channels·max_out, in_channels/groups, kH, kW]``, of x's dtype and device.
        bias: ``[out_channels·max_out]``, added to ``l`` (B-cosification), or None.
        stride, padding, dilation, groups, padding_mode: as in ``torch.nn.Conv2d``. The patch norm pads with zeros in
            every mode, as the reference does.
        b: the exponent, a number of at least 1 or a tensor of one value. A tensor gets its gradient; the host never
            reads its value.
        max_out: filters per output channel, of which the largest ``l`` is kept (filter index ``o·max_out + m``).
        normalize_weights: True takes unit filters, ``ŵ = w/‖w‖``; False takes w itself in place of ŵ (B-cosification).
        weight_in_norm: True multiplies n by ‖w‖ (model guidance's layers without unit weights); needs ``max_out=1``.
            Beside a bias the formula in plain PyTorch serves the call.
        norm_eps: ``n = √(Σx² + norm_eps[0]) + norm_eps[1]``; at least one of the two must be above 0.
        cos_eps: added to the cosine unless b is 1 or 2.
        exact_two: False adds ``cos_eps`` at b = 2 as well.
        detach: True freezes the scale in the forward (the early explanation mode, that of ``bcos``). A mapping gives
            the late mode, that of model guidance: ``detach["fixed_weights"]`` is read when the backward runs.
        out_dtype: dtype of y: x's dtype, or fp32 for half-precision x. None gives what the reference does: x's dtype,
            under autocast fp32 (for b = 1 autocast's dtype), and that to which a b of shape ``(1,)`` promotes it.
        backend: ``"cpu"``, ``"cuda"``, ``"triton"``, ``"cuda,triton"`` (the faster one serves each direction) or
            ``"reference"``; None chooses the fastest that serves the call.

    Returns:
        ``[N, out_channels, OH, OW]``, without N if x has none, in the memory format that ``nn.Conv2d`` gives. The
        reference's maximum over ``max_out`` filters is contiguous in every case.

    Raises:
        TypeError, ValueError: an argument is not as described above; the error names it, its value and what is
            allowed. Or ``backend`` cannot serve the call; the error lists the reasons.
    """
    geometry = 2, stride, padding, dilation, groups, padding_mode
    options = max_out, normalize_weights, weight_in_norm, norm_eps, cos_eps, exact_two, out_dtype, backend
    return transform(x, weight, bias, b, detach, geometry, options)


def bcos_conv3d(
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
    """The B-cos 3-D convolution: x ``[N, in_channels, D, H, W]`` -> ``[N, out_channels, OD, OH, OW]``.

    ``weight`` is ``[out_channels·max_out, in_channels/groups, kD, kH, kW]``, and x may lack N. ``stride``, ``padding``
    and ``dilation`` are as in ``torch.nn.Conv3d``. The formula, the other arguments and the errors are those of
    :func:`bcos_conv2d`.
    """
    geometry = 3, stride, padding, dilation, groups, padding_mode
    options = max_out, normalize_weights, weight_in_norm, norm_eps, cos_eps, exact_two, out_dtype, backend
    return transform(x, weight, bias, b, detach, geometry, options)


def norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    over: str = "batch",
    groups: int = 1,
    centered: bool = False,
    mean: Tensor | None = None,
    var: Tensor | None = None,
    eps: float = 1e-5,
    detach: bool | MutableMapping = False,
    out_dtype: torch.dtype | None = None,
    return_statistics: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """The norms between B-cos layers: ``y = γ · (x − [centered] mean) / √(var + eps) + β``.

    ``var`` is the biased variance around the mean, also in norms that leave the mean in x (Böhle et al., B-cos
    Alignment, TPAMI 2024, section 4.2; the package ``bcos``). One pass over x forms the statistics and one applies
    them; the backward keeps x and the statistics, and nothing of x's size beside them.

    Args:
        x: ``[N, C, ...]``; ``[..., C]`` for ``over="token"``. fp64, fp32, bf16 or fp16, any strides.
        weight, bias: γ and β ``[C]``, or None; ``[1]`` is allowed for ``over="all"``.
        over: which values share a mean and a variance: ``"batch"``, those of a channel; ``"all"``, all of x;
            ``"group"``, those of a group of channels of an image (one group: layer norm; C groups: instance norm);
            ``"position"``, the channels at a position; ``"token"``, the last dimension of x.
        groups: the number of groups for ``over="group"``.
        centered: whether the mean is subtracted.
        mean, var: running statistics ``[C]`` to take in place of x's own, for ``over="batch"`` and ``"all"``; they are
            constants. ``mean`` belongs to a centered norm alone.
        eps: added to the variance.
        detach: True makes the variance a constant of the forward (the early explanation mode, that of ``bcos``). A
            mapping gives the late mode, that of model guidance: ``detach["fixed_weights"]`` is read when the backward
            runs. The mean is differentiated in both.
        out_dtype: dtype of y: x's dtype, or fp32 for half-precision x. None gives the common dtype of x, weight and
            bias, and fp32 under autocast, as the reference does.
        return_statistics: True returns ``(y, mean, var)``; the statistics are constants, and empty where ``var`` is
            given. Their shape is ``[C]`` over the batch, ``[1]`` over all, ``[N, groups]`` over groups, and that of the
            positions or tokens otherwise.
        backend: ``"cpu"``, ``"cuda"``, ``"triton"``, ``"cuda,triton"`` (the faster one serves each direction) or
            ``"reference"``; None chooses the fastest that serves the call.

    Returns:
        y of x's shape and memory format.

    Raises:
        TypeError, ValueError: an argument is not as described above; the error names it, its value and what is
            allowed. Or ``backend`` cannot serve the call; the error lists the reasons.
    """
    outputs = _norm(x, weight, bias, mean, var, detach, (over, groups, centered, eps, False, out_dtype, backend))
    if not return_statistics:
        return outputs.y
    if over == "token":  # which the op knows as rows
        return outputs.y, outputs.mean.view(x.shape[:-1]), outputs.var.view(x.shape[:-1])
    return outputs.y, outputs.mean, outputs.var


def dynamic_alignment(
    x: Tensor,
    projection: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] = 0,
    groups: int = 1,
    *,
    norm: str = "squash",
    detach: bool = False,
    backend: str | None = None,
) -> Tensor:
    """A convolution of dynamic alignment units, the layer of CoDA-Nets.

    ``y = scale(‖w‖) · wᵀu`` for every patch u and every output. The dynamic weights ``w = weight h + bias`` are made of
    the patch itself, by ``h = projection ⋆ x`` (Böhle et al., Convolutional Dynamic Alignment Networks, CVPR 2021,
    arXiv 2104.00032, eqs. 1 to 3). The dynamic weights of all pixels are never in memory at once. Neither y nor any
    derivative is NaN where w is zero; y is 0 there.

    Args:
        x: ``[N, C, H, W]`` or ``[C, H, W]``; fp64, fp32, bf16 or fp16, any strides.
        projection: ``[rank, C, kH, kW]``, of x's dtype and device, as all tensors are.
        weight: ``[P·O, rank/groups, 1, 1]`` with P = C·kH·kW values in a patch and O outputs; row p·O + o makes the
            dynamic weight of output o for value p.
        bias: ``[P·O]``, or None.
        stride, padding: of the patches, as in ``torch.nn.Conv2d``; the padding is zeros.
        groups: of the convolution that ``weight`` belongs to: each of its groups of rows sees its own part of h.
        norm: ``"squash"``, with the scale ‖w‖₂/(1 + ‖w‖₂²); ``"l2"``, 1/‖w‖₂; ``"l1"``, 1/‖w‖₁.
        detach: True makes constants of the dynamic weights and their norms: the explanation mode.
        backend: ``"cpu"``, ``"cuda"``, ``"triton"``, ``"cuda,triton"`` (the faster one serves each direction);
            ``"torch"``, PyTorch's operators in tiles of pixels; or ``"reference"``, which holds all dynamic weights.
            None chooses the fastest that serves the call.

    Returns:
        ``[N, O, OH, OW]``, without N if x has none, of x's dtype and memory format; fp32 under autocast, as in the
        authors' code.

    Raises:
        TypeError, ValueError: an argument is not as described above; the error names it, its value and what is
            allowed. Or ``backend`` cannot serve the call; the error lists the reasons.
    """
    return _dynamic_alignment(x, projection, weight, bias, detach, (stride, padding, groups, norm, backend))
