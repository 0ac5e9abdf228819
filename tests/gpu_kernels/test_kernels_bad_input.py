"""What the CUDA submodule of the extension says of arguments that it does not take: the last line before a kernel."""

import pytest
import torch
from where import BACKENDS, DEVICE

from bcos_kernels.transform import cuda

GEOMETRY = ((1, 1), (1, 1), (1, 1), 1)


def formula(max_out: int = 1, exponent: float = 2.0) -> tuple:
    return max_out, exponent, True, 1e-6, 0.0, 1e-6, True


def arguments(**changed) -> dict:
    """Of a forward that is in order, but for what is changed."""
    usual = {
        "x": torch.randn(2, 6, 5, 4, device=DEVICE), "weight": torch.randn(8, 6, 3, 3, device=DEVICE), "bias": None,
        "b": None, "geometry": GEOMETRY, "formula": formula(), "out_dtype": torch.float32, "way": (0, False, False),
    }  # fmt: skip
    return usual | changed


def wide(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device=DEVICE, dtype=torch.float64)


if "cuda" in BACKENDS:

    @pytest.mark.parametrize(
        "changed, error, message",
        [
            ({"x": wide(2, 6, 5, 4)}, TypeError, r"x has dtype Double, allowed: \[Float, Half, BFloat16\]"),
            ({"x": torch.randn(6, 5, 4, device=DEVICE)}, ValueError, "x has 3 dimensions, allowed: 4"),
            ({"x": torch.randn(2, 6, 0, 4, device=DEVICE)}, ValueError, "allowed: only the batch is empty"),
            ({"x": torch.randn(2, 6, 5, 4, device="meta")}, ValueError, f"x is on meta, allowed: {DEVICE}"),
            ({"weight": torch.randn(8, 6, 3, 3, device="meta")}, ValueError, "weight is on meta, allowed: "),
            ({"weight": torch.randn(8, 5, 3, 3, device=DEVICE)}, ValueError, "weight has 5 channels and groups is 1"),
            ({"weight": torch.randn(8, 6, 9, 3, device=DEVICE)}, ValueError, "kernel spans 9 pixels, allowed: "),
            ({"bias": torch.randn(7, device=DEVICE)}, ValueError, r"bias has shape \[7\], allowed: \[8\]"),
            ({"b": torch.ones(2, device=DEVICE)}, ValueError, "b has 2 elements, allowed: 1"),
            ({"geometry": ((0, 1), *GEOMETRY[1:])}, ValueError, "stride is 0, allowed: 1 to"),
            ({"formula": formula(exponent=0.5)}, ValueError, "exponent is 0.5, allowed: 1 or more"),
            ({"formula": formula(max_out=3)}, ValueError, "weight has 8 filters, allowed: a multiple of max_out 3"),
            ({"out_dtype": torch.float16}, TypeError, "out_dtype is Half, allowed: x's dtype Float"),
            ({"way": (3, False, False)}, ValueError, "candidate is 3, allowed: 0 to 2"),
        ],
    )
    def test_arguments_are_named(changed, error, message):
        with pytest.raises(error, match=message):
            cuda.kernels.forward(**arguments(**changed))

    def test_saved_tensors_have_the_shapes_of_the_call():
        given = arguments()
        y, n, l, winner = cuda.kernels.forward(**given)  # noqa: E741
        rest = {"explain": False, "needs": [True, True, False, False], "way": (0, False, False)}
        call = {key: given[key] for key in ("x", "weight", "b", "geometry", "formula")} | rest
        saved = {"grad": y, "y": y, "n": n, "l": l, "winner": winner}
        for changed, message in (
            ({"y": None}, "y is None, allowed: the output"),
            ({"n": n[:, :, 1:]}, "n has shape .* allowed: "),
            ({"grad": y[:1]}, "grad has shape .* allowed: "),
            ({"needs": [True]}, "needs has 1 values, allowed: 4"),
        ):
            with pytest.raises(ValueError, match=message):
                cuda.kernels.backward(**{**call, **saved, **changed})

    def test_a_launch_that_fails_names_the_kernel_and_the_shapes():
        """More filters of a maximum than a tile holds: no choice leads there, and the launcher refuses."""
        weight = torch.randn(130, 6, 3, 3, device=DEVICE)
        with pytest.raises(
            RuntimeError, match=r"implicit_gemm_fwd failed: .*x is \[2, 6, 5, 4\], weight \[130, 6, 3, 3\]"
        ):
            cuda.kernels.forward(**arguments(weight=weight, formula=formula(max_out=65)))
        assert torch.isfinite(cuda.kernels.forward(**arguments())[0]).all()  # the next call finds no error
