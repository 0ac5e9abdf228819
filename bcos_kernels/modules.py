"""The B-cos layers as modules, with the constructors, attributes and state dicts of the package ``bcos``.

Source: Böhle et al., B-cos Networks, CVPR 2022 (arXiv 2205.10268), eq. 3, and TPAMI 2024 (arXiv 2306.10898).
"""

from __future__ import annotations

import math
import warnings
from typing import Any, cast

import torch
from torch import Tensor, nn

from .core.checks import flag, integer, real
from .functional import bcos_conv1d, bcos_conv2d, bcos_conv3d, bcos_linear
from .transform import checks, parts
from .transform.functional import transform
from .transform.repeated import held, repeated

__all__ = [
    "BcosConv1d", "BcosConv2d", "BcosConv2dWithScale", "BcosConv3d", "BcosConvolution", "BcosLayer", "BcosLinear",
    "Detachable", "NormedConv1d", "NormedConv2d", "NormedConv3d", "NormedLinear", "clamped",
]  # fmt: skip

COS_EPS = 1e-6
"""``cos_eps`` of every layer, as in ``bcos``."""

_CONVOLUTIONS = {1: bcos_conv1d, 2: bcos_conv2d, 3: bcos_conv3d}


class _Normed:
    """What the convolutions with filters of norm 1 have beside torch's own."""

    def forward(self: Any, in_tensor: Tensor) -> Tensor:
        """``[N, in_channels, ...]`` or ``[in_channels, ...]`` -> the same rank with ``out_channels``."""
        return _CONVOLUTIONS[len(self.kernel_size)](
            in_tensor, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups,
            padding_mode=self.padding_mode, b=1,
        )  # fmt: skip


class NormedConv1d(_Normed, nn.Conv1d):
    """:class:`NormedConv2d` with one axis; its arguments are those of ``nn.Conv1d``."""


class NormedConv2d(_Normed, nn.Conv2d):
    """``nn.Conv2d`` with filters of norm 1 (a zero filter stays zero): the linear part of a B-cos layer.

    Its arguments are those of ``nn.Conv2d``. Source: ``bcos.modules.NormedConv2d``.
    """


class NormedConv3d(_Normed, nn.Conv3d):
    """:class:`NormedConv2d` with three axes; its arguments are those of ``nn.Conv3d``."""


class NormedLinear(nn.Linear):
    """``nn.Linear`` with rows of norm 1 (a zero row stays zero): the linear part of :class:`BcosLinear`.

    Its arguments are those of ``nn.Linear``. Source: ``bcos.modules.NormedLinear``.
    """

    def forward(self, input: Tensor) -> Tensor:
        """``[..., in_features]`` -> ``[..., out_features]``."""
        return bcos_linear(input, self.weight, self.bias, b=1)


class Detachable(nn.Module):
    """The base class of this package's modules with an explanation mode.

    While the attribute ``detach`` is true, the module is in explanation mode: what depends on the input beside the
    linear part is a constant of the forward, so that the gradient of an output is its row of the dynamic linear map.
    It may be assigned directly.
    """

    kind = "layer"
    """What reports call it: ``"layer"``, ``"alignment"``, ``"norm"``, ``"attention"`` or ``"gate"``."""
    detach = False
    backend: str | None = None

    def set_explanation_mode(self, activate: bool = True) -> None:
        """Turns the explanation mode on or off."""
        self.detach = activate

    @property
    def is_in_explanation_mode(self) -> bool:
        """Whether the explanation mode is on."""
        return self.detach


