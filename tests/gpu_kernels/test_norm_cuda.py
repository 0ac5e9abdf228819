"""The norms of the CUDA backend: every layout and set of statistics against float64, and what strides must not do."""

import pytest
import torch
from cases import Budget
from strides import odd_gradients, odd_views
from torch.autograd import grad
from where import BACKENDS, DEVICE

from bcos_kernels import _C
from bcos_kernels.functional import norm
from bcos_kernels.gpu import cuda

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = {
    "batch": ((3, 11, 5, 4), 1), "batch_wide": ((2, 40, 4, 6), 1), "batch_long": ((2, 3, 40, 28), 1),
    "batch_rows": ((9, 24), 1), "batch_one_value": ((1, 5, 1, 1), 1), "batch_3d": ((2, 6, 7), 1),
    "batch_5d": ((2, 3, 2, 3, 4), 1), "all": ((3, 7, 5, 4), 1), "all_wide": ((2, 8, 4, 4), 1),
    "group": ((3, 6, 5, 4), 3), "group_layer": ((2, 16, 4, 6), 1), "group_instance": ((2, 8, 7, 7), 8),
    "position": ((2, 7, 5, 3), 1), "position_wide": ((2, 24, 4, 6), 1), "position_few": ((2, 3, 4, 16), 1),
    "token": ((2, 5, 40), 1), "token_odd": ((11, 33), 1), "token_long": ((2, 2100), 1),
}  # fmt: skip
"""Name, of which the first word is ``over``: the shape of x and the number of groups."""
MODES = {
    "centered": {"centered": True}, "uncentered": {}, "frozen": {"detach": True},
    "frozen_centered": {"detach": True, "centered": True},
}  # fmt: skip


def options(name: str) -> dict:
    return {"over": name.partition("_")[0], "groups": SHAPES[name][1]}


