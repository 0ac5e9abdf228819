"""The norms on the CPU: errors against float64, derivatives of every order, transforms, and what is not allowed."""

import pytest
import torch
from cases import Budget, error
from norm_cases import BY_NAME, CASES, CHANNELS_LAST, results
from norm_checks import *  # noqa: F403  # the tests that all backends share
from torch.autograd import grad, gradcheck, gradgradcheck

from bcos_kernels.functional import norm
from bcos_kernels.norm import Spec

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


WAYS = ("batch", "batch_last", "batch_given", "all_last", "group", "group_last", "position", "position_last", "token")
"""A case of each way through the kernels."""
centered_or_not = pytest.mark.parametrize("centered", [False, True], ids=["uncentered", "centered"])
ways = pytest.mark.parametrize("name", WAYS)


@centered_or_not
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp64", "fp32", "bf16", "fp16"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_error_is_the_references_own(case, dtype, centered):
    if case.far > 1 and dtype == torch.float64:
        pytest.skip("the truth in float64 is no more exact than what it is held against")
    budget = Budget()
    for seed in range(5):
        tensors = case.tensors(dtype, centered, seed)
        found = results(case, tensors, centered, backend="cpu")
        theirs = results(case, tensors, centered, backend="reference")
        truth = results(case, {name: t.double() for name, t in tensors.items()}, centered, backend="reference")
        for name, exact in truth.items():
            assert found[name].dtype == theirs[name].dtype and found[name].shape == theirs[name].shape, name
            budget.add(name, found[name], theirs[name], exact)
    budget.check()


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize(
    "over, shape, groups",
    [
        ("batch", (1, 64, 1, 1), 1),
        ("all", (1, 1, 1, 1), 1),
        ("group", (8, 16, 1, 1), 16),
        ("position", (2, 1, 5, 5), 1),
    ],
)
def test_a_value_alone_has_no_gradient(over, shape, groups, dtype, detach):
    """It is its own mean: y is beta, and dx is 0, not what rounding leaves of two terms that cancel."""
    x, grad_y = (torch.randn(shape, dtype=dtype) for _ in range(2))
    weight, bias = (torch.randn(shape[1], dtype=dtype, requires_grad=True) for _ in range(2))
    x.requires_grad_()
    y = norm(x, weight, bias, over=over, groups=groups, centered=True, detach=detach, backend="cpu")
    assert torch.equal(y, bias.view(1, -1, 1, 1).expand(shape))
    dx, dweight = grad(y, (x, weight), grad_y)
    assert not dx.any() and not dweight.any()


