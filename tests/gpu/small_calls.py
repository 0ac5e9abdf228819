"""A small set of calls, held against float64: every own kernel, on partial tiles and several steps of each loop.

The first thing that ``make gpu`` runs, and what it runs under compute-sanitizer. ``BCOS_KERNELS_BACKEND`` says whose.
Each call is named before it is made: where the GPU is lost, the last line says by what. Without a GPU Triton's
interpreter takes its place (``TRITON_INTERPRET=1``).
"""

import torch

from bcos_kernels.core.choice import forced
from bcos_kernels.core.env import INTERPRETED
from bcos_kernels.dynamic_alignment import NORMS
from bcos_kernels.functional import bcos_conv2d, bcos_linear, dynamic_alignment

DEVICE = "cpu" if INTERPRETED else "cuda"
REFERENCE = {"backend": "reference"}
ROUNDINGS = 64
"""Of the dtype, that an error may amount to: for wrong kernels, not for inexact ones, which the tests find."""
CALLS = [
    (bcos_conv2d, (2, 80, 9, 7), (72, 80, 3, 3), {"padding": 1}),
    (bcos_conv2d, (2, 200, 7, 7), (72, 200, 1, 1), {}),
    (bcos_conv2d, (1, 6, 23, 23), (24, 6, 7, 7), {"stride": 2, "padding": 3}),
    (bcos_conv2d, (1, 32, 9, 9), (32, 4, 3, 3), {"padding": 1, "groups": 8, "b": 1.5}),
    (bcos_conv2d, (1, 40, 9, 9), (40, 1, 7, 7), {"padding": 3, "groups": 40}),
    (bcos_conv2d, (1, 40, 9, 9), (48, 40, 3, 3), {"padding": 1, "max_out": 2, "stride": 2}),
    (bcos_linear, (70, 200), (72, 200), {}),
]
TMA = [CALLS[1], CALLS[-1], (bcos_conv2d, (2, 200, 8, 4), (72, 200, 1, 1), {"stride": 2})]
OWN = {"one-pass": CALLS, "semi": CALLS, "tma": TMA, "tma-vendor": TMA}
"""The candidates with products of their own, and the calls that each of them takes."""


def results(layer, x: torch.Tensor, weight: torch.Tensor, options: dict) -> list[torch.Tensor]:
    """y, dx and dw of a gradient of ones, as float64 on the CPU."""
    y = layer(x, weight, **options)
    found = (y, *torch.autograd.grad(y, (x, weight), torch.ones_like(y)))
    return [t.detach().double().cpu() for t in found]


def check(found: list[torch.Tensor], true: list[torch.Tensor], dtype: torch.dtype) -> None:
    for i, (mine, exact) in enumerate(zip(found, true, strict=True)):
        error = ((mine - exact).norm() / exact.norm()).item()
        assert error < ROUNDINGS * torch.finfo(dtype).eps, f"result {i}: relative error {error:.1e}"


def alignment_results(tensors: list[torch.Tensor], options: dict) -> list[torch.Tensor]:
    """y and all gradients of a gradient of ones, as float64 on the CPU."""
    tensors = [t.detach().requires_grad_() for t in tensors]
    y = dynamic_alignment(*tensors, padding=1, **options)
    return [t.detach().double().cpu() for t in (y, *torch.autograd.grad(y, tensors, torch.ones_like(y)))]


def alignments() -> int:
    """Checks dynamic alignment layers with several tiles in every direction; returns how many."""
    shapes = (2, 3, 9, 7), (70, 3, 3, 3), (27 * 18, 70, 1, 1), (27 * 18,)
    kinds = [(norm, dtype) for norm in NORMS for dtype in (torch.bfloat16, torch.float32)]
    for norm, dtype in kinds:
        print(f"dynamic_alignment {norm} {dtype}", flush=True)
        tensors = [torch.randn(shape).mul(0.1).to(dtype) for shape in shapes]
        true = alignment_results([t.double() for t in tensors], {"norm": norm} | REFERENCE)
        check(alignment_results([t.to(DEVICE) for t in tensors], {"norm": norm}), true, dtype)
    return len(kinds)


def main() -> None:
    count = 0
    for candidate, calls in OWN.items():
        for dtype in (torch.bfloat16, torch.float32):
            for layer, shape, filters, options in calls:
                print(f"{layer.__name__} {shape} {filters} {options} {dtype} {candidate}", flush=True)
                x, weight = torch.randn(shape).to(dtype), torch.randn(filters).to(dtype)
                true = results(layer, *(t.double().requires_grad_() for t in (x, weight)), options | REFERENCE)
                x, weight = x.to(DEVICE), weight.to(DEVICE).detach().requires_grad_()
                x = (x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x).requires_grad_()
                with forced(candidate):
                    found = results(layer, x, weight, options)
                check(found, true, dtype)
                count += 1
    print(f"{count + alignments()} calls are right")


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = False
    main()
