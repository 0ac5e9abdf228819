"""Operators beside their fakes: a compiler relies on the shapes, dtypes and strides that it is told of results."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import bcos_kernels as bk
from bcos_kernels.core import formats

convolution, linear, norm = bk.functional.bcos_conv2d, bk.functional.bcos_linear, bk.functional.norm
CALLS = {
    "3x3": (convolution, (2, 6, 5, 4), (8, 6, 3, 3), {"padding": 1}),
    "1x1": (convolution, (2, 16, 6, 4), (24, 16, 1, 1), {}),
    "1x1, stride 2": (convolution, (2, 16, 6, 4), (24, 16, 1, 1), {"stride": 2, "b": 1.5}),
    "one channel": (convolution, (2, 1, 5, 4), (8, 1, 3, 3), {"padding": 1}),
    "one filter": (convolution, (2, 6, 5, 4), (1, 6, 3, 3), {"padding": 1}),
    "one pixel": (convolution, (2, 6, 3, 3), (8, 6, 3, 3), {"b": 1.5}),
    "images of one pixel": (convolution, (2, 8, 1, 1), (16, 8, 1, 1), {}),
    "one image": (convolution, (1, 6, 5, 4), (8, 6, 3, 3), {"padding": 1}),
    "one column": (convolution, (2, 6, 5, 1), (8, 6, 3, 1), {}),
    "grouped": (convolution, (2, 8, 5, 4), (8, 4, 3, 3), {"padding": 1, "groups": 2}),
    "depthwise": (convolution, (2, 8, 5, 4), (8, 1, 3, 3), {"padding": 1, "groups": 8, "b": 1.5}),
    "max_out": (convolution, (2, 6, 5, 4), (8, 6, 3, 3), {"padding": 1, "max_out": 2}),
    "reflected": (convolution, (2, 6, 5, 4), (8, 6, 3, 3), {"padding": 1, "padding_mode": "reflect"}),
    "three axes": (bk.functional.bcos_conv3d, (2, 4, 3, 5, 4), (8, 4, 2, 2, 2), {}),
    "linear": (linear, (6, 8), (16, 8), {}),
    "linear, tokens": (linear, (2, 3, 8), (16, 8), {"b": 1.5}),
    "norm over the batch": (norm, (2, 6, 5, 4), (6,), {"over": "batch"}),
    "norm over all": (norm, (2, 6, 5, 4), (6,), {"over": "all", "centered": True}),
    "norm over groups": (norm, (2, 6, 5, 4), (6,), {"over": "group", "groups": 2}),
    "norm at positions": (norm, (2, 6, 5, 4), (6,), {"over": "position"}),
    "norm of tokens": (norm, (2, 5, 6), (6,), {"over": "token"}),
    "dynamic alignment": (bk.functional.dynamic_alignment, (2, 3, 5, 4), (7, 3, 3, 3), {"padding": 1}),
}
"""The function, the shapes of x and of the weight, or of the projection of a dynamic alignment layer, and options."""


def layouts(t: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The values of t in memory as layers and views of them leave it, or the first ones in place of them."""
    yield "contiguous", t.contiguous()
    yield "sliced", torch.stack([t, t], -1)[..., 0]
    yield "expanded", t[:1].expand(t.shape)
    if t.dim() == 1:
        return
    yield "transposed", t.transpose(-1, -2).contiguous().transpose(-1, -2)
    yield "first dimension innermost", t.movedim(0, -1).contiguous().movedim(-1, 0)
    yield "expanded channels", t[:, :1].expand(t.shape)
    if last := formats.CHANNELS_LAST.get(t.dim()):
        # contiguous() would return images of one pixel and filters of one tap as they are
        yield "channels_last", torch.empty(t.shape, dtype=t.dtype, memory_format=last).to(t.device).copy_(t)
        yield "channels_last, sliced", torch.cat([t, t], 1).contiguous(memory_format=last)[:, : t.shape[1]]
        yield "channels_last, transposed", t.transpose(2, 3).contiguous(memory_format=last).transpose(2, 3)


class Compared(TorchDispatchMode):
    """Compares the results of every operator of this package with what its fake says; ``wrong`` holds the others."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: set[str] = set()
        self.wrong: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        if func.namespace == "bcos_kernels":
            self.operators.add(func.name())
            with FakeTensorMode() as mode:
                fakes = func(*(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in args))
            named = zip(func._schema.returns, results, fakes, strict=True)
            self.wrong += [
                f"{func.name()}: {result.name} is {told(real)}, its fake {told(fake)}"
                for result, real, fake in named
                if told(real) != told(fake)
            ]
        return results


def told(t: Tensor) -> tuple:
    """What a compiler relies on: the strides of the sizes other than 1."""
    strides = [stride for stride, size in zip(t.stride(), t.shape, strict=True) if size != 1 and t.numel()]
    return tuple(t.shape), tuple(strides), t.dtype, t.device.type


def wrong_fakes(name: str, dtype: torch.dtype, device: str, moved: Callable = layouts) -> list[str]:
    """What is wrong of a call's operators, with x, the weight and the gradient in every layout, one at a time."""
    function, *shapes, options = CALLS[name]
    aligns = function is bk.functional.dynamic_alignment
    torch.manual_seed(0)
    x, weight = (torch.randn(shape).to(device, dtype) for shape in shapes)
    others = [torch.randn(shape).to(device, dtype) for shape in ((4 * 27, 7, 1, 1), (4 * 27,))] if aligns else []
    found = []

    def compare(x: Tensor, weight: Tensor, grad: Tensor | None, what: str) -> Tensor:
        inputs = [t.detach().requires_grad_() for t in (x, weight, *others)]
        with Compared() as compared:
            y = function(*inputs, **options)
            torch.autograd.grad(y, inputs, torch.randn_like(y) if grad is None else grad)
        assert len(compared.operators) == 2, compared.operators  # a forward and its backward
        found.extend(f"{what}: {text}" for text in compared.wrong)
        return y.detach()

    y = compare(x, weight, None, "as made")
    for layout, x_moved in moved(x):
        compare(x_moved, weight, None, f"x {layout}")
    for layout, weight_moved in moved(weight):
        compare(x, weight_moved, None, f"weight {layout}")
        if x.dim() in formats.CHANNELS_LAST:
            compare(formats.channels_last(x), weight_moved, None, f"x channels_last, weight {layout}")
    for layout, grad in moved(torch.randn_like(y)):
        compare(x, weight, grad, f"gradient {layout}")
    return found
