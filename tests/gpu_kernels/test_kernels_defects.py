"""Defects that hit other kernel libraries, on the GPU kernels; those that only a GPU can show stand in tests/gpu."""

import pytest
import torch
from cases import IDS, Budget, Case, enough, error
from parity import check, check_autocast
from strides import odd_gradients, odd_views
from torch.autograd import grad
from torch.utils._python_dispatch import TorchDispatchMode
from where import CANDIDATES, DEVICE, STANDS_IN

from bcos_kernels.core.candidate import Tile
from bcos_kernels.functional import bcos_linear, dynamic_alignment
from bcos_kernels.transform import TRANSFORM
from bcos_kernels.transform.call import of_shapes

CONV = Case("conv", (2, 6, 5, 4), (5, 6, 3, 3), {"padding": 1})
DEPTHWISE = Case("depthwise", (2, 5, 4, 5), (5, 1, 3, 3), {"padding": 1, "groups": 5})
GROUPED = Case("grouped", (2, 4, 4, 4), (4, 2, 3, 3), {"padding": 1, "groups": 2, "b": 1.5})
MAX_OUT = Case("max_out", (2, 4, 4, 4), (6, 4, 3, 3), {"padding": 1, "max_out": 2})
LINEAR = Case("linear", (11, 24), (17, 24))
NARROW = Case("narrow", (2, 16, 4, 5), (16, 4, 3, 3), {"padding": 1, "groups": 4})
BY_NAME = {case.name: case for case in (CONV, DEPTHWISE, GROUPED, MAX_OUT, LINEAR)}


def tensors(case: Case, dtype=torch.float32, seed: int = 0):
    """Detached ``(x, weight)`` of a case on the device, channels_last."""
    x, weight, _ = case.inputs(dtype, seed, channels_last=True)
    return x.detach().to(DEVICE), weight.detach().to(DEVICE)


def run(case: Case, x, weight, upward=None, **options):
    """(y, dx, dw) with ``upward`` as the gradient of y, ones where it is None."""
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    y = case(x, weight, **options)
    return y.detach(), *grad(y, (x, weight), torch.ones_like(y) if upward is None else upward)


@pytest.mark.parametrize("name, candidate", [
    ("conv", "one-pass"), ("conv", "vendor"), ("max_out", "semi"), ("linear", "one-pass"),
] + [("depthwise", "one-pass"), ("grouped", "semi")] * (not STANDS_IN))  # fmt: skip
def test_gradient_strides_are_respected(name, candidate, force):
    force(candidate)
    case = BY_NAME[name]
    x, weight = (t.requires_grad_() for t in tensors(case))
    y = case(x, weight)
    for kind, upward in odd_gradients(y):
        strided = grad(y, (x, weight), upward, retain_graph=True)
        plain = grad(y, (x, weight), upward.clone(memory_format=torch.contiguous_format), retain_graph=True)
        assert all(torch.equal(mine, yours) for mine, yours in zip(strided, plain, strict=True)), kind


@pytest.mark.parametrize("name", ["conv", "linear"] + ["depthwise"] * (not STANDS_IN))
def test_input_strides_are_respected(name, force):
    force("one-pass")
    case = BY_NAME[name]
    x, weight = tensors(case)
    expected = run(case, x, weight)
    for strided in odd_views(x):
        found = run(case, strided, torch.stack([weight, weight], -1)[..., 1])
        assert all(torch.equal(mine, yours) for mine, yours in zip(found, expected, strict=True))
    repeated = x[:1].expand(3, *x.shape[1:])
    assert torch.equal(case(repeated, weight), case(repeated.clone(), weight))


@pytest.mark.parametrize("name", ["conv", "depthwise", "linear"])
def test_views_beyond_the_start_of_a_storage(name, force):
    """An unaligned first element: kernels are specialised on 16-byte pointers, also where aligned ones came first."""
    force("one-pass")
    case = BY_NAME[name]
    x, weight = tensors(case, torch.bfloat16)
    upward = torch.randn_like(case(x, weight))

    def moved(t):
        shifted = torch.empty(t.numel() + 1, dtype=t.dtype, device=t.device)[1:].as_strided(t.shape, t.stride(), 1)
        return shifted.copy_(t)

    expected = run(case, x, weight, upward)
    for given in ((moved(x), moved(weight), moved(upward)), (x, weight, moved(upward)), (x, weight, upward)):
        for mine, yours in zip(run(case, *given), expected, strict=True):
            assert torch.equal(mine, yours)