class BcosLayer(Detachable):
    """The base class of all B-cos layers: the exponent, MaxOut and the explanation mode, which freezes |cos|^(b-1).

    Args:
        b, max_out, out_dtype, backend: as in :class:`BcosConv2d`.

    Raises:
        TypeError, ValueError: ``b`` or ``max_out`` is not as described there.
    """

    normalize_weights = True
    """Whether the filters are divided by their norms."""
    norm_eps = (1e-6, 0.0)
    """As in :func:`bcos_kernels.functional.bcos_conv2d`."""
    axes = 0
    """How many axes a convolution has; 0 for a linear layer."""
    linear_kinds: tuple[type[nn.Module], ...] = ()
    """The class of the linear part as it is, and with unit filters."""
    b_rule: str | None = None
    """How the exponent follows from ``b``: None takes b itself; of a tensor, ``"clamp"`` takes b clamped above 1, and
    ``"offset"`` b + 2."""

    def __init__(self, b: float | Tensor, max_out: int, out_dtype: torch.dtype | None, backend: str | None) -> None:
        super().__init__()
        self.detach = False
        self.b = _exponent(b)
        self.max_out = integer("max_out", max_out, 1)
        self.out_dtype = out_dtype
        self.backend = backend

    @property
    def weight(self) -> Tensor:
        """The weight of the linear part. Models read its dtype; the state dict calls it ``linear.weight``."""
        return cast(Any, self.linear).weight

    def has_unit_filters(self) -> bool:
        """Whether the filters are divided by their norms. A plain linear part that was assigned has them as they are,
        as in the reference.
        """
        return self.normalize_weights and type(held(self, "linear")).forward is not self.linear_kinds[0].forward

    def exponent(self) -> tuple[float | Tensor, bool]:
        """``(b, exact_two)`` as :func:`bcos_kernels.functional.bcos_conv2d` takes them, by ``b_rule``."""
        if self.b_rule == "offset":
            return self.b + 2, False
        if self.b_rule == "clamp":
            return clamped(cast(Tensor, self.b)), True
        return self.b, True

    def __prepare_scriptable__(self) -> nn.Module:
        raise RuntimeError("torch.jit.script cannot compile a fused layer: use torch.jit.trace or torch.export instead")

    def arguments(self, x: Tensor) -> tuple:
        """What :func:`.transform.functional.transform` takes behind the tensors, as the module holds it now."""
        # Outside of autocast y has x's dtype, so that a pass without autocast, such as validation, runs unchanged.
        out_dtype = self.out_dtype
        if out_dtype is not None and not torch.is_autocast_enabled(x.device.type):
            out_dtype = None
        b, exact_two = (self.b, True) if self.b_rule is None else self.exponent()
        options = (
            self.max_out, self.has_unit_filters(), False, self.norm_eps, COS_EPS, exact_two, out_dtype, self.backend,
        )  # fmt: skip
        geometry: tuple = ()
        if self.axes:
            conv = parts.sized(self)
            geometry = self.axes, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode
        return b, bool(self.detach), geometry, options

    def _transform(self, x: Tensor, norms: Any = None, own=False) -> Tensor:
        """The layer with the values that the module holds now; ``own`` says that ``norms`` are not those of a patch."""
        linear = held(self, "linear")
        tensors = None if own else parts.unseen(linear, self.linear_kinds, sets_tensors=True)
        if tensors is None:
            return parts.by_parts(x, linear, norms, *self.arguments(x))
        return transform(x, *tensors, *self.arguments(x))

    def extra_repr(self) -> str:
        b: Any = self.b
        if isinstance(b, Tensor):
            b = "a tensor without a value" if b.is_meta else b.item()
        return f"B={b}" + (f", max_out={self.max_out}" if self.max_out > 1 else "") + ","


