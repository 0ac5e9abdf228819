"""The compiled kernels. l = x ⋆ w/‖w‖ + bias, y = (|l|/n + cos_eps)^(b-1) · l (Böhle et al., CVPR 2022, eq. 3).

ValueError and TypeError name the argument that is not allowed, its value and what is allowed.
"""

from collections.abc import Sequence
from enum import Enum
from types import ModuleType
from typing import TypedDict

import torch
from torch import Tensor

class BuildInfo(TypedDict):
    torch: str
    compiler: str
    isa_clones: str
    openmp: bool
    cuda: bool

def build_info() -> BuildInfo:
    """Facts of the build: the torch it was built for, the compiler, the instruction sets it carries code for."""

class TransformSpec:
    """The static options of a transform, checked when it is made: one object for each layer.

    ``stride``, ``padding`` and ``dilation`` have two values each, or none for a linear layer. ``b`` is None where it
    is a tensor that comes with each call; ``norm_eps`` is (inside the root of the norm, beside it); ``exact_two`` drops
    ``cos_eps`` at b = 2.
    """

    def __init__(
        self,
        *,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        max_out: int,
        b: float | None,
        unit: bool,
        norm_eps: tuple[float, float],
        cos_eps: float,
        exact_two: bool,
        out_dtype: torch.dtype,
    ) -> None: ...
    @property
    def stride(self) -> tuple[int, ...]: ...
    @property
    def padding(self) -> tuple[int, ...]: ...
    @property
    def dilation(self) -> tuple[int, ...]: ...
    @property
    def groups(self) -> int: ...
    @property
    def max_out(self) -> int: ...
    @property
    def b(self) -> float | None: ...
    @property
    def unit(self) -> bool: ...
    @property
    def norm_eps(self) -> tuple[float, float]: ...
    @property
    def cos_eps(self) -> float: ...
    @property
    def exact_two(self) -> bool: ...
    @property
    def out_dtype(self) -> torch.dtype: ...

def transform_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, b: Tensor | None, spec: TransformSpec
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(y, n, l, winner) of CPU tensors in float32, float64 or bfloat16; empty where a backward does not need them.

    A convolution takes x [N, C, H, W] and weight [O*M, C/G, kh, kw] and returns y [N, O, OH, OW] and n [N, G, OH, OW];
    a linear layer takes x [M, K] and weight [O*M, K] and returns y [M, O] and n [M, 1]. l and winner are as y. n is
    fp32 (fp64 for fp64) and empty for b = 1 and depthwise layers; l is there for b other than 1 and 2 and for b as a
    tensor, winner (uint8) for max_out > 1.
    """

def transform_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    b: Tensor | None,
    y: Tensor | None,
    n: Tensor,
    l: Tensor,
    winner: Tensor,
    dn: Tensor | None,
    dl: Tensor | None,
    map: Tensor | None,
    spec: TransformSpec,
    frozen: bool,
    needs: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients (dx, dweight, dbias, db), each in its input's shape and dtype (dbias in the weight's), where ``needs``.

    ``frozen`` takes the scale as a constant (explanation mode). y is read for b = 2 only. dn and dl are what
    :func:`transform_second` returned for n and l; both are None without one. With a map [4, outputs], of_grad, of_y,
    mean and offset of each output, the gradient of y is grad · of_grad + (y − mean) · of_y + offset; for b = 2.
    """

