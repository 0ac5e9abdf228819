"""Tensors whose strides are not those of a dense tensor, as slices and autograd make them."""

import torch

from bcos_kernels.core import formats


def odd_gradients(y):
    """Gradients of y with every kind of strides that autograd produces, by name."""
    gen = torch.Generator().manual_seed(3)

    def normal(*shape):
        return torch.randn(shape, generator=gen, dtype=y.dtype).to(y.device)

    full = normal(*y.shape[:-1], 2 * y.shape[-1])
    yield "sliced", full[..., ::2]
    yield "cat-split", full[..., y.shape[-1] :]
    yield "transposed", normal(*y.shape[::-1]).permute(*range(y.dim() - 1, -1, -1))
    yield "expanded", torch.ones((), dtype=y.dtype, device=y.device).expand(y.shape)
    yield "row expanded", normal(y.shape[-1]).expand(y.shape)
    if y.dim() == 4:
        yield "channels permuted", normal(*y.shape[:1], *y.shape[:0:-1]).transpose(1, 3)
    if y.dim() in (4, 5):
        yield "channels_last", formats.channels_last(full[..., : y.shape[-1]])


def odd_views(x):
    """The values of x with other strides."""
    yield torch.stack([x, x], -1)[..., 0]
    yield torch.cat([x, x], -1)[..., x.shape[-1] :]
    yield x.transpose(0, -1).contiguous().transpose(0, -1)
