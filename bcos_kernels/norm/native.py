"""How the compiled extension's kernels of norms are called, on the CPU and on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import rows
from .call import Call
from .spec import Inputs, Outputs

__all__ = ["Native"]


class Native(NamedTuple):
    """The functions of a candidate, by the kernels of one kind of device."""

    kernels: Callable[[], Any]
    """Returns the module of the extension that has them."""

    def forward(self, inputs: Inputs, call: Call, tile: None) -> tuple[Tensor, ...]:
        """The outputs; y is in x's memory format."""
        return self.kernels().norm_forward(*inputs, call.spec.native)

    def backward(
        self,
        grad: Tensor | None,
        inputs: Inputs,
        saved: Outputs,
        call: Call,
        tile: None,
        frozen: bool,
        needs,
        joined=(None,),
        as_map: bool = False,
    ) -> tuple:
        """The gradients of x, weight and bias; one not needed is None. ``frozen`` makes the variance a constant.

        ``joined`` holds the gradient of var that :meth:`second` returned; beside it ``grad`` may be None. Several
        gradients of every image, ``[T·N, ...]``, are rows of the dynamic linear map: see ``Candidate.takes_rows``. With
        ``as_map`` the map of dx stands in its place: see ``Candidate.gradient_map``.
        """
        if grad is None:
            grad = torch.zeros_like(inputs.x, dtype=call.spec.out_dtype)
        (x, weight, bias, mean, var), saved, call = rows.as_images(grad, inputs, saved, call)
        dx, dweight, dbias = self.kernels().norm_backward(
            grad, x, weight, mean, var, saved.mean, saved.var, *joined, call.spec.native, frozen, list(needs[:3]),
            as_map,
        )  # fmt: skip
        return dx, _like(dweight, weight), _like(dbias, bias), None, None

    def gradient_map(
        self, grad: Tensor, inputs: Inputs, saved: Outputs, call: Call, frozen: bool, needs, joined
    ) -> tuple:
        """The gradients with the map of dx in its place."""
        return self.backward(grad, inputs, saved, call, None, frozen, needs, joined, as_map=True)

    def second(
        self, v: Tensor, grad: Tensor, inputs: Inputs, saved: Outputs, call: Call, frozen: bool, wanted
    ) -> tuple:
        """The gradients of ⟨v, dx⟩: those of grad, x, weight, bias, mean, var and the variance of the forward."""
        x, weight, _, mean, var = inputs
        needs = [wanted[2], bool(call.intermediates)]
        dgrad, dweight, dvar = self.kernels().norm_second(
            v, grad, x, weight, mean, var, saved.mean, saved.var, call.spec.native, needs
        )
        return dgrad, None, _like(dweight, weight), None, None, None, *(() if dvar is None else (dvar,))


def _like(gradient: Tensor | None, parameter: Tensor | None) -> Tensor | None:
    return gradient if gradient is None or parameter is None else gradient.to(parameter.dtype)