@pytest.mark.parametrize("name, candidate", [("conv", "one-pass"), ("max_out", "semi"), ("linear", "vendor")])
def test_saved_tensors_come_back_in_other_memory(name, candidate, force):
    """As a hook may return them that keeps them elsewhere: here with gaps between their values."""
    force(candidate)
    case = BY_NAME[name]
    given = tensors(case)
    expected = run(case, *given)
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: torch.stack([t, t], -1)[..., 0])
    with hooks:
        found = run(case, *given)
    assert all(torch.equal(mine, plain) for mine, plain in zip(found, expected, strict=True))


TILE = Tile(16, 16, 16, 4, 2)


@pytest.mark.parametrize("n", [15, 16, 17])
@pytest.mark.parametrize("candidate", ["one-pass", "semi"])
def test_partial_tiles(n, candidate, force):
    """Sizes of a tile - 1, a tile and a tile + 1 in every axis of the product."""
    force(candidate, TILE)
    check(Case("tiles", (n, n), (n, n)), None, torch.float32, device=DEVICE, seeds=range(3))


@pytest.mark.parametrize("rows", [127, 128, 129])
def test_partial_default_tiles(rows, force):
    force("one-pass")
    check(Case("rows", (rows, 65), (33, 65)), None, torch.bfloat16, device=DEVICE, seeds=range(3))


@pytest.mark.parametrize("n", [1, 2, 5] if STANDS_IN else [1, 2, 5, 17, 31, 33])
def test_partial_tiles_of_a_convolution(n, force):
    """Images of n² pixels, n channels and n filters."""
    force("one-pass")
    case = Case("sizes", (1, n, n, n), (n, n, 3, 3), {"padding": 1})
    check(case, None, torch.float32, device=DEVICE, seeds=range(3), formats=(True,))


@pytest.mark.parametrize("scale", [1e4, 1e-4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", ["grouped", "max_out", "linear"] + ["conv", "depthwise"] * (not STANDS_IN))
def test_large_and_small_inputs(name, dtype, scale, force):
    force("one-pass")
    case, budget = BY_NAME[name], Budget()
    for seed in range(3):
        x, weight = tensors(case, dtype, seed)
        x = scale * x
        found = run(case, x, weight)
        truth, theirs = (naive_run(case, x.cpu(), weight.cpu(), kind) for kind in (torch.float64, dtype))
        for what, mine, yours, exact in zip(("y", "dx", "dw"), found, theirs, truth, strict=True):
            size = exact.norm().clamp(min=1e-30)  # relative to the result: dw at 1e-4 is 1e-8
            budget.add(what, mine.cpu().double() / size, yours.double() / size, exact / size, dtype)
    budget.check()


def naive_run(case: Case, x, weight, dtype):
    """(y, dx, dw) of the eager formula in ``dtype`` on the CPU."""
    x, weight = (t.detach().to(dtype).requires_grad_() for t in (x, weight))
    y = case.naive(x, weight)
    return y.detach(), *grad(y, (x, weight), torch.ones_like(y))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name, candidate", [
    ("conv", "one-pass"), ("depthwise", "one-pass"), ("max_out", "one-pass"), ("max_out", "vendor"),
    ("linear", "one-pass"),
])  # fmt: skip
def test_nan_and_inf_reach_what_they_reach_in_the_reference(name, candidate, value, force):
    """A maximum that drops NaN hides a diverged training run."""
    force(candidate)
    case = BY_NAME[name]
    x, weight = tensors(case)
    x[(1, 2, 2, 2) if x.dim() == 4 else (1, 2)] = value
    y, dx, _ = run(case, x, weight)
    their_y, their_dx, _ = naive_run(case, x.cpu(), weight.cpu(), torch.float32)
    assert torch.equal(y.isnan().cpu(), their_y.isnan()) and y.isnan().any()
    assert torch.equal(dx.isfinite().cpu(), their_dx.isfinite()) and not dx.isfinite().all()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("value, dtype", [(float("nan"), torch.float32), (float("inf"), torch.bfloat16)])
