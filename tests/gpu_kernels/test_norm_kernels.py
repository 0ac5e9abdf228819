"""The norms on the GPU kernels: against float64 within the reference's own error, exactly, and in odd memory."""

import pytest
import torch
from cases import Budget, error
from norm_cases import BY_NAME, CASES, results
from norm_checks import *  # noqa: F403  # the tests that all backends share
from norm_checks import OVER
from where import BACKENDS, DEVICE, STANDS_IN

from bcos_kernels.core.candidate import DIRECTIONS
from bcos_kernels.functional import norm
from bcos_kernels.gpu.timing import Noted, measure
from bcos_kernels.norm import NORM, Call, Spec

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def _served(backend):
    if backend not in NORM.backends:
        pytest.skip(f"the norm has no backend {backend!r}")


ONCE = (
    "batch_tokens", "batch_given_last", "all_tokens", "group_tokens", "group_instance", "group_layer",
    "group_one_image", "3d_last",
)  # fmt: skip
"""The cases that a stand-in sees in one dtype: another of them has the same kernels."""


def combinations():
    for index, case in enumerate(CASES):
        for dtype in (DTYPES[index % 3],) if STANDS_IN and case.name in ONCE else DTYPES:
            yield pytest.param(case, dtype, id=f"{case.name}-{str(dtype)[6:]}")


@pytest.mark.parametrize("centered", [False, True], ids=["uncentered", "centered"])
@pytest.mark.parametrize("case, dtype", list(combinations()))
def test_error_is_the_references_own(case, dtype, centered, backend):
    budget = Budget()
    for seed in range(3):
        tensors = case.tensors(dtype, centered, seed)
        found = results(case, tensors, centered, DEVICE, backend=backend)
        theirs = results(case, tensors, centered, backend="reference")
        truth = results(case, {name: t.double() for name, t in tensors.items()}, centered, backend="reference")
        for name, exact in truth.items():
            assert found[name].dtype == theirs[name].dtype, name
            budget.add(name, found[name], theirs[name], exact)
    budget.check()


def small_tiles(monkeypatch, whole: int) -> None:
    """Tiles of few values, of which even a small x has several in every direction; and several parts."""
    from bcos_kernels.norm.triton import tiles

    small = {"VALUES": 32, "PARTS": 6, "COLUMNS": 4, "POSITIONS": 8, "WHOLE": whole, "WHOLE_BACKWARD": whole}
    for name, value in small.items():
        monkeypatch.setattr(tiles, name, value)


if "triton" in BACKENDS:
    import triton
    import triton.language as tl

    @pytest.mark.parametrize("centered", [False, True], ids=["uncentered", "centered"])
    @pytest.mark.parametrize("name", [*OVER, "all", "batch_last", "group_tokens", "batch_given_last"])
    def test_several_tiles_and_parts(name, centered, backend, monkeypatch):
        if backend != "triton":
            pytest.skip("tiles of another backend")
        case = BY_NAME[name]
        tensors = case.tensors(torch.float32, centered)
        truth = results(case, {name: t.double() for name, t in tensors.items()}, centered, backend="reference")
        for whole in (64, 16) if case.options.get("over") in ("position", "token") else (64,):
            small_tiles(monkeypatch, whole)
            for what, value in results(case, tensors, centered, DEVICE, backend="triton").items():
                assert error(value, truth[what]) < 1e-6, what

    @triton.jit
    def of_all_rounded_apart(grads, count):
        return -(grads / count) * 1.0000001

    @pytest.mark.parametrize("detach", [False, True], ids=["training", "frozen"])
    @pytest.mark.parametrize("over, shape, groups", [
        ("batch", (1, 5, 1, 1), 1), ("all", (1, 1, 1, 1), 1), ("group", (3, 5, 1, 1), 5), ("position", (3, 1, 2, 2), 1),
    ])  # fmt: skip
    def test_a_value_alone_has_no_gradient(over, shape, groups, detach, backend, monkeypatch):
        """However the compiler rounds the two terms of dx, which cancel; not a number stays so."""
        if backend != "triton":
            pytest.skip("the C++ and the CUDA kernels have their own tests")
        from bcos_kernels.norm.triton import apply, positions

        for module in (apply, positions):
            monkeypatch.setattr(module, "of_all", of_all_rounded_apart)
        x, grad = (torch.randn(shape, device=DEVICE) for _ in range(2))
        for value in (1.0, float("nan")):
            grad.view(-1)[0] *= value
            y = norm(x.requires_grad_(), None, over=over, groups=groups, centered=True, detach=detach, backend=backend)
            (dx,) = torch.autograd.grad(y, x, grad)
            assert not dx.view(-1)[1:].any() and dx.view(-1)[0].isnan() == (value != 1)

    from bcos_kernels.norm.triton.place import offsets

    @triton.jit
    def offsets_kernel(out_ptr, image, first, positions, channels, row_stride, column_stride, N: tl.constexpr):
        which = first + tl.arange(0, N)
        at = offsets(image, which, which, positions, channels, row_stride, column_stride)
        tl.store(out_ptr + tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :], at)

    def test_offsets_are_formed_in_64_bits():
        out = torch.empty((2, 2), dtype=torch.int64, device=DEVICE)
        for image, first, positions, channels, strides in (
            (0, 2**30 - 2, 2**30, 2**20, (2**20, 1)),
            (70000, 40000, 2**16, 2**16, (1, 2**16)),
        ):
            offsets_kernel[(1,)](out, image, first, positions, channels, *strides, N=2)
            rows = torch.tensor([first, first + 1])
            expected = image * positions * channels + rows[:, None] * strides[0] + rows * strides[1]
            assert torch.equal(out.cpu(), expected)


@pytest.mark.parametrize("over", ["batch", "position"])
def test_every_candidate_is_measured(over, backend):
    call = Call(Spec(over, 1, True, out_dtype=torch.bfloat16), DEVICE, (2, 6, 3, 3), torch.bfloat16, True, True)
    assert backend in NORM.choose(call, backend)
    for direction in DIRECTIONS:
        trials = measure(Noted(NORM, backend, call, direction), torch.device(DEVICE), lambda: None)
        assert trials and all(t.refusal is None and t.seconds > 0 for t in trials)