def transform_second(
    v: Tensor,
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    y: Tensor | None,
    n: Tensor,
    l: Tensor,
    winner: Tensor,
    spec: TransformSpec,
    frozen: bool,
    detached: bool,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of ⟨v, dx⟩: those of grad, x, weight, n and l, where dx is what :func:`transform_backward` returns.

    v is as x. ``detached`` takes the scale as a constant of every derivative; then those of x, n and l are None.
    ``needs`` is for x and weight. b must be a number.
    """

def patch_norm(x: Tensor, kernel: Sequence[int], spec: TransformSpec) -> Tensor:
    """[N, C, H, W] -> [N, G, OH, OW]: sqrt(sum of squares of a group's padded patch + norm_eps[0]) + norm_eps[1]."""

def weight_norm(weight: Tensor) -> Tensor:
    """weight [filters, ...] -> |w| [filters], fp32 (fp64 for fp64)."""

class NormSpec:
    """The static options of a norm, checked when it is made: one object for each layer."""

    def __init__(self, *, over: str, groups: int, centered: bool, eps: float, out_dtype: torch.dtype) -> None: ...
    @property
    def over(self) -> str: ...
    @property
    def groups(self) -> int: ...
    @property
    def centered(self) -> bool: ...
    @property
    def eps(self) -> float: ...
    @property
    def out_dtype(self) -> torch.dtype: ...

def norm_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    spec: NormSpec,
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, mean, var) of x [N, C, ...]; the statistics, fp32 (fp64 for fp64), are empty where they were given."""

def norm_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    saved_mean: Tensor,
    saved_var: Tensor,
    dvar: Tensor | None,
    spec: NormSpec,
    frozen: bool,
    needs: Sequence[bool],
    as_map: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients (dx, dweight, dbias) where ``needs``; the latter two are fp32 (fp64 for fp64).

    ``frozen`` takes the variance as a constant (explanation mode). The saved statistics are those that the forward
    returned; they are not read where statistics were given. dvar is what :func:`norm_second` returned for var, or None.
    With ``as_map``, over "batch" or "all", the map [4, C] of dx stands in its place: of_grad, of_x, mean and offset of
    each channel, dx = grad · of_grad + (x − mean) · of_x + offset.
    """

def norm_second(
    v: Tensor,
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    saved_mean: Tensor,
    saved_var: Tensor,
    spec: NormSpec,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gradients of ⟨v, dx⟩: those of grad, weight and var, where dx is what a frozen :func:`norm_backward` returns.

    v is as x; ``needs`` is for weight and var.
    """

class DynamicAlignmentSpec:
    """The static options of dynamic alignment units, checked when it is made."""

    def __init__(
        self, *, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], norm: str, detach: bool
    ) -> None: ...
    @property
    def kernel(self) -> list[int]: ...
    @property
    def stride(self) -> list[int]: ...
    @property
    def padding(self) -> list[int]: ...
    @property
    def norm(self) -> str: ...
    @property
    def detach(self) -> bool: ...

def dynamic_alignment_forward(
    x: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, spec: DynamicAlignmentSpec
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, norm, l) of x [N, C, H, W] and h [N, R, OH, OW]; l is empty with ``detach``."""

def dynamic_alignment_backward(
    grad: Tensor,
    x: Tensor,
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: Tensor,
    l: Tensor,
    spec: DynamicAlignmentSpec,
    needs: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients (dx, dh, dweight, dbias) where ``needs``.

    grad may hold several rows of the dynamic linear map, [rows·N, O, OH, OW], where dx alone is needed.
    """

class CudaBuildInfo(TypedDict):
    runtime: int
    architectures: list[int]
    device: str

class CudaKernels(ModuleType):
    """The CUDA kernels: tensors on a GPU in float32, float16 or bfloat16."""

    @staticmethod
    def build_info() -> CudaBuildInfo: ...
    @staticmethod
    def why_not() -> str:
        """Why the current device cannot run the kernels; empty if it can."""
    @staticmethod
    def cudnn_version() -> str:
        """The version of the loaded cuDNN, such as "9.28.1"; RuntimeError with the reason where none can be used."""
    @staticmethod
    def candidates() -> list[str]:
        """The names of the candidates."""

    class Step(Enum):
        """What a graph of cuDNN computes of a transform."""

        forward = ...
        explanation = ...
        training = ...

    @staticmethod
    def graph_why_not(
        x_sizes: Sequence[int],
        weight_sizes: Sequence[int],
        dtype: torch.dtype,
        weight_dtype: torch.dtype,
        biased: bool,
        spec: TransformSpec,
        step: Step,
        tf32: bool,
        compiles: bool,
    ) -> str:
        """Why a call is not served as a graph of cuDNN on the current GPU; empty where it is.

        With ``compiles`` a plan that is neither here nor stored is built to find out, in seconds.
        """
    @staticmethod
    def set_plan_folder(folder: str) -> None:
        """Where plans are kept between processes; empty: nowhere."""
    @staticmethod
    def transform_forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        b: Tensor | None,
        spec: TransformSpec,
        candidate: str,
        large: bool,
        tf32: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As :func:`transform_forward`.

        ``large`` takes the larger tile of the products; with ``tf32`` products of fp32 may round their operands.
        """
    @staticmethod
    def transform_backward(
        grad: Tensor,
        x: Tensor,
        weight: Tensor,
        b: Tensor | None,
        y: Tensor | None,
        n: Tensor,
        l: Tensor,
        winner: Tensor,
        dn: Tensor | None,
        dl: Tensor | None,
        map: Tensor | None,
        spec: TransformSpec,
        frozen: bool,
        needs: Sequence[bool],
        candidate: str,
        large: bool,
        tf32: bool,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        """As :func:`transform_backward`; dn, dl and map only for candidates that take them."""
    @staticmethod
    def transform_second(
        v: Tensor,
        grad: Tensor,
        x: Tensor,
        weight: Tensor,
        y: Tensor | None,
        n: Tensor,
        l: Tensor,
        winner: Tensor,
        spec: TransformSpec,
        frozen: bool,
        detached: bool,
        needs: Sequence[bool],
        candidate: str,
        tf32: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        """As :func:`transform_second`."""

    @staticmethod
    def norm_forward(
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor | None,
        var: Tensor | None,
        spec: NormSpec,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As :func:`norm_forward`."""
    @staticmethod
    def norm_backward(
        grad: Tensor,
        x: Tensor,
        weight: Tensor | None,
        mean: Tensor | None,
        var: Tensor | None,
        saved_mean: Tensor,
        saved_var: Tensor,
        dvar: Tensor | None,
        spec: NormSpec,
        frozen: bool,
        needs: Sequence[bool],
        as_map: bool,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """As :func:`norm_backward`."""
    @staticmethod
    def norm_second(
        v: Tensor,
        grad: Tensor,
        x: Tensor,
        weight: Tensor | None,
        mean: Tensor | None,
        var: Tensor | None,
        saved_mean: Tensor,
        saved_var: Tensor,
        spec: NormSpec,
        needs: Sequence[bool],
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """As :func:`norm_second`."""
    @staticmethod
    def dynamic_alignment_forward(
        x: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, spec: DynamicAlignmentSpec, tf32: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As :func:`dynamic_alignment_forward`; ``tf32`` lets products of fp32 round their operands."""
    @staticmethod
    def dynamic_alignment_backward(
        grad: Tensor,
        x: Tensor,
        h: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        norm: Tensor,
        l: Tensor,
        spec: DynamicAlignmentSpec,
        needs: Sequence[bool],
        tf32: bool,
        most: int,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        """As :func:`dynamic_alignment_backward`, with at most ``most`` gradients of dynamic weights in memory."""

cuda: CudaKernels
"""Of builds with CUDA alone."""