@pytest.mark.parametrize("options", [{}, {"max_out": 2, "b": 1.5}], ids=["b2", "max_out"])
def test_what_is_not_finite_stays_in_its_group(options, value, dtype, force):
    """Of groups that share a tile: 0 times NaN or infinity is not 0. Each group is as it is alone."""
    force("semi")
    narrow, alone, bad = NARROW.options | options, {"padding": 1} | options, 2
    assert of_shapes(NARROW.x, NARROW.weight, padding=(1, 1), groups=4).pack == 4
    x, weight = tensors(NARROW, dtype)
    upward = torch.randn_like(NARROW(x, weight, **narrow))
    usual = run(Case("usual", NARROW.x, NARROW.weight, narrow), x, weight, upward)
    for where in range(3):
        given = [x.clone(), weight.clone(), upward.clone()]
        given[where].movedim(int(where != 1), 0)[given[where].shape[int(where != 1)] * bad // 4, 1, 1, 1] = value
        found = run(Case("narrow", NARROW.x, NARROW.weight, narrow), *given)
        mine = given[0].chunk(4, 1)[bad], given[1].chunk(4)[bad], given[2].chunk(4, 1)[bad]
        own = run(Case("alone", mine[0].shape, mine[1].shape, alone), *mine)
        for axis, together, before, single in zip((1, 1, 0), found, usual, own, strict=True):
            parts, others = list(together.chunk(4, axis)), list(before.chunk(4, axis))
            assert torch.equal(parts.pop(bad).isfinite(), single.isfinite())
            del others[bad]
            assert error(torch.cat(parts), torch.cat(others)) < max(1e-6, torch.finfo(dtype).eps)
        assert not all(part.isfinite().all() for part in own)


@pytest.mark.parametrize("candidate", ["one-pass", "vendor"])
def test_nan_in_one_filter_wins_its_maximum(candidate, force):
    force(candidate)
    x, weight = tensors(MAX_OUT)
    weight[3] = float("nan")
    y = MAX_OUT(x, weight)
    assert y[:, 1].isnan().all() and not y[:, [0, 2]].isnan().any()


@pytest.mark.parametrize("name", ["conv", "grouped", "max_out", "linear"])
def test_zero_patches_and_zero_filters(name, force):
    """Neither becomes NaN, and both are what the reference backend makes of them."""
    force("one-pass")
    case = BY_NAME[name]
    x, weight = tensors(case)
    x[0], weight[1] = 0, 0
    wide = [t.detach().cpu().double().requires_grad_() for t in (x, weight)]
    y = case(*wide, backend="reference")
    exact = (y, *grad(y, wide, torch.ones_like(y)))
    for mine, truth in zip(run(case, x, weight), exact, strict=True):
        assert error(mine.cpu(), truth) < 1e-5


@pytest.mark.parametrize("candidate", CANDIDATES)
@pytest.mark.parametrize("case", [
    Case("batch0", (0, 6, 5, 5), (5, 6, 3, 3), {"padding": 1}), Case("rows0", (0, 8), (5, 8)),
    Case("depthwise0", (0, 6, 5, 5), (6, 1, 3, 3), {"groups": 6}),
    Case("max_out0", (0, 8), (6, 8), {"max_out": 2, "b": 1.5}),
], ids=lambda c: c.name)  # fmt: skip
def test_empty_batch(case, candidate, force):
    """A grid of no programs is never started; the weight's gradient is zero, not what was in memory."""
    force(candidate)
    x, weight = tensors(case)
    y, dx, dw = run(case, x, weight)
    assert y.numel() == 0 and dx.shape == x.shape and torch.equal(dw, torch.zeros_like(weight))


def test_partial_gradients(force):
    """Only what is asked for is computed, whatever is asked for."""
    for candidate in CANDIDATES:
        force(candidate)
        x, weight = tensors(CONV)
        _, dx, dw = run(CONV, x, weight)
        mine = x.clone().requires_grad_()
        assert torch.equal(grad(CONV(mine, weight).sum(), mine)[0], dx)
        mine = weight.clone().requires_grad_()
        assert torch.equal(grad(CONV(x, mine).sum(), mine)[0], dw)


@pytest.mark.parametrize("candidate", CANDIDATES)
def test_first_call_on_a_fresh_shape(candidate, force):
    """The first call compiles and chooses; it returns what the second does."""
    force(candidate)
    size = 3 + CANDIDATES.index(candidate)
    case = Case("fresh", (1, 7, size, 4), (9, 7, 2, 3), {"padding": 1})
    x, weight = tensors(case)
    first, second = run(case, x, weight), run(case, x, weight)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    for mine, truth in zip(first, naive_run(case, x.cpu(), weight.cpu(), torch.float64), strict=True):
        assert error(mine.cpu(), truth) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", ["conv3x3", "linear"] if STANDS_IN else [
    "conv3x3", "conv1x1", "depthwise", "grouped", "b1", "b1.5", "max_out", "explain", "linear", "linear_b2.5",
    "linear_explain",
])  # fmt: skip
def test_autocast_of_fp32_parameters(name, dtype):
    # a stand-in's tensors lie on a CPU, where what has results in fp32 is not rounded to fp16
    asked = dtype if STANDS_IN and dtype == torch.float16 else None
    check_autocast(IDS[name], dtype, device=DEVICE, seeds=range(enough(3, IDS[name], dtype)), out_dtype=asked)