def tensors(name: str, dtype: torch.dtype, seed: int, channels_last: bool = False, parameters: bool = True) -> tuple:
    """Detached ``(x, γ, β, gradient at y)``; x is not around zero."""
    shape = SHAPES[name][0]
    generator = torch.Generator().manual_seed(seed)
    x, upward = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    channels = shape[-1 if name.startswith("token") else 1]
    factors = (torch.randn(channels, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    x = (2 * x + 1).to(dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    return x, *(factors if parameters else (None, None)), upward


def run(x, weight, bias, upward, backend: str = "cuda", dtype: torch.dtype | None = None, **more) -> tuple:
    """y and the gradients of what there is of x, γ and β, by the kernels or, in ``dtype``, by the reference."""
    mine = [t if t is None else t.detach().to(DEVICE if backend == "cuda" else "cpu", dtype) for t in (x, weight, bias)]
    mine = [t if t is None else t.requires_grad_() for t in mine]
    y = norm(*mine, backend=backend, **more)
    return y.detach(), *grad(y, [t for t in mine if t is not None], upward.to(y.device, y.dtype))


if "cuda" in BACKENDS:

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("name", SHAPES)
    def test_parity(name, mode):
        """The dtype, the parameters and the memory format change from case to case; all of them meet."""
        if name == "batch_one_value" and "centered" in mode:
            pytest.skip("y is β, and dx is the rounding of what cancels")
        case = list(SHAPES).index(name) + list(MODES).index(mode)
        for dtype in (DTYPES[case % 3], DTYPES[(case + 1) % 3]):
            for channels_last in (False, True) if len(SHAPES[name][0]) == 4 else (False,):
                budget = Budget()
                for seed in range(5):
                    given = tensors(name, dtype, seed, channels_last, parameters=case % 2 == 0 or dtype == DTYPES[0])
                    found = run(*given, **options(name), **MODES[mode])
                    assert found[0].dtype == dtype
                    assert found[0].stride() == found[1].stride() == given[0].stride()
                    others = (run(*given, "reference", kind, **options(name), **MODES[mode])
                              for kind in (dtype, torch.float64))  # fmt: skip
                    for what, ours, theirs, truth in zip(("y", "dx", "dγ", "dβ"), found, *others, strict=False):
                        budget.add(what, ours.cpu(), theirs, truth, dtype)
                budget.check()

    @pytest.mark.parametrize("centered", [False, True])
    @pytest.mark.parametrize("name", ["batch", "batch_wide", "all"])
    def test_given_statistics(name, centered):
        for dtype in DTYPES:
            budget = Budget()
            for seed in range(5):
                given = tensors(name, dtype, seed, channels_last=seed % 2 == 1)
                channels = given[0].shape[1]
                mean, var = torch.randn(channels).to(dtype), torch.rand(channels).to(dtype)
                results = []
                for kind, backend in ((None, "cuda"), (dtype, "reference"), (torch.float64, "reference")):
                    device = DEVICE if backend == "cuda" else "cpu"
                    given_mean = mean.to(device, kind) if centered else None
                    more = {"mean": given_mean, "var": var.to(device, kind), "centered": centered, **options(name)}
                    results.append(run(*given, backend, kind, **more))
                for what, ours, theirs, truth in zip(("y", "dx", "dγ", "dβ"), *results, strict=True):
                    budget.add(what, ours.cpu(), theirs, truth, dtype)
            budget.check()

    @pytest.mark.parametrize("dtype", DTYPES[1:], ids=["bf16", "fp16"])
    @pytest.mark.parametrize("name", ["batch_wide", "position_wide", "token", "group"])
    def test_fp32_output_and_parameters(name, dtype):
        """As under autocast: y and the gradient at it are fp32, and so are γ and β; dx has x's dtype."""
        budget = Budget()
        for seed in range(5):
            x, weight, bias, upward = tensors(name, dtype, seed)
            given = x, weight.float(), bias.float(), upward.float()
            y, dx, *others = run(*given, **options(name))
            assert y.dtype == torch.float32 and dx.dtype == dtype and others[0].dtype == others[1].dtype == y.dtype
            theirs, truth = (run(*given, "reference", kind, **options(name)) for kind in (torch.float32, torch.float64))
            budget.add("y", y.cpu(), theirs[0], truth[0])
            budget.add("dx", dx.cpu(), theirs[1].to(dtype), truth[1])
            for what, ours, mine, true in zip(("dγ", "dβ"), others, theirs[2:], truth[2:], strict=True):
                budget.add(what, ours.cpu(), mine, true)
        budget.check()

    @pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16", "fp16"])
    @pytest.mark.parametrize("channels_last", [False, True])
    def test_small_integers_are_exact(channels_last, dtype):
        """With r = ½ every sum of products is exact, in whatever order it is formed: one left out shows."""
        generator = torch.Generator().manual_seed(0)
        x, upward = (torch.randint(-2, 3, (5, 8, 7, 20), generator=generator).to(dtype) for _ in range(2))
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        x = x.to(DEVICE).requires_grad_()
        weight, bias = (torch.full((8,), v, device=DEVICE, dtype=dtype).requires_grad_() for v in (2.0, 1.0))
        mean, var = torch.full((8,), 2.0, device=DEVICE), torch.ones(8, device=DEVICE)
        y = norm(x, weight, bias, centered=True, mean=mean, var=var, eps=3.0, backend="cuda")
        dx, dweight, dbias = grad(y, (x, weight, bias), upward.to(DEVICE))
        assert torch.equal(y, x - 1) and torch.equal(dx.cpu(), upward)
        moved = (x.detach().cpu().double() - 2) / 2
        assert torch.equal(dweight.cpu(), (upward.double() * moved).sum((0, 2, 3)).to(dtype))
        assert torch.equal(dbias.cpu(), upward.double().sum((0, 2, 3)).to(dtype))

    @pytest.mark.parametrize("channels_last", [False, True])
    @pytest.mark.parametrize("over, along", [
        ("batch", (1, 8, 1, 1)), ("all", (1, 1, 1, 1)), ("group", (5, 1, 1, 1)), ("position", (5, 1, 7, 20)),
    ])  # fmt: skip
    def test_equal_values_have_no_variance(over, along, channels_last):
        """The mean is theirs to the last bit, also of values that are large beside what tells them apart."""
        values = torch.rand(along, generator=torch.Generator().manual_seed(0)) + 1e4
        x = values.expand(5, 8, 7, 20).contiguous()
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        x = x.to(DEVICE)
        y, mean, var = norm(x, over=over, centered=True, eps=0.25, backend="cuda", return_statistics=True)
        assert torch.equal(mean.cpu(), values.reshape(mean.shape)) and not var.any() and not y.any()
        assert torch.equal(norm(x, over=over, eps=0.25, backend="cuda"), 2 * x)

    @pytest.mark.parametrize("name", ["batch", "all", "group", "position", "token"])
    def test_strides_are_respected(name):
        x, weight, bias, _ = (t.to(DEVICE, torch.float32) for t in tensors(name, torch.float32, 0))
        more = options(name) | {"centered": True}
        for kind, upward in odd_gradients(x):
            strided, plain = (run(x, weight, bias, g, **more) for g in (upward, upward.contiguous()))
            assert all(torch.equal(a, b) for a, b in zip(strided, plain, strict=True)), kind
        upward = torch.randn_like(x)
        expected = run(x, weight, bias, upward, **more)
        for strided in odd_views(x):
            mine = strided.detach().requires_grad_()
            y = norm(mine, torch.stack([weight, weight], -1)[:, 1], bias, backend="cuda", **more)
            assert name == "token" or y.stride() == torch.empty_like(strided).stride()
            assert torch.equal(y, expected[0])
            assert torch.equal(grad(y, mine, upward)[0], expected[1])

    @pytest.mark.parametrize("name", ["batch_wide", "position_wide", "token"])
    def test_views_beyond_the_start_of_a_storage(name):
        """An unaligned first element, which no access of 16 bytes may start at."""
        given = [t.to(DEVICE, torch.bfloat16) for t in tensors(name, torch.bfloat16, 0)]

        def moved(t):
            return torch.empty(t.numel() + 1, dtype=t.dtype, device=t.device)[1:].view(t.shape).copy_(t)

        found, expected = (run(*each, **options(name)) for each in (map(moved, given), given))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))

    @pytest.mark.parametrize("mode", MODES)
    def test_saved_statistics_that_are_not_aligned(mode):
        """A hook that keeps them elsewhere may return them so; those of positions are read 16 bytes at a time."""
        given, more = tensors("position_wide", torch.float32, 0), options("position_wide") | MODES[mode]
        expected = run(*given, **more)

        def moved(t):
            shifted = torch.empty(t.numel() + 1, dtype=t.dtype, device=t.device)[1:]
            return shifted.as_strided(t.shape, t.stride(), 1).copy_(t)

        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, moved):
            found = run(*given, **more)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))

    @pytest.mark.parametrize("over", ["batch", "all", "group", "position", "token"])
    def test_empty_batch(over):
        """No kernel is started; the gradients of γ and β are zeros, and statistics of no values are no numbers."""
        x, weight, bias = (torch.ones(s, device=DEVICE, requires_grad=True) for s in ((0, 4, 3, 4), 4, 4))
        y, mean, _ = norm(x, weight, bias, over=over, backend="cuda", return_statistics=True)
        dx, dweight, dbias = grad(y.sum(), (x, weight, bias))
        assert y.shape == dx.shape == x.shape and mean.isnan().all()
        assert torch.equal(dweight, torch.zeros_like(dweight)) and torch.equal(dbias, torch.zeros_like(dbias))

    @pytest.mark.parametrize("name", ["batch", "all", "group", "position"])
    def test_only_what_is_asked_for(name):
        x, weight, bias, upward = tensors(name, torch.float32, 0)
        for mode in MODES.values():
            every = run(x, weight, bias, upward, **options(name), **mode)[1:]
            for i in range(3):
                mine = [t.to(DEVICE) for t in (x, weight, bias)]
                mine[i].requires_grad_()
                y = norm(*mine, backend="cuda", **options(name), **mode)
                assert torch.equal(grad(y, mine[i], upward.to(y))[0], every[i])

    @pytest.mark.parametrize("name", ["batch", "group", "position"])
    def test_late_explanation_mode(name):
        """The backward is frozen where the mapping says so when it runs."""
        x, weight, bias, upward = tensors(name, torch.float32, 0)
        for frozen in (False, True):
            late = {"fixed_weights": not frozen}
            mine = x.to(DEVICE).requires_grad_()
            y = norm(mine, weight.to(DEVICE), bias.to(DEVICE), detach=late, backend="cuda", **options(name))
            late["fixed_weights"] = frozen
            expected = run(x, weight, bias, upward, detach=frozen, **options(name))
            assert torch.equal(grad(y, mine, upward.to(y))[0], expected[1])

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    @pytest.mark.parametrize("name", ["batch", "all", "group", "position"])
    def test_nan_and_inf_reach_what_they_reach_in_the_reference(name, value):
        x, weight, bias, upward = tensors(name, torch.float32, 0)
        x[1, 2, 1, 1] = value
        ours = run(x, weight, bias, upward, **options(name))
        theirs = run(x, weight, bias, upward, "reference", **options(name))
        for mine, yours in zip(ours, theirs, strict=True):
            assert torch.equal(mine.isfinite().cpu(), yours.isfinite())
        assert not ours[0].isfinite().all()

    def test_the_same_bits_in_every_run():
        for name in ("batch_long", "all", "group_layer", "position"):
            given = tensors(name, torch.float32, 0)
            first, second = (run(*given, **options(name)) for _ in range(2))
            assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

    @pytest.mark.parametrize("name", ["batch", "position"])
    def test_opcheck(name):
        x, weight, bias, upward = (t.to(DEVICE, torch.float32) for t in tensors(name, torch.float32, 0))
        ops = torch.ops.bcos_kernels
        flat = (options(name)["over"], 1, True, 1e-5, False, "float32", False)
        y, mean, var = ops.norm(x, weight, bias, None, None, *flat, "cuda")
        torch.library.opcheck(ops.norm.default, (x, weight, bias, None, None, *flat, "cuda"))
        backward = (
            upward,
            x,
            weight,
            bias,
            None,
            None,
            None,
            mean,
            var,
            *flat,
            False,
            [True] * 3 + [False] * 2,
            "cuda",
        )
        torch.library.opcheck(ops.norm_backward.default, backward)
        assert y.shape == x.shape

    SPEC = {"over": "batch", "groups": 1, "centered": True, "eps": 1e-5, "out_dtype": torch.float32}

    @pytest.mark.parametrize(
        "changed, error, message",
        [
            ({"x": torch.ones(2, 6, 5, device=DEVICE, dtype=torch.int64)}, TypeError, r"x has dtype Long, allowed"),
            ({"x": torch.randn(2, 6, 5, device="meta")}, ValueError, f"x is on meta, allowed: {DEVICE}"),
            ({"x": torch.randn(6, device=DEVICE)}, ValueError, "x has 1 dimensions, allowed: 2 or more"),
            ({"weight": torch.randn(7, device=DEVICE)}, ValueError, r"weight has shape \[7\], allowed: \[6\]"),
            ({"bias": torch.randn(6, device="meta")}, ValueError, "bias is on meta, allowed: "),
            ({"var": torch.ones(6, device=DEVICE)}, ValueError, "mean and var are given, allowed: both"),
            ({"spec": {"out_dtype": torch.float16}}, TypeError, "out_dtype is Half, allowed: x's dtype Float"),
            ({"spec": {"over": "group", "groups": 4}}, ValueError, "groups is 4, allowed: a divisor of x's 6"),
        ],
    )
    def test_arguments_are_named(changed, error, message):
        usual = {"x": torch.randn(2, 6, 5, device=DEVICE), "weight": None, "bias": None, "mean": None, "var": None}
        spec = _C.NormSpec(**SPEC | changed.pop("spec", {}))
        with pytest.raises(error, match=message):
            cuda.kernels.norm_forward(**usual | changed, spec=spec)
