"""Dynamic alignment units on the GPU kernels: against float64 within the authors' own error, and exactly."""

import pytest
import torch
from cases import Budget
from coda_families import theirs
from test_dynamic_alignment import CASES, NORMS, outcome, tensors
from torch.autograd import grad
from where import BACKENDS, DEVICE, STANDS_IN

from bcos_kernels.core.candidate import DIRECTIONS
from bcos_kernels.dynamic_alignment import DYNAMIC_ALIGNMENT, Call, Inputs, Outputs, Spec, cuda, tiled
from bcos_kernels.dynamic_alignment.call import of
from bcos_kernels.functional import dynamic_alignment
from bcos_kernels.gpu.timing import Noted, measure

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LARGE = ("many_outputs", "many_pixels", "many_values")


@pytest.fixture(autouse=True)
def _served(backend):
    if backend not in DYNAMIC_ALIGNMENT.backends:
        pytest.skip(f"dynamic alignment has no backend {backend!r}")


def moved(given):
    return [t if t is None else t.detach().to(DEVICE).requires_grad_() for t in given]


def combinations():
    """Every case in every dtype on a GPU; a stand-in has the small ones, each in one dtype, and one in all."""
    for index, name in enumerate(name for name in CASES if not (STANDS_IN and name in LARGE)):
        for dtype in (DTYPES[index % 3],) if STANDS_IN and name != "plain" else DTYPES:
            yield pytest.param(name, dtype, id=f"{name}-{str(dtype)[6:]}")


@pytest.mark.parametrize("name, dtype", list(combinations()))
def test_error_is_at_most_the_authors_own(name, dtype, backend):
    budget = Budget()
    for seed in range(3):
        given, options = tensors(name, dtype, seed, torch.channels_last if seed == 1 else torch.contiguous_format)
        wide = [t if t is None else t.detach().double().requires_grad_() for t in given]
        found = outcome(dynamic_alignment, moved(given), options | {"backend": backend})
        own, truth = outcome(theirs, given, options), outcome(theirs, wide, options)
        for key, exact in truth.items():
            assert found[key].dtype == dtype
            budget.add(key, found[key].cpu(), own[key], exact)
    budget.check()