@pytest.mark.parametrize("candidate", CANDIDATES)
def test_a_plain_layer_under_autocast(candidate, force):
    """At b = 1 the filters are divided before they are rounded, and the gradient of y is rounded no more."""
    force(candidate)
    errors = []
    for seed in range(5):
        x, weight, _ = (None if t is None else t.detach().to(DEVICE) for t in LINEAR.inputs(torch.float32, seed))
        upward = torch.randn(11, 17, generator=torch.Generator().manual_seed(seed)).bfloat16().to(DEVICE)
        found = []
        for layer, to in ((LINEAR, torch.float32), (LINEAR.naive, torch.float32), (LINEAR.naive, torch.float64)):
            z, w = (t.detach().to(to).requires_grad_() for t in (x, weight))
            with torch.autocast(DEVICE, torch.bfloat16, enabled=to == torch.float32):
                y = layer(z, w, b=1)
            found.append([t.detach().cpu() for t in (y, *grad(y, (z, w), upward.to(y.dtype)))])
        errors.append([[error(*pair) for pair in zip(results, found[2], strict=True)] for results in found[:2]])
    for ours, theirs in zip(*torch.tensor(errors).median(0).values.tolist(), strict=True):
        assert ours <= 1.1 * theirs


@pytest.mark.parametrize("layer", ["linear", "alignment", "alignment by torch"])
def test_a_backward_under_autocast_computes_as_its_forward_did(layer, backend, force):
    """torch's products round their operands anew there, in each derivative."""
    force("vendor")
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(DEVICE).requires_grad_()

    if layer == "linear":
        tensors, function = (random(8, 24), random(6, 24)), bcos_linear
    else:
        tensors, function = (random(2, 3, 5, 5), random(4, 3, 3, 3), random(54, 4, 1, 1)), dynamic_alignment
    y = function(*tensors, backend="torch" if layer.endswith("torch") else backend)

    def derivatives() -> tuple[torch.Tensor, ...]:
        first = grad(y, tensors, torch.ones_like(y), retain_graph=True, create_graph=layer == "linear")
        return *first, *(grad(first[0].square().sum(), tensors, retain_graph=True) if layer == "linear" else ())

    expected = derivatives()
    with torch.autocast(DEVICE, torch.bfloat16):
        found = derivatives()
    for mine, true in zip(found, expected, strict=True):
        assert mine.dtype == true.dtype and error(mine, true) < 1e-6