class BcosConvolution(BcosLayer):
    """The base class of the B-cos convolutions. Its arguments are those of :class:`BcosConv2d`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...] = 1,
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] | str = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        device=None,
        dtype=None,
        b: float | Tensor = 2,
        max_out: int = 1,
        *,
        normalize_weights: bool = True,
        out_dtype: torch.dtype | None = None,
        backend: str | None = None,
        **kwargs,
    ) -> None:
        super().__init__(b, max_out, out_dtype, backend)
        self.normalize_weights = flag("normalize_weights", normalize_weights)
        _warn_of_unknown(type(self).__name__, kwargs)
        checks.channels(in_channels, out_channels, groups)
        sizes = checks.convolution_sizes(self.axes, kernel_size, stride, padding, dilation, padding_mode)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = kernel_size
        self.stride = stride
        self.padding = padding
        self.dilation = dilation
        self.groups = groups
        self.padding_mode = padding_mode
        self.device = device
        self.dtype = dtype
        self.bias = False
        kind: Any = self.linear_kinds[normalize_weights]
        self.linear = kind(
            in_channels, out_channels * max_out, *sizes, groups,
            bias=False, padding_mode=padding_mode, device=device, dtype=dtype,
        )  # fmt: skip
        self.patch_size = math.prod(self.linear.kernel_size)

    def forward(self, in_tensor: Tensor) -> Tensor:
        """``[N, in_channels, ...]`` or ``[in_channels, ...]`` -> the same rank with ``out_channels``."""
        return self.forward_impl(in_tensor)

    def forward_impl(self, in_tensor: Tensor) -> Tensor:
        """The transform without the division of :class:`BcosConv2dWithScale`."""
        inherited = type(self).calc_patch_norms is BcosConvolution.calc_patch_norms
        y = repeated(self, in_tensor) if inherited else None
        if y is not None:
            return y
        own = "calc_patch_norms" in vars(self) or not inherited
        return self._transform(in_tensor, self.calc_patch_norms, own)

    def calc_patch_norms(self, in_tensor: Tensor) -> Tensor:
        """n = √(Σ_patch x² + 1e-6): ``[N, 1, ...]``; with groups ``[N, out_channels, ...]``."""
        return parts.patch_norms(in_tensor, self)


class BcosConv1d(BcosConvolution):
    """The B-cos 1-D convolution, of ``[N, in_channels, L]``. Its arguments are those of :class:`BcosConv2d`."""

    axes = 1
    linear_kinds = (nn.Conv1d, NormedConv1d)


class BcosConv2d(BcosConvolution):
    """The B-cos 2-D convolution, a drop-in for ``bcos.modules.BcosConv2d``.

    ``y = |cos(x, w)|^(b-1) · ŵᵀx`` for every patch x and filter w, with ŵ = w/‖w‖ (Böhle et al., CVPR 2022, eq. 3).

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode: as in ``nn.Conv2d``.
        device, dtype: device and dtype of the weight.
        b: the exponent, of at least 1; an ``nn.Parameter`` of one value is learned.
        max_out: filters per output channel, of which the largest linear output is kept.
        normalize_weights: False takes the filters as they are, without dividing by their norms (B-cosification).
        out_dtype: dtype of the outputs under autocast; None gives fp32 as the reference does.
        backend: see :func:`bcos_kernels.functional.bcos_conv2d`.
        **kwargs: ignored, as in the reference. ``bias`` (the layer has none) and ``scale_fact`` are ignored without a
            warning.

    Raises:
        TypeError, ValueError: an argument is not as described above.

    Warns:
        UserWarning: a keyword is unknown.
    """

    axes = 2
    linear_kinds = (nn.Conv2d, NormedConv2d)


class BcosConv3d(BcosConvolution):
    """The B-cos 3-D convolution, of ``[N, in_channels, D, H, W]``. Its arguments are those of :class:`BcosConv2d`."""

    axes = 3
    linear_kinds = (nn.Conv3d, NormedConv3d)


class BcosConv2dWithScale(BcosConv2d):
    """:class:`BcosConv2d` divided by a constant, a drop-in for ``bcos.modules.BcosConv2dWithScale``.

    Args:
        scale: the divisor, above 0 and not 1. None gives ``k·√in_channels / scale_factor``, the rule of the first
            version of B-cos networks, with k the square root of the number of taps.
        scale_factor: see ``scale``.

    The other arguments and the errors are those of :class:`BcosConv2d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 1,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        device=None,
        dtype=None,
        b: float | Tensor = 2,
        max_out: int = 1,
        scale: float | None = None,
        scale_factor: float = 100.0,
        **kwargs,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode, device,
            dtype, b, max_out, **kwargs,
        )  # fmt: skip
        if scale is None:
            divisor = real("scale_factor", scale_factor, above=True)
            scale = math.sqrt(self.patch_size) * math.sqrt(in_channels) / divisor
        elif real("scale", scale, above=True) == 1:
            raise ValueError("scale=1.0: another scale is needed; BcosConv2d is the layer without a scale")
        self.scale = scale

    def forward(self, in_tensor: Tensor) -> Tensor:
        """The output of :class:`BcosConv2d` divided by ``scale``."""
        return self.forward_impl(in_tensor) / self.scale

    def extra_repr(self) -> str:
        return f"scale={self.scale:.3f}, {super().extra_repr()}"


class BcosLinear(BcosLayer):
    """The B-cos linear layer, a drop-in for ``bcos.modules.BcosLinear``.

    Args:
        in_features, out_features, device, dtype: as in ``nn.Linear``.
        bias: must be False, because a B-cos layer has no bias.
        b, max_out, normalize_weights, out_dtype, backend: as in :class:`BcosConv2d`.

    Raises:
        TypeError, ValueError: an argument is not as described above.
    """

    norm_eps = (0.0, 1e-12)
    linear_kinds = (nn.Linear, NormedLinear)

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        device=None,
        dtype=None,
        b: float | Tensor = 2,
        max_out: int = 1,
        *,
        normalize_weights: bool = True,
        out_dtype: torch.dtype | None = None,
        backend: str | None = None,
    ) -> None:
        if bias:
            raise ValueError(f"bias={bias!r}: a B-cos layer has no bias, False is needed")
        super().__init__(b, max_out, out_dtype, backend)
        self.normalize_weights = flag("normalize_weights", normalize_weights)
        self.in_features = integer("in_features", in_features, 1)
        self.out_features = integer("out_features", out_features, 1)
        self.bias = False
        kind: Any = self.linear_kinds[normalize_weights]
        self.linear = kind(in_features, out_features * max_out, bias=False, device=device, dtype=dtype)

    def forward(self, in_tensor: Tensor) -> Tensor:
        """``[..., in_features]`` -> ``[..., out_features]``."""
        y = repeated(self, in_tensor)
        return self._transform(in_tensor) if y is None else y


def clamped(b: Tensor) -> Tensor:
    """b, a tensor of one value, kept above 1 as B-cosification does; 1 itself stays: with b = 1 there is no scale."""
    return torch.where(b == 1, b.detach(), b.clamp(1 + 1e-6))


IGNORED = ("bias", "scale_fact")
"""Keywords that the reference's own models pass to a convolution, and that it ignores."""


def _warn_of_unknown(kind: str, keywords: dict) -> None:
    """Warns of unknown keywords, because a misspelt one would leave a default in place unnoticed."""
    unknown = ", ".join(f"{name}={value!r}" for name, value in keywords.items() if name not in IGNORED)
    if unknown:
        warnings.warn(f"{kind}({unknown}): unknown and ignored, as the reference ignores it", stacklevel=4)


def _exponent(b: float | Tensor) -> float | Tensor:
    """Returns ``b`` unchanged after checking it; the value of a tensor is not read."""
    checks.exponent(b, b if isinstance(b, Tensor) else torch.empty(0, device="cpu"))
    return b
