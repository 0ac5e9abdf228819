"""The layer of CoDA-Nets as a module, with the parameter names of the authors' code.

Source: Böhle et al., Convolutional Dynamic Alignment Networks, CVPR 2021 (arXiv 2104.00032), eqs. 1 to 3.
"""

from __future__ import annotations

from math import prod
from typing import Any, cast

from torch import Tensor, nn

from .core.checks import flag, integer, pair
from .dynamic_alignment import NORMS
from .dynamic_alignment.parts import by_parts
from .functional import dynamic_alignment
from .modules import Detachable
from .transform import parts

__all__ = ["DAUConv2d"]


class DAUConv2d(Detachable):
    """A convolution of dynamic alignment units: ``y = scale(‖w‖) · wᵀu`` with a w that the patch u itself makes.

    Its state dict is that of the authors' ``CoDAConv2d(DAUWeights(...))``. It does not keep the dynamic weights; for
    losses that need them (``save_matrix`` and ``reverse``) use the authors' module.

    Args:
        in_channels: C, the channels of the input.
        out_channels: O, the number of units.
        rank: R, the number of values to which a patch is projected before its dynamic weights are made of them.
        kernel_size, stride: as in ``nn.Conv2d``.
        padding: as in ``nn.Conv2d``; None gives (kernel_size - 1) // 2.
        groups, bias: of the convolution that makes the dynamic weights.
        norm, backend: see :func:`bcos_kernels.functional.dynamic_alignment`.
        device, dtype: device and dtype of the parameters.

    Raises:
        TypeError, ValueError: an argument is not as described above.
    """

    kind = "alignment"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        rank: int,
        kernel_size: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | None = None,
        groups: int = 1,
        bias: bool = True,
        norm: str = "squash",
        device=None,
        dtype=None,
        *,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = integer("in_channels", in_channels, 1)
        self.out_channels = integer("out_channels", out_channels, 1)
        self.rank = integer("rank", rank, 1)
        self.kernel_size, self.stride = pair("kernel_size", kernel_size, 1), pair("stride", stride, 1)
        usual = tuple((k - 1) // 2 for k in self.kernel_size)
        self.padding = cast(tuple[int, int], usual) if padding is None else pair("padding", padding, 0)
        self.groups = integer("groups", groups, 1)
        if norm not in NORMS:
            raise ValueError(f"norm={norm!r}: allowed are {', '.join(map(repr, NORMS))}")
        rows = out_channels * in_channels * prod(self.kernel_size)
        if rank % groups or rows % groups:
            raise ValueError(f"groups={groups} does not divide both rank={rank} and the {rows} dynamic weights")
        self.norm, self.backend, self.detach = norm, backend, False
        where = {"device": device, "dtype": dtype}
        self.weight_mod = nn.Module()
        self.weight_mod.weighting_f = nn.Sequential(
            nn.Conv2d(in_channels, rank, self.kernel_size, self.stride, self.padding, bias=False, **where),
            nn.Conv2d(rank, rows, 1, groups=groups, bias=flag("bias", bias), **where),
        )

    def forward(self, in_tensor: Tensor) -> Tensor:
        """``[N, in_channels, H, W]`` or ``[in_channels, H, W]`` -> the same rank with ``out_channels``."""
        if (tensors := self.unseen()) is None:
            weights, detach = cast(Any, self.weight_mod).weighting_f, bool(self.detach)
            return by_parts(in_tensor, weights, self.kernel_size, self.stride, self.padding, self.norm, detach)
        return dynamic_alignment(
            in_tensor, *tensors, self.stride, self.padding, self.groups,
            norm=self.norm, detach=bool(self.detach), backend=self.backend,
        )  # fmt: skip

    def unseen(self) -> tuple[Tensor, Tensor, Tensor | None] | None:
        """The weights of both convolutions and the bias of the second one.

        None where a hook or an adapter takes part in making the dynamic weights, which then are made by these modules.
        """
        weights: Any = self.weight_mod
        projection, making = (parts.unseen(part, (nn.Conv2d,)) for part in weights.weighting_f)
        if projection is None or making is None or projection[1] is not None:
            return None
        return projection[0], *making

    def explanation_mode(self, detach: bool = True) -> None:
        """Turns the explanation mode on or off, by the name that the authors' module has for it."""
        self.set_explanation_mode(detach)

    def extra_repr(self) -> str:
        return f"norm={self.norm!r}"