class Recording(TorchDispatchMode):
    """Keeps every call of this package's operators."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "bcos_kernels":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["conv", "linear"])
def test_opcheck(name):
    with Recording() as recorded:
        run(BY_NAME[name], *tensors(BY_NAME[name]))
    assert len(recorded.calls) == 2
    for op, args in recorded.calls:
        torch.library.opcheck(op, tuple(a.detach() if isinstance(a, torch.Tensor) else a for a in args))


@pytest.mark.parametrize("name", ["conv", "linear"])
def test_func_grad(name):
    """torch.func.grad keeps the backward of its own, eagerly and compiled."""
    case = BY_NAME[name]
    x, weight = tensors(case)
    expected = run(case, x, weight)[1:]

    def gradients(x, weight):
        return torch.func.grad(lambda x, w: case(x, w).sum(), argnums=(0, 1))(x, weight)

    torch._dynamo.reset()
    for found in (gradients(x, weight), torch.compile(gradients, fullgraph=True, backend="aot_eager")(x, weight)):
        for mine, yours in zip(found, expected, strict=True):
            assert error(mine, yours) < 1e-6


def test_fullgraph_with_strided_inputs():
    """torch.compile drops a .contiguous() before a kernel of the user's; ours reads what it is given."""
    torch._dynamo.reset()

    def layer(x, weight):
        return CONV(torch.cat([x, x], -1)[..., ::2] * 1.5, weight.transpose(2, 3)) * 2

    x, weight = (t.requires_grad_() for t in tensors(CONV))
    y, again = layer(x, weight), torch.compile(layer, fullgraph=True, backend="aot_eager")(x, weight)
    assert error(again, y) < 1e-6
    upward = torch.randn_like(y).transpose(0, -1).contiguous().transpose(0, -1)
    for mine, yours in zip(grad(again, (x, weight), upward), grad(y, (x, weight), upward), strict=True):
        assert error(mine, yours) < 1e-6


@pytest.mark.parametrize("case", [CONV, IDS["depthwise_multiplier"], DEPTHWISE], ids=lambda case: case.name)
@pytest.mark.parametrize("candidate", CANDIDATES)
def test_tensor_exponent(candidate, case, force):
    """b as a tensor gets the gradient that the reference gives it, also where the norm was not saved."""
    force(candidate)
    x, weight = tensors(case)
    b, wide = (torch.tensor(1.5, dtype=kind, requires_grad=True) for kind in (torch.float32, torch.float64))
    b = b.detach().to(DEVICE).requires_grad_()
    (mine,) = grad(case(x, weight, b=b).square().sum(), b)
    y = case(*(t.cpu().double() for t in (x, weight)), b=wide, backend="reference")
    assert error(mine.cpu(), grad(y.square().sum(), wide)[0]) < 1e-5


@pytest.mark.parametrize("groups, multiplier", [(17 if STANDS_IN else 37, 2), (2, 33)])
def test_backward_reads_no_norm_that_was_not_saved(groups, multiplier, force, backend):
    """One channel to a group, several filters, no groups that share a tile: the forward saves no norm."""
    options = {"padding": 1, "groups": groups}
    case = Case("multiplier", (1, groups, 3, 3), (groups * multiplier, 1, 3, 3), options)
    call = of_shapes(case.x, case.weight, padding=(1, 1), groups=groups)
    assert call.pack == 1 and not call.saves_norm
    (one_pass,) = (c for c in TRANSFORM.candidates_of(backend) if c.name == "one-pass")
    assert not any(one_pass.can_serve(call, direction) for direction in ("training", "explanation"))
    force("one-pass")
    check(case, None, torch.float32, device=DEVICE, seeds=range(3), formats=(True,))


@pytest.mark.parametrize("candidate", ["one-pass", "vendor"])
@pytest.mark.parametrize("b, least", [(1.5, 1e-12), (2.0, 1e-12), (3.0, 1e-9)])
def test_rows_beside_a_bias_lose_nothing_above_what_the_docs_name(b, least, candidate, force):
    """Below it, as docs/accuracy.md says, dx loses digits on a GPU or is infinite."""
    force(candidate)
    budget = Budget()
    for seed in range(9):
        generator = torch.Generator().manual_seed(seed)
        x, weight, bias, upward = (
            torch.randn(shape, generator=generator) for shape in ((9, 24), (20, 24), 20, (9, 20))
        )

        def dx(backend, dtype, device="cpu"):
            leaf, *others = (t.to(device, dtype) for t in (x * least, weight, bias, upward))  # noqa: B023
            y = bcos_linear(leaf.requires_grad_(), *others[:2], b=b, backend=backend)
            return grad(y, leaf, others[2])[0].cpu()

        theirs, truth = dx("reference", torch.float32), dx("reference", torch.float64)
        budget.add("dx", dx(None, torch.float32, DEVICE), theirs, truth)
    budget.check()
