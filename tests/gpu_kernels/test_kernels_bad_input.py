"""What the CUDA submodule of the extension says of arguments that it does not take: the last line before a kernel."""

import pytest
import torch
from where import BACKENDS, DEVICE, EMULATED, SAMPLED

from bcos_kernels import _C
from bcos_kernels.gpu import cuda
from bcos_kernels.transform import TRANSFORM

USUAL = {
    "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1, "max_out": 1, "b": 2.0, "unit": True,
    "norm_eps": (1e-6, 0.0), "cos_eps": 1e-6, "exact_two": True, "out_dtype": torch.float32,
}  # fmt: skip
SERVED = {"candidate": "one-pass", "large": False, "tf32": False}


def spec(**changed):
    """The options of a call that is in order, but for what is changed."""
    return _C.TransformSpec(**USUAL | changed)


def arguments(**changed) -> dict:
    """Of a forward that is in order, but for what is changed."""
    usual = {
        "x": torch.randn(2, 6, 5, 4, device=DEVICE), "weight": torch.randn(8, 6, 3, 3, device=DEVICE), "bias": None,
        "b": None, "spec": spec(), **SERVED,
    }  # fmt: skip
    return usual | changed


def wide(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device=DEVICE, dtype=torch.float64)


if "cuda" in BACKENDS:

    @pytest.mark.parametrize(
        "changed, error, message",
        [
            (
                {"x": torch.ones(2, 6, 5, 4, device=DEVICE, dtype=torch.int64)},
                TypeError,
                r"x has dtype Long, allowed: \[Double, Float, Half, BFloat16\]",
            ),
            ({"x": wide(2, 6, 5, 4)}, TypeError, "weight has dtype Float, allowed: x's dtype Double"),
            (
                {"x": wide(2, 6, 5, 4), "weight": wide(8, 6, 3, 3), "spec": spec(out_dtype=torch.float64)},
                ValueError,
                "candidate is 'one-pass', allowed: 'vendor' for an x of double",
            ),
            ({"x": torch.randn(6, 5, 4, device=DEVICE)}, ValueError, "x has 3 dimensions, allowed: 4"),
            ({"x": torch.randn(2, 6, 0, 4, device=DEVICE)}, ValueError, "allowed: only the batch is empty"),
            ({"x": torch.randn(2, 6, 5, 4, device="meta")}, ValueError, f"x is on meta, allowed: {DEVICE}"),
            ({"weight": torch.randn(8, 6, 3, 3, device="meta")}, ValueError, "weight is on meta, allowed: "),
            ({"weight": torch.randn(8, 5, 3, 3, device=DEVICE)}, ValueError, "weight has 5 channels and groups is 1"),
            ({"weight": torch.randn(8, 6, 9, 3, device=DEVICE)}, ValueError, "the kernel spans 9 pixels, allowed: "),
            ({"bias": torch.randn(7, device=DEVICE)}, ValueError, r"bias has shape \[7\], allowed: \[8\]"),
            ({"b": torch.ones(1, device=DEVICE)}, ValueError, "b is a tensor, allowed: None"),
            ({"b": torch.ones(2, device=DEVICE), "spec": spec(b=None)}, ValueError, "b has 2 elements, allowed: 1"),
            ({"spec": spec(b=None)}, ValueError, "b is None, allowed: a tensor of one value"),
            ({"spec": spec(max_out=3)}, ValueError, "weight has 8 filters, allowed: a multiple of max_out 3"),
            ({"spec": spec(out_dtype=torch.float16)}, TypeError, "out_dtype is Half, allowed: x's dtype Float"),
            ({"candidate": "two-pass"}, ValueError, "candidate is 'two-pass', allowed: graph, one-pass, semi, vendor"),
        ],
    )
    def test_arguments_are_named(changed, error, message):
        with pytest.raises(error, match=message):
            cuda.kernels.transform_forward(**arguments(**changed))

    def test_saved_tensors_have_the_shapes_of_the_call():
        given = arguments()
        y, n, l, winner = cuda.kernels.transform_forward(**given)  # noqa: E741
        rest = {"frozen": False, "needs": [True, True, False, False], **SERVED}
        call = {key: given[key] for key in ("x", "weight", "b", "spec")} | rest
        saved = {"grad": y, "y": y, "n": n, "l": l, "winner": winner}
        for changed, message in (
            ({"y": None}, "y is None, allowed: the output"),
            ({"n": n[:, :, 1:]}, "n has shape .* allowed: "),
            ({"grad": y[:1]}, "grad has shape .* allowed: "),
            ({"needs": [True]}, "needs has 1 values, allowed: 4"),
        ):
            with pytest.raises(ValueError, match=message):
                cuda.kernels.transform_backward(**{**call, **saved, "dn": None, "dl": None, "map": None, **changed})
        joined = {"dn": torch.zeros_like(n), "dl": torch.zeros_like(y), "map": None, "candidate": "vendor"}
        for changed, message in (
            ({"dn": None}, "one of dn and dl is None, allowed: both or none"),
            ({"dl": y[:1]}, "dl has shape .* allowed: "),
            ({"candidate": "semi"}, "candidate is 'semi', allowed: one with second derivatives"),
        ):
            with pytest.raises(ValueError, match=message):
                cuda.kernels.transform_backward(**{**call, **saved, **joined, **changed})

    def test_what_divides_x():
        given = arguments(x=torch.randn(4, 6, device=DEVICE), weight=torch.randn(8, 6, device=DEVICE))
        given["spec"] = spec(stride=(), padding=(), dilation=(), norm_eps=(0.0, 1e-12))
        y, n, l, winner = cuda.kernels.transform_forward(**given)  # noqa: E741
        call = {key: given[key] for key in ("x", "weight", "b", "spec")}
        call |= {"grad": y, "y": y, "n": n, "l": l, "winner": winner, "dn": None, "dl": None, "map": None}
        call |= {"needs": [True, True, False, False], **SERVED, "divides_x": True}
        with pytest.raises(ValueError, match="candidate is 'one-pass', allowed: 'vendor' to divide x"):
            cuda.kernels.transform_backward(**call, frozen=False)
        assert cuda.kernels.transform_backward(**call, frozen=True)[0].shape == given["x"].shape

    def test_what_a_second_derivative_takes():
        given = arguments()
        y, n, l, winner = cuda.kernels.transform_forward(**given)  # noqa: E741
        x, weight = given["x"], given["weight"]
        call = {
            "v": x, "grad": y, "x": x, "weight": weight, "y": y, "n": n, "l": l, "winner": winner, "spec": spec(),
            "frozen": False, "detached": False, "needs": [True, True], **SERVED, "candidate": "vendor",
        }  # fmt: skip
        assert cuda.kernels.transform_second(**call)[0].shape == y.shape
        for changed, message in (
            ({"v": x[:1]}, "v has shape .* allowed: "),
            ({"needs": [True]}, "needs has 1 values, allowed: 2"),
            ({"spec": spec(b=None)}, "spec has b=None, allowed: a number"),
            ({"candidate": "one-pass"}, "candidate is 'one-pass', allowed: one with second derivatives"),
            ({"divides_x": True}, "divides_x is True, allowed: False for a convolution, and for a norm_eps"),
            ({"n": n[:, :, 1:]}, "n has shape .* allowed: "),
        ):
            with pytest.raises(ValueError, match=message):
                cuda.kernels.transform_second(**{**call, **changed})

    def test_a_launch_that_fails_names_the_kernel_and_the_shapes():
        """More filters of a maximum than a tile holds: no choice leads there, and the launcher refuses."""
        weight = torch.randn(130, 6, 3, 3, device=DEVICE)
        with pytest.raises(
            RuntimeError, match=r"implicit_gemm_fwd failed: .*x is \[2, 6, 5, 4\], weight \[130, 6, 3, 3\]"
        ):
            cuda.kernels.transform_forward(**arguments(weight=weight, spec=spec(max_out=65)))
        assert torch.isfinite(cuda.kernels.transform_forward(**arguments())[0]).all()  # the next call finds no error

    def test_candidates_have_names_of_their_own():
        own = {candidate.name for candidate in TRANSFORM.candidates_of("cuda")}
        assert cuda.kernels.candidates() == sorted(own.difference(SAMPLED))
        if EMULATED:  # the emulation's module can register one again
            with pytest.raises(RuntimeError, match=r"the candidate .* is registered twice"):
                cuda.kernels.register_twice()