def test_a_value_alone_has_a_gradient_beside_given_statistics(dtype):
    """They are constants, as those of a batch norm in evaluation."""
    x = torch.randn(1, 64, 1, 1, dtype=dtype, requires_grad=True)
    mean, weight = torch.randn(2, 64, dtype=dtype)
    y = norm(x, weight, over="batch", centered=True, mean=mean, var=torch.ones_like(mean), eps=0.0, backend="cpu")
    assert torch.equal(grad(y.sum(), x)[0].flatten(), weight)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_the_statistics_of_tokens_have_their_shape(backend):
    x = torch.randn(3, 7, 33)
    _, mean, var = norm(x, over="token", centered=True, return_statistics=True, backend=backend)
    assert mean.shape == var.shape == (3, 7)
    assert error(mean, x.double().mean(-1)) < 1e-6 and error(var, x.double().var(-1, correction=0)) < 1e-6


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("format", [torch.contiguous_format, CHANNELS_LAST], ids=["nchw", "channels_last"])
def test_long_sums_keep_their_precision(format, threads):
    """Sums of 40,000 values of a far mean, whatever the number of threads that share them."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x = (torch.randn(4, 3, 100, 100) + 50).contiguous(memory_format=format)
        for over, options in (("batch", {}), ("group", {"groups": 3}), ("all", {}), ("position", {})):
            y, mean, var = norm(x, over=over, centered=True, return_statistics=True, backend="cpu", **options)
            theirs = norm(x, over=over, centered=True, backend="reference", **options)
            exact = norm(x.double(), over=over, centered=True, return_statistics=True, backend="reference", **options)
            assert error(mean, exact[1]) < 1e-7 and error(var, exact[2]) < 2e-7, over
            assert error(y, exact[0]) < 1.1 * error(theirs, exact[0]) + 1.2e-7, over
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("far", [0.5, 5, 30])
def test_long_sums_of_few_different_values_keep_their_precision(far, half):
    """Of values on a coarse grid, whose terms a sum rounds to the same side again and again; y is in fp32."""
    budget = Budget()
    for seed in range(9):
        x = (torch.randn(8, 2304, generator=torch.Generator().manual_seed(seed)) + far).to(half)
        for over, values in (("token", x), ("group", x.view(2, 4, 48, 48)), ("batch", x.view(2, 4, 48, 48))):
            options = {"over": over, "centered": True, "groups": 4 if over == "group" else 1}
            y = norm(values, out_dtype=torch.float32, backend="cpu", **options)
            theirs = norm(values, out_dtype=torch.float32, backend="reference", **options)
            budget.add(over, y, theirs, norm(values.double(), backend="reference", **options))
    budget.check()


def small(name: str, centered: bool, dtype=torch.float64):
    """``(function of leaves, backend and detach, leaves)`` of a case, cut down to what finite differences can do."""
    case = BY_NAME[name]
    tensors = case.tensors(dtype, centered)
    over = case.options.get("over", "batch")
    dim, options = (-1 if over == "token" else 1), {**case.options, **({"groups": 2} if over == "group" else {})}
    tensors["x"] = tensors["x"][tuple(slice(4 if i == dim % len(case.x) else 3) for i in range(len(case.x)))]
    channels = tensors["x"].shape[dim]
    tensors = {name: t if name == "x" else t[:channels] for name, t in tensors.items() if name != "grad"}
    given = {name: tensors.pop(name) for name in ("mean", "var") if name in tensors}

    def function(*leaves, backend="cpu", detach=False):
        named = dict(zip(tensors, leaves, strict=True))
        return norm(**named, **given, **options, centered=centered, detach=detach, backend=backend)

    return function, [t.clone().requires_grad_() for t in tensors.values()]


@ways
@centered_or_not
def test_derivatives_of_the_first_and_second_order(name, centered):
    function, leaves = small(name, centered)
    assert gradcheck(function, leaves) and gradgradcheck(function, leaves, fast_mode=True)
    assert gradgradcheck(lambda *leaves: function(*leaves, detach={"fixed_weights": False}), leaves, fast_mode=True)


@ways
@centered_or_not
def test_derivatives_of_a_frozen_variance_are_those_of_the_formula(name, centered):
    """Finite differences cannot know that the variance is a constant."""
    found = []
    for backend in ("cpu", "reference"):
        function, leaves = small(name, centered)
        first = grad(function(*leaves, backend=backend, detach=True).square().sum(), leaves, create_graph=True)
        found.append((*first, *grad(sum(g.square().sum() for g in first), leaves)))
    assert all(error(mine, yours) < 1e-12 for mine, yours in zip(*found, strict=True))


@ways
@centered_or_not
@pytest.mark.parametrize("stays", [False, True], ids=["left", "stays"])
def test_the_late_mode_is_read_in_the_backward(name, centered, stays):
    """Second derivatives of an explanation in the mode, formed outside of it, as model guidance trains, or in it."""
    found = []
    for backend in ("cpu", "reference"):
        function, leaves = small(name, centered)
        late = {"fixed_weights": False}
        y = function(*leaves, backend=backend, detach=late)
        late["fixed_weights"] = True
        (explanation,) = grad(y.square().sum(), leaves[0], create_graph=True)
        late["fixed_weights"] = stays
        found.append((explanation.detach(), *grad((explanation * leaves[0]).square().sum() + y.sum(), leaves)))
    assert all(error(mine, yours) < 1e-12 for mine, yours in zip(*found, strict=True))


@ways
def test_transforms_and_compilers_see_the_operator(name):
    function, (leaf, *parameters) = small(name, True)
    x, parameters = leaf.detach(), [t.detach() for t in parameters]

    def of_x(x, backend="cpu"):
        return function(x, *parameters, backend=backend)

    many = torch.stack([x, x + 1])
    torch.testing.assert_close(torch.vmap(of_x)(many), torch.stack([of_x(x), of_x(x + 1)]))
    expected = grad(of_x(leaf).square().sum(), leaf)[0]
    torch.testing.assert_close(torch.func.grad(lambda x: of_x(x).square().sum())(x), expected)
    ones = (torch.ones_like(x),)
    tangents = [torch.func.jvp(lambda x, b=b: of_x(x, b), (x,), ones)[1] for b in ("cpu", "reference")]
    torch.testing.assert_close(*tangents)
    torch._dynamo.reset()
    compiled = torch.compile(of_x, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(grad(compiled(leaf).square().sum(), leaf)[0], expected)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_autocast_and_other_dtypes_of_parameters(backend):
    x, weight = torch.randn(3, 4, 5, 5).bfloat16(), torch.randn(4)
    assert norm(x, backend=backend).dtype == torch.bfloat16
    assert norm(x, weight, backend=backend).dtype == torch.float32
    assert norm(x, weight.bfloat16(), out_dtype=torch.float32, backend=backend).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(x.requires_grad_(), weight, backend=backend)
    assert y.dtype == torch.float32 and grad(y.sum(), x)[0].dtype == torch.bfloat16
    assert error(y, norm(x.double(), weight.double())) < 1e-6


x44 = torch.ones(2, 4, 3, 3)


@pytest.mark.parametrize(
    "arguments, options, kind, words",
    [
        ((None,), {}, TypeError, "x: a Tensor is needed, not NoneType"),
        ((x44, 3.0), {}, TypeError, "weight: a Tensor is needed, not float"),
        ((x44.int(),), {}, TypeError, "x has dtype torch.int32: a floating-point dtype is needed"),
        ((x44.to_sparse(),), {}, TypeError, "x has layout torch.sparse_coo: torch.strided is needed"),
        ((x44, torch.ones(4).double()), {}, TypeError, "weight has dtype torch.float64, x has torch.float32"),
        ((x44, torch.ones(3)), {}, ValueError, r"weight has shape \(3,\): \(4,\) is needed for x of shape"),
        ((x44, torch.ones(2)), {"over": "all"}, ValueError, r"weight has shape \(2,\): \(4,\) or \(1,\) is needed"),
        ((x44[0, 0, 0],), {}, ValueError, r"x has shape \(3,\): the shape \[N, C, ...\] is needed for over='batch'"),
        ((x44[0, 0, 0, 0],), {"over": "token"}, ValueError, "at least one dimension is needed for over='token'"),
        ((x44,), {"over": "layer"}, ValueError, "over='layer': allowed are 'batch', 'all', 'group', 'position' and"),
        ((x44,), {"over": "group", "groups": 3}, ValueError, "groups=3: a divisor of x's 4 channels is needed"),
        ((x44,), {"groups": 2}, ValueError, "groups=2: a divisor .* and 1 unless over='group'"),
        ((x44,), {"over": "group", "groups": True}, TypeError, "groups=True: an int is needed"),
        ((x44,), {"centered": 1}, TypeError, "centered=1: True or False is needed"),
        ((x44,), {"eps": -1.0}, ValueError, "eps=-1.0: must be finite and at least 0"),
        ((x44,), {"detach": None}, TypeError, "detach=None: a bool, or a mutable mapping"),
        ((x44,), {"var": torch.ones(4), "over": "group"}, ValueError, "var is given: over='group' has no running"),
        ((x44,), {"var": torch.ones(4), "centered": True}, ValueError, "mean and var: both are needed"),
        ((x44,), {"mean": torch.ones(4)}, ValueError, "mean and var: both are needed .*, else var alone"),
        ((x44,), {"out_dtype": torch.float64}, ValueError, "allowed for x of torch.float32 are torch.float32 and None"),
        ((x44,), {"backend": "tpu"}, ValueError, "backend='tpu': allowed are"),
        ((x44.to("meta"),), {"backend": "cpu"}, ValueError, "backend='cpu' cannot serve this call: device is 'meta'"),
    ],
)  # fmt: skip
def test_what_is_not_allowed_is_named(arguments, options, kind, words):
    with pytest.raises(kind, match=words):
        norm(*arguments, **options)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"over": "layer"}, "over is 'layer', allowed: 'batch', 'all', 'group' and 'position'"),
        ({"groups": 0}, "groups is 0, allowed: 1 or more"),
        ({"groups": 2}, "groups is 2, allowed: 1 unless over is 'group'"),
        ({"eps": float("nan")}, "eps is nan, allowed: a finite number of 0 or more"),
        ({"out_dtype": torch.int8}, "out_dtype is Char, allowed: a floating point dtype"),
    ],
)
def test_the_extension_checks_its_options(change, words):
    from bcos_kernels import _C

    options = {"over": "batch", "groups": 1, "centered": False, "eps": 1e-5, "out_dtype": torch.float32}
    with pytest.raises((ValueError, TypeError), match=words):
        _C.NormSpec(**(options | change))


def test_the_extension_checks_its_tensors():
    from bcos_kernels import _C

    spec = Spec().native
    four, stats = torch.ones(4), torch.ones(4)
    for arguments, words in (
        ((x44[0, 0, 0], None, None, None, None), "x has 1 dimensions, allowed: 2 or more"),
        ((x44, torch.ones(3), None, None, None), r"weight has shape \[3\], allowed: \[4\]"),
        ((x44, None, four.int(), None, None), "bias has dtype Int, allowed: a floating point dtype"),
        ((x44, None, None, four, four), "mean and var are given, allowed: both where centered, else var alone"),
        ((x44.half(), None, None, None, None), "x has dtype Half"),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            _C.norm_forward(*arguments, spec)
    with pytest.raises(ValueError, match=r"grad has shape \[2, 4, 3, 2\], allowed: \[2, 4, 3, 3\]"):
        _C.norm_backward(x44[..., :2], x44, None, None, None, stats, stats, None, spec, False, [True] * 3, False)
    with pytest.raises(ValueError, match=r"var has shape \[3\], allowed: \[4\]"):
        _C.norm_backward(x44, x44, None, None, None, stats, stats[:3], None, spec, False, [True] * 3, False)
    with pytest.raises(ValueError, match="needs has 2 values, allowed: 3"):
        _C.norm_backward(x44, x44, None, None, None, stats, stats, None, spec, False, [True] * 2, False)
    with pytest.raises(ValueError, match=r"dvar has shape \[3\], allowed: \[4\]"):
        _C.norm_backward(x44, x44, None, None, None, stats, stats, stats[:3], spec, False, [True] * 3, False)
    with pytest.raises(ValueError, match="dvar is a tensor, allowed: None"):
        _C.norm_backward(x44, x44, None, None, four, stats, stats, stats, spec, False, [True] * 3, False)
    with pytest.raises(ValueError, match=r"v has shape \[2, 4, 3, 2\], allowed: \[2, 4, 3, 3\]"):
        _C.norm_second(x44[..., :2], x44, x44, None, None, None, stats, stats, spec, [True] * 2)


def test_training_saves_x_and_the_statistics_alone():
    x = torch.randn(8, 16, 10, 10, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        norm(x, torch.ones(16, requires_grad=True))
    large = [t for t in kept if t.numel() > 16]
    assert [t.data_ptr() for t in large] == [x.data_ptr()]


@pytest.mark.parametrize("shape, over", [((1, 256, 112, 112), "batch"), ((128, 512), "token")])
def test_gradients_of_the_parameters_are_short_sums(shape, over):
    """They are sums alone: the error of one long sum in float32 would be 1.6 times that of PyTorch's own sum."""
    torch.manual_seed(0)
    x, gradient, found = torch.randn(shape), torch.randn(shape), []
    for backend, dtype in (("cpu", torch.float32), ("reference", torch.float32), ("reference", torch.float64)):
        parameters = [torch.full((shape[1],), float(value), dtype=dtype, requires_grad=True) for value in (1, 0)]
        y = norm(x.to(dtype), *parameters, over=over, backend=backend)
        found.append(grad(y, parameters, gradient.to(dtype)))
    for ours, theirs, truth in zip(*found, strict=True):
        assert error(ours, truth) <= 1.3 * error(theirs, truth)
