"""The passes that apply statistics over a batch, over all of x or over groups: y from x, and dx from the gradient."""

import triton
import triton.language as tl
from torch import Tensor

from ...gpu.functions import sums_of
from ...gpu.launch import launch
from ...gpu.rounding import cast
from ...gpu.sizes import cdiv
from ..call import Call
from . import tiles
from .arguments import counted, owner
from .formula import inverse_std, normalized, of_all, of_var, of_x
from .place import of_owner, offsets, part_of, per_channel

__all__ = ["backward", "forward", "gradient_map"]

_MAPPED = 128  # channels of a program that writes their map


@triton.jit
def norm_fwd_kernel(
    x_ptr, gamma_ptr, beta_ptr, mean_ptr, var_ptr, y_ptr, positions, channels, position_stride, channel_stride, parts,
    groups, group_channels, eps, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """y from x; ``mean_ptr`` is None where the norm is not centered. Source: B-cos Alignment, section 4.2."""
    SUMS: tl.constexpr = sums_of(x_ptr.dtype.element_ty)
    image, part, _, channel = part_of(parts, channels, BN)
    position = part * BM + tl.arange(0, BM)
    shift = of_owner(mean_ptr, image, channel, channels, groups, group_channels, 0.0, SUMS)
    r = inverse_std(of_owner(var_ptr, image, channel, channels, groups, group_channels, 1.0, SUMS), eps)
    gamma = per_channel(gamma_ptr, channel, channels, 1.0, SUMS)
    beta = per_channel(beta_ptr, channel, channels, 0.0, SUMS)
    at = offsets(image, position, channel, positions, channels, position_stride, channel_stride)
    inside = (position < positions)[:, None] & (channel < channels)[None, :]
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(SUMS)
    y = normalized(x, shift[None, :], r[None, :], gamma[None, :], beta[None, :])
    tl.store(y_ptr + at, cast(y, y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def norm_bwd_kernel(
    grad_ptr, x_ptr, gamma_ptr, mean_ptr, var_ptr, dvar_ptr, products_ptr, grads_ptr, dx_ptr,
    positions, channels, position_stride, channel_stride, parts, groups, group_channels, count, eps,
    BY_CHANNEL: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """dx from the gradient at y, from the sums for :func:`of_x` and :func:`of_all`, and from a gradient of var.

    The latter is that of a second derivative. Each of the last three is None where it adds nothing.

    With ``BY_CHANNEL`` they are sums of a channel alone, which lack the factor gamma; it comes last.
    """
    SUMS: tl.constexpr = sums_of(grad_ptr.dtype.element_ty)
    image, part, _, channel = part_of(parts, channels, BN)
    position = part * BM + tl.arange(0, BM)
    r = inverse_std(of_owner(var_ptr, image, channel, channels, groups, group_channels, 1.0, SUMS), eps)
    gamma = per_channel(gamma_ptr, channel, channels, 1.0, SUMS)
    first = tl.full((BN,), 1.0, SUMS) if BY_CHANNEL else gamma
    last = gamma * r if BY_CHANNEL else r
    at = offsets(image, position, channel, positions, channels, position_stride, channel_stride)
    inside = (position < positions)[:, None] & (channel < channels)[None, :]
    dx = tl.load(grad_ptr + at, mask=inside, other=0.0).to(SUMS) * first[None, :]
    from_mean = dx
    if products_ptr is not None or dvar_ptr is not None:
        mean = of_owner(mean_ptr, image, channel, channels, groups, group_channels, 0.0, SUMS)
        from_mean = tl.load(x_ptr + at, mask=inside, other=0.0).to(SUMS) - mean[None, :]
    if products_ptr is not None:
        products = of_owner(products_ptr, image, channel, channels, groups, group_channels, 0.0, SUMS)
        dx += of_x(r, products, count)[None, :] * from_mean
    if grads_ptr is not None:
        grads = of_owner(grads_ptr, image, channel, channels, groups, group_channels, 0.0, SUMS)
        dx += of_all(grads, count)[None, :]
    dx *= last[None, :]
    if dvar_ptr is not None:
        dvar = of_owner(dvar_ptr, image, channel, channels, groups, group_channels, 0.0, SUMS)
        dx += of_var(dvar, count)[None, :] * from_mean
    tl.store(dx_ptr + at, cast(dx, dx_ptr.dtype.element_ty), mask=inside)


@triton.jit
def norm_map_kernel(
    gamma_ptr, mean_ptr, var_ptr, dvar_ptr, products_ptr, grads_ptr, map_ptr, channels, group_channels, count, eps,
    BY_CHANNEL: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """map [4, channels]: of_grad, of_x, mean and offset, with which dx = grad · of_grad + (x − mean) · of_x + offset.

    The arguments are those of :func:`norm_bwd_kernel`.
    """
    SUMS: tl.constexpr = map_ptr.dtype.element_ty
    channel = tl.program_id(0) * BN + tl.arange(0, BN)
    inside = channel < channels
    image = tl.full((), 0, tl.int32)  # all images share the statistics
    r = inverse_std(of_owner(var_ptr, image, channel, channels, 0, group_channels, 1.0, SUMS), eps)
    gamma = per_channel(gamma_ptr, channel, channels, 1.0, SUMS)
    last = gamma * r if BY_CHANNEL else r
    mean = of_owner(mean_ptr, image, channel, channels, 0, group_channels, 0.0, SUMS)
    from_mean = tl.zeros((BN,), SUMS)
    if products_ptr is not None:
        products = of_owner(products_ptr, image, channel, channels, 0, group_channels, 0.0, SUMS)
        from_mean = of_x(r, products, count) * last
    if dvar_ptr is not None:
        from_mean += of_var(of_owner(dvar_ptr, image, channel, channels, 0, group_channels, 0.0, SUMS), count)
    offset = tl.zeros((BN,), SUMS)
    if grads_ptr is not None:
        offset = of_all(of_owner(grads_ptr, image, channel, channels, 0, group_channels, 0.0, SUMS), count) * last
    tl.store(map_ptr + channel, gamma * r, mask=inside)
    tl.store(map_ptr + channels + channel, from_mean, mask=inside)
    tl.store(map_ptr + 2 * channels + channel, mean, mask=inside)
    tl.store(map_ptr + 3 * channels + channel, offset, mask=inside)


def forward(call: Call, x: Tensor, gamma, beta, mean, var, y: Tensor) -> None:
    """Writes y, dense as x is."""
    m, n = tiles.tile(seen := tiles.view(call))
    parts = cdiv(seen.positions, m)
    launch(
        norm_fwd_kernel, (seen.images * parts * cdiv(seen.channels, n),),
        x, gamma, beta, mean if call.spec.centered else None, var, y, *seen[1:], parts, *owner(call), call.spec.eps,
        BM=m, BN=n,
    )  # fmt: skip


def backward(call: Call, grad: Tensor, x: Tensor, gamma, mean, var, dvar, products, grads, dx: Tensor) -> None:
    """Writes dx, dense as x is; ``dvar``, ``products`` and ``grads`` are those of the kernel."""
    m, n = tiles.tile(seen := tiles.view(call))
    parts = cdiv(seen.positions, m)
    launch(
        norm_bwd_kernel, (seen.images * parts * cdiv(seen.channels, n),),
        grad, x, gamma, mean, var, dvar, products, grads, dx,
        *seen[1:], parts, *owner(call), counted(call), call.spec.eps,
        BY_CHANNEL=owner(call)[1] == 1 and call.spec.over != "group", BM=m, BN=n,
    )  # fmt: skip


def gradient_map(call: Call, gamma, mean, var, dvar, products, grads, found: Tensor) -> None:
    """Writes the map of dx, ``[4, C]``, where all images share the statistics."""
    shared = owner(call)[1]
    launch(
        norm_map_kernel, (cdiv(call.channels, _MAPPED),),
        gamma, mean, var, dvar, products, grads, found, call.channels, shared, counted(call), call.spec.eps,
        BY_CHANNEL=shared == 1, BN=_MAPPED,
    )  # fmt: skip