def whole(generator, most: int, *shape: int, dtype=torch.float64):
    return torch.randint(-most, most + 1, shape, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("norm", NORMS)
def test_whole_numbers_are_exact(norm, dtype, backend):
    """Products, their sums and norms; and gradients with norms of 1, whose scales are powers of two."""
    generator, spec = torch.Generator().manual_seed(0), Spec((2, 2), (1, 1), (1, 1), norm)
    sizes = (3, (2, 3, 3, 4)), (2, (2, 5, 4, 5)), (1, (84, 5)), (2, (84,))
    inputs = Inputs(*(whole(generator, most, *shape) for most, shape in sizes))
    served = Inputs(*(t.to(DEVICE, dtype) for t in inputs))
    y, *truth = tiled.forward(inputs, of(inputs, spec), None)
    _, *found = DYNAMIC_ALIGNMENT.forward(served, of(served, spec), backend)
    for mine, exact in zip(found, truth, strict=True):
        assert torch.equal(mine.cpu(), exact.float())
    given = whole(generator, 2, *y.shape), Outputs(None, torch.ones(7, 40).double(), whole(generator, 4, 7, 40))
    truth = tiled.backward(given[0], inputs, given[1], of(inputs, spec), None, False, (True,) * 4)
    saved = Outputs(None, *(t.to(DEVICE, torch.float32) for t in given[1][1:]))
    grads = DYNAMIC_ALIGNMENT.backward(
        given[0].to(DEVICE, dtype), served, saved, of(served, spec), False, (True,) * 4, backend
    )
    for mine, exact in zip(grads, truth, strict=True):
        assert torch.equal(mine.cpu(), exact.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("norm", NORMS)
def test_a_zero_dynamic_weight_gives_zeros_in_every_order(norm, dtype, backend):
    given, options = tensors("no_bias", dtype)
    given[0].data[0] = 0  # every dynamic weight of the first image is zero
    for zero_weight in (False, True):
        x, projection, weight, _ = moved(given)
        if zero_weight:
            weight = torch.zeros_like(weight).requires_grad_()
        wanted = x, projection, weight
        y = dynamic_alignment(*wanted, None, **options | {"norm": norm, "backend": backend})
        first = grad(y, wanted, torch.ones_like(y), create_graph=True)
        second = grad(sum(g.square().sum() for g in first), wanted, allow_unused=True)
        for t in (y, *first, *(t for t in second if t is not None)):
            assert t.isfinite().all()
        assert not y[0].any() and (not zero_weight or not y.any())


if "cuda" in BACKENDS:

    @pytest.mark.parametrize("backend", ["cuda"], indirect=True)
    @pytest.mark.parametrize("norm", NORMS)
    def test_pixels_in_several_parts(norm, backend, monkeypatch):
        """Whose gradients of dynamic weights are formed one after the other."""
        monkeypatch.setattr(cuda, "TILE", 1)
        generator = torch.Generator().manual_seed(0)
        shapes = (2, 2, 8, 9), (5, 2, 3, 3), (18 * 7, 5, 1, 1), (18 * 7,)
        wide = [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]
        options = {"padding": 1, "norm": norm}
        found = outcome(dynamic_alignment, moved([t.float() for t in wide]), options | {"backend": backend})
        for key, exact in outcome(theirs, wide, options).items():
            assert (found[key].cpu() - exact).abs().max() <= 2e-6 * exact.abs().max(), key


if "triton" in BACKENDS:

    @pytest.mark.parametrize("detach, norm", [(False, "squash"), (False, "l1"), (True, "squash")])
    def test_several_tiles_and_parts(detach, norm, backend, monkeypatch):
        if backend != "triton":
            pytest.skip("tiles of another backend")
        from bcos_kernels.dynamic_alignment.triton import tiles

        monkeypatch.setattr(tiles, "_side", lambda length, most: 16)
        monkeypatch.setattr(tiles, "VALUES", 64)
        generator = torch.Generator().manual_seed(0)
        shapes = (2, 2, 3, 5), (18, 2, 3, 3), (18 * 17, 18, 1, 1), (18 * 17,)
        wide = [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]
        options = {"padding": 1, "detach": detach, "norm": norm}
        found = outcome(dynamic_alignment, moved([t.float() for t in wide]), options | {"backend": backend})
        for key, exact in outcome(theirs, wide, options).items():
            assert (found[key].cpu() - exact).abs().max() <= 2e-6 * exact.abs().max(), key


def test_strides_are_respected_and_only_what_is_needed_is_formed(backend):
    (x, projection, weight, bias), options = tensors("stride", torch.float32)
    expected = outcome(theirs, [x, projection, weight, bias], options)
    x = torch.cat([x, x], 1)[:, :2].detach().to(DEVICE).requires_grad_()
    weight = torch.stack([weight, weight], 1)[:, 0].detach().to(DEVICE).requires_grad_()
    given = x, *moved([projection]), weight, *moved([bias])
    y = dynamic_alignment(*given, **options, backend=backend)
    upstream = torch.cos(torch.arange(y.numel(), dtype=torch.float64)).view(y.shape).float().to(DEVICE)
    upstream = upstream.transpose(2, 3).contiguous().transpose(2, 3)
    for t, key in zip(given, ("dx", "dprojection", "dweight", "dbias"), strict=True):
        (found,) = grad(y, t, upstream, retain_graph=True)
        assert torch.allclose(found.cpu(), expected[key], rtol=1e-4, atol=1e-5), key


def test_rows_of_the_dynamic_linear_map_come_in_one_backward(backend, monkeypatch):
    given, options = tensors("explain", torch.float32)
    x, *rest = moved(given)
    y = dynamic_alignment(x, *rest, **options, backend=backend)
    rows = torch.randn(3, *y.shape, device=DEVICE)
    expected = torch.stack([grad(y, x, row, retain_graph=True)[0] for row in rows])
    calls = []
    (candidate,) = DYNAMIC_ALIGNMENT.candidates_of(backend)
    backward = candidate.backward
    monkeypatch.setitem(vars(candidate), "backward", lambda *a: calls.append(len(a[0])) or backward(*a))
    found = torch.func.vmap(lambda row: grad(y, x, row, retain_graph=True)[0])(rows)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6) and calls == [3 * len(x)]


def test_every_candidate_is_measured(backend):
    call = Call(Spec((2, 2)), DEVICE, (1, 3, 3, 3), 4, 3)
    for direction in DIRECTIONS:
        trials = measure(Noted(DYNAMIC_ALIGNMENT, backend, call, direction), torch.device(DEVICE), lambda: None)
        assert trials and all(t.refusal is None and t.seconds > 0 for t in trials)


def test_empty_batches(backend):
    given, options = tensors("plain", torch.float32)
    x, *rest = moved(given)
    found = outcome(dynamic_alignment, [x[:0].detach().requires_grad_(), *rest], options | {"backend": backend})
    assert found["y"].shape[0] == 0 and found["dx"].shape[0] == 0 and not found["dweight"].any()


@pytest.mark.parametrize("norm", NORMS)
def test_saved_tensors_come_back_in_other_memory(norm, backend):
    """As a hook may return them that keeps them elsewhere: here with gaps between their values."""
    given, options = tensors("plain", torch.float32, 0, torch.contiguous_format)
    given, options = moved(given), options | {"backend": backend, "norm": norm}

    def gradients():
        return [t for key, t in outcome(dynamic_alignment, given, options).items() if key != "y"]

    expected = gradients()
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda t: t, lambda t: torch.stack([t, t], -1)[..., 0] if t.dim() else t
    )
    with hooks:
        found = gradients()
    assert all(torch.equal(mine, plain) for mine, plain in zip(found, expected, strict=True))
