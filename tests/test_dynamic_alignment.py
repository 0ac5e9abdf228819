"""Dynamic alignment units: errors against float64, derivatives of every order, transforms, and what is not allowed."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from cases import Budget
from coda_families import Layer, Squash, Weights, theirs
from torch.autograd import grad, gradcheck, gradgradcheck

import bcos_kernels as bk
from bcos_kernels.core import dispatch
from bcos_kernels.dynamic_alignment import DYNAMIC_ALIGNMENT, Call, Spec, second, tiled
from bcos_kernels.functional import dynamic_alignment

LAST = torch.channels_last
NORMS = ("squash", "l1", "l2")
CASES = {
    "plain": ((2, 3, 6, 5), 4, 5, 3, {"padding": 1}),
    "l1": ((2, 3, 6, 5), 4, 5, 3, {"padding": 1, "norm": "l1"}),
    "l2": ((2, 3, 6, 5), 4, 5, 3, {"padding": 1, "norm": "l2"}),
    "no_bias": ((2, 3, 6, 5), 4, 5, 3, {"padding": 1, "bias": False}),
    "stride": ((3, 2, 9, 8), 5, 3, 3, {"padding": 1, "stride": 2}),
    "asymmetric": ((1, 2, 9, 8), 3, 4, (3, 2), {"padding": (2, 0), "stride": (1, 3)}),
    "wide_padding": ((2, 2, 4, 4), 3, 2, 3, {"padding": 4}),
    "wide_stride": ((2, 2, 7, 7), 3, 2, 1, {"padding": 2, "stride": 3}),
    "pointwise": ((2, 16, 5, 5), 10, 8, 1, {}),
    "groups": ((2, 3, 6, 5), 4, 6, 2, {"groups": 3, "norm": "l2"}),
    "one_pixel": ((5, 6, 3, 3), 2, 3, 3, {}),
    "many_outputs": ((1, 2, 4, 4), 300, 3, 1, {}),
    "many_pixels": ((2, 4, 24, 24), 3, 4, 3, {"padding": 1}),
    "many_values": ((1, 64, 9, 9), 16, 4, 3, {"padding": 1}),
    "explain": ((2, 3, 6, 5), 4, 5, 3, {"padding": 1, "detach": True}),
    "explain_stride": ((3, 2, 9, 8), 5, 3, 3, {"padding": 1, "stride": 2, "detach": True, "norm": "l1"}),
}
cases = pytest.mark.parametrize("name", CASES)


def tensors(name, dtype=torch.float64, seed=0, format=torch.contiguous_format):
    """``(x, projection, weight, bias)``, each requiring its gradient, and the options."""
    shape, outputs, rank, kernel, options = CASES[name]
    options, generator = dict(options), torch.Generator().manual_seed(seed)
    kernel = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    patch = shape[1] * kernel[0] * kernel[1]

    def random(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64)

    made = [
        random(*shape),
        random(rank, shape[1], *kernel) * patch**-0.5,
        random(patch * outputs, rank // options.get("groups", 1), 1, 1) * 0.3,
        random(patch * outputs) * 0.3 if options.pop("bias", True) else None,
    ]
    made = [t if t is None else t.to(dtype) for t in made]
    made[0] = made[0].contiguous(memory_format=format)
    return [t if t is None else t.requires_grad_() for t in made], options


def outcome(function, given, options):
    """y and the gradients of a sum of its values with different weights; in the explanation mode that of x alone."""
    y = function(*given, **options)
    upstream = torch.cos(torch.arange(y.numel(), dtype=torch.float64)).view(y.shape).to(y)
    wanted = [t for t in given if t is not None][: 1 if options.get("detach") else None]
    return {"y": y, **dict(zip(("dx", "dprojection", "dweight", "dbias"), grad(y, wanted, upstream), strict=False))}


@pytest.mark.parametrize("format", [torch.contiguous_format, LAST], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("backend", ["cpu", "torch", "reference"])
@cases
def test_it_is_the_authors_formula(name, backend, format, monkeypatch):
    """In float64 to 1e-10: the forward, the explanation, and all gradients of training."""
    monkeypatch.setattr(tiled, "TILE", 3000)  # several tiles
    given, options = tensors(name, format=format)
    found = outcome(dynamic_alignment, given, options | {"backend": backend})
    for key, truth in outcome(theirs, given, options).items():
        assert torch.allclose(found[key], truth, rtol=1e-10, atol=1e-10), key
    assert found["y"].is_contiguous(memory_format=format) and found["y"].dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
@cases
def test_error_is_at_most_the_authors_own(name, dtype):
    """Against float64: at most 1.1 times the error of the authors' formula in the same dtype."""
    budget = Budget()
    for seed in range(5):
        given, options = tensors(name, dtype, seed)
        wide = [t if t is None else t.detach().double().requires_grad_() for t in given]
        found, own, truth = (
            outcome(f, t, options) for f, t in ((dynamic_alignment, given), (theirs, given), (theirs, wide))
        )
        for key, exact in truth.items():
            assert found[key].dtype == dtype
            budget.add(key, found[key], own[key], exact)
    budget.check()


@pytest.mark.parametrize("name", ["plain", "l1", "l2", "no_bias", "asymmetric", "groups", "explain"])
def test_first_and_second_order(name):
    given, options = tensors(name)
    if options.get("detach"):  # numerical derivatives see the dependence that the mode hides
        x, *rest = given
        (dx,) = grad(dynamic_alignment(*given, **options).square().sum(), x, create_graph=True)
        (expected,) = grad(theirs(*given, **options).square().sum(), x, create_graph=True)
        found, truth = grad(dx.square().sum(), x)[0], grad(expected.square().sum(), x)[0]
        assert torch.allclose(found, truth, rtol=1e-10, atol=1e-12)
        assert grad(dynamic_alignment(*given, **options).sum(), rest, allow_unused=True) == (None, None, None)
        return
    given = [t if t is None else t[:1].detach().requires_grad_() if i == 0 else t for i, t in enumerate(given)]
    inputs = [t for t in given if t is not None]

    def function(*args):
        return dynamic_alignment(*args, *[None] * (4 - len(args)), **options)

    assert gradcheck(function, inputs, fast_mode=True)
    assert gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=["fp64", "fp32", "bf16"])
@pytest.mark.parametrize("backend", ["cpu", "torch", "reference"])
@pytest.mark.parametrize("norm", NORMS)
def test_a_zero_dynamic_weight_gives_zeros_in_every_order(norm, backend, dtype):
    given, options = tensors("no_bias", dtype)
    x = given[0].detach()
    x[0] = 0  # every dynamic weight of the first image is zero
    given[0] = x.requires_grad_()
    for zero_weight in (False, True):
        if zero_weight:
            given[2] = torch.zeros_like(given[2]).requires_grad_()
        wanted = [t for t in given if t is not None]
        y = dynamic_alignment(*given, **options | {"norm": norm, "backend": backend})
        first = grad(y, wanted, torch.ones_like(y), create_graph=True)
        second = grad(sum(g.square().sum() for g in first), wanted, create_graph=True, allow_unused=True)
        third = grad(sum(g.square().sum() for g in second if g is not None), wanted, allow_unused=True)
        for t in (y, *first, *(t for t in (*second, *third) if t is not None)):
            assert t.isfinite().all()
        assert not y[0].any() and (not zero_weight or not y.any())
    own = theirs(*given, **options | {"norm": norm})
    assert not all(t.isfinite().all() for t in grad(own.sum(), wanted))  # what the authors' formula makes of it


@pytest.mark.parametrize("name", ["many_pixels", "many_values", "stride", "many_outputs"])
def test_threads_share_the_work(name, several_threads):
    given, options = tensors(name)
    many = outcome(dynamic_alignment, given, options)
    torch.set_num_threads(1)
    for key, truth in outcome(dynamic_alignment, given, options).items():
        assert torch.allclose(many[key], truth, rtol=1e-12, atol=1e-12), key


def test_the_dynamic_weights_are_never_in_memory():
    """No tensor that is saved for the backward has more values than an input or the output."""
    given, options = tensors("many_values")
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = dynamic_alignment(*given, **options)
    assert max(t.numel() for t in saved) == max(given[2].numel(), y.numel())


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the values of the largest tensor that an operator returns."""

    values = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **kwargs or {})
        for t in found if isinstance(found, (tuple, list)) else (found,):
            self.values = max(self.values, t.numel() if isinstance(t, torch.Tensor) else 0)
        return found


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("name", ["plain", "l1", "l2", "no_bias", "stride", "explain", "groups"])
def test_second_order_is_formed_in_tiles(name, backend, monkeypatch):
    """A loss on every gradient: its gradients are those of the formula, and no tensor of w's size is formed."""
    given, options = tensors(name)
    wanted = [t for t in given if t is not None][: 1 if options.get("detach") else None]
    x, (size, outputs) = given[0], (CASES[name][0], CASES[name][1])
    patch = given[2].shape[0] // outputs

    def loss(function, **options):
        y = function(*given, **options)
        first = grad(y.square().sum(), wanted, create_graph=True)
        return sum((g * g.detach().sin()).sum() + g.square().sum() for g in first), y[0, 0].numel()

    monkeypatch.setattr(second, "TILE", size[0] * patch * outputs * 3)  # three pixels of each image
    for sees in (False, True):  # what sees all operators, as a mode does, takes another way
        found, pixels = loss(dynamic_alignment, backend=backend, **options)
        with Largest() if sees else nullcontext() as largest:
            gradients = grad(found, wanted, allow_unused=True)
        expected = grad(loss(theirs, **options)[0], wanted, allow_unused=True)
        for mine, exact in zip(gradients, expected, strict=True):
            mine, exact = (torch.zeros_like(x) if t is None else t for t in (mine, exact))
            assert torch.allclose(mine, exact, rtol=1e-9, atol=1e-9)
    assert largest.values < size[0] * patch * outputs * pixels / 2


def test_a_backend_that_other_ops_lack_is_told_where_the_environment_names_it(monkeypatch):
    given, options = tensors("plain", torch.float32)
    x, weight = torch.randn(3, 4), torch.randn(5, 4)
    expected = bk.functional.bcos_linear(x, weight)
    monkeypatch.setattr(dispatch, "FORCED", "torch")
    dispatch._tell.cache_clear()
    with pytest.warns(UserWarning, match="BACKEND=torch: transform has no .* so 'cpu' serves its calls"):
        assert torch.equal(bk.functional.bcos_linear(x, weight), expected)
    with pytest.raises(ValueError, match="='torch': allowed are 'cpu', 'cuda', 'triton', 'reference', 'cuda,triton'"):
        bk.functional.bcos_linear(x, weight, backend="torch")
    monkeypatch.setattr(dispatch, "FORCED", "nonsense")
    with pytest.raises(ValueError, match="BCOS_KERNELS_BACKEND='nonsense': allowed are"):
        dynamic_alignment(*given, **options)


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_what_a_gpu_backend_does_not_serve_is_told(backend):
    call = Call(Spec((3, 3)), "cuda", (2**12, 4, 1026, 1026), 8, 2**20, torch.complex64)
    found = " ".join(DYNAMIC_ALIGNMENT.reasons(call)[backend])
    for words in ("dtype torch.complex64 is not one of", "4294967296 pixels are above 1073741824, the largest index"):
        assert words in found
    large = replace(call, outputs=2**25)
    assert "1207959552 rows of weight are above" in " ".join(DYNAMIC_ALIGNMENT.reasons(large)[backend])
    padded = replace(call, x_shape=(1, 4, 9, 9), spec=Spec((3, 3), (2**30, 1), (2**29, 0)))
    assert f"{2**30 + 9} pixels of padded height are above" in " ".join(DYNAMIC_ALIGNMENT.reasons(padded)[backend])


def test_rows_of_the_dynamic_linear_map_come_in_one_backward(monkeypatch):
    (x, *rest), options = tensors("explain")
    y = dynamic_alignment(x, *rest, **options)
    rows = torch.randn(7, *y.shape, dtype=y.dtype)
    expected = torch.stack([grad(y, x, row, retain_graph=True)[0] for row in rows])
    calls = []
    native = bk.dynamic_alignment.cpu._C.dynamic_alignment_backward
    stand_in = type("C", (), {"dynamic_alignment_backward": lambda *a: calls.append(a) or native(*a)})
    monkeypatch.setattr(bk.dynamic_alignment.cpu, "_C", stand_in)
    found = torch.func.vmap(lambda row: grad(y, x, row, retain_graph=True)[0])(rows)
    assert torch.allclose(found, expected, rtol=1e-12) and len(calls) == 1


def test_transforms_and_forward_derivatives():
    (x, *rest), options = tensors("plain")

    def function(x):
        return dynamic_alignment(x, *rest, **options)

    each = torch.func.vmap(lambda x: dynamic_alignment(x, *rest, **options))(x)
    assert torch.allclose(each, function(x), rtol=1e-12)
    tangent = torch.randn_like(x)
    _, jvp = torch.func.jvp(function, (x,), (tangent,))
    _, expected = torch.func.jvp(lambda x: theirs(x, *rest, **options), (x,), (tangent,))
    assert torch.allclose(jvp, expected, rtol=1e-10)
    assert torch.library.opcheck(
        torch.ops.bcos_kernels.dynamic_alignment.default,
        (x, torch.randn(2, 5, 6, 5, dtype=x.dtype, requires_grad=True), rest[1].flatten(1), rest[2], [3, 3], [1, 1],
         [1, 1], "squash", False, "cpu"),
    )  # fmt: skip


@pytest.mark.slow
def test_compiled_exported_and_traced():
    layer = bk.DAUConv2d(3, 4, 5, stride=2, dtype=torch.float64)
    x, sizes = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True), (3, 3, 10, 9)
    wanted = (x, *layer.parameters())
    for dynamic in (False, True):
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=dynamic)
        assert torch.allclose(compiled(x), layer(x), rtol=1e-12)
        pairs = zip(*(grad(f(x).square().sum(), wanted) for f in (compiled, layer)), strict=True)
        assert all(torch.allclose(a, b, rtol=1e-12) for a, b in pairs)
        assert compiled(torch.randn(sizes, dtype=torch.float64)).shape == (3, 4, 5, 5)
    for program in (torch.export.export(layer, (x,)).module(), torch.jit.trace(layer, x.detach())):
        pairs = zip(grad(program(x).sum(), x), grad(layer(x).sum(), x), strict=True)
        assert all(torch.allclose(a, b, rtol=1e-12) for a, b in pairs)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_half_precision_on_the_cpu(backend):
    given, options = tensors("plain", torch.float16)
    found = outcome(dynamic_alignment, given, options | {"backend": backend})
    wide = [t.detach().float().requires_grad_() for t in given]
    for key, truth in outcome(theirs, wide, options).items():
        assert found[key].dtype == torch.float16 and torch.allclose(found[key].float(), truth, rtol=1e-2, atol=1e-2)


def test_autocast_gives_float32_as_the_authors_code_does():
    given, options = tensors("plain", torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y, own = dynamic_alignment(*given, **options), theirs(*given, **options)
    assert y.dtype == own.dtype == torch.float32
    assert torch.allclose(y, own, rtol=0.05, atol=0.05)
    assert all(t.dtype == torch.float32 for t in grad(y.sum(), given))


def test_unbatched_and_empty_inputs():
    (x, *rest), options = tensors("plain")
    y = dynamic_alignment(x, *rest, **options)
    assert torch.allclose(dynamic_alignment(x[0], *rest, **options), y[0], rtol=1e-12)
    assert torch.equal(dynamic_alignment(x, *rest, stride=[1, 1], padding=[1, 1]), y)
    empty = x[:0].detach().requires_grad_()
    found = outcome(dynamic_alignment, [empty, *rest], options)
    assert found["y"].shape == (0, *y.shape[1:]) and not found["dweight"].any()


@pytest.mark.parametrize("format", [torch.contiguous_format, LAST], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("groups, bias, norm", [(1, True, "squash"), (3, False, "l2"), (1, True, "l1")])
def test_the_module_takes_the_authors_state_dict(groups, bias, norm, format):
    made = bk.DAUConv2d(3, 4, 6, 3, 2, groups=groups, bias=bias, norm=norm, dtype=torch.float64)
    weights = Weights(3, 4, 6, Squash(), 3, 2, groups=groups, bias=bias)
    own = Layer(weights).double()
    made.load_state_dict(own.state_dict())
    assert list(made.state_dict()) == list(own.state_dict())
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64).contiguous(memory_format=format)
    first, second = weights.weighting_f
    options = {"stride": 2, "padding": 1, "groups": groups, "norm": norm}
    for detach in (False, True):
        made.explanation_mode(detach)
        x.requires_grad_()
        expected = theirs(x, first.weight, second.weight, second.bias, detach=detach, **options)
        assert torch.allclose(made(x), expected, rtol=1e-10)
        assert torch.allclose(grad(made(x).sum(), x)[0], grad(expected.sum(), x)[0], rtol=1e-10)
    (row,) = bk.report(made).of("alignment")
    assert row.backend == "cpu" and "norm=" in repr(made)


@pytest.mark.parametrize(
    "change, kind, message",
    [
        ({"x": 3.0}, TypeError, "x: a Tensor is needed, not float"),
        ({"x": torch.zeros(3, 6)}, ValueError, r"x has shape \(3, 6\): \(N, C, H, W\) or \(C, H, W\) is needed"),
        ({"x": torch.zeros(2, 3, 6, 5, dtype=torch.long)}, TypeError, "x has dtype torch.int64: a floating-point"),
        ({"x": torch.zeros(2, 3, 6, 5, dtype=torch.float64)}, TypeError, "projection has dtype torch.float32, x has"),
        ({"x": torch.zeros(2, 4, 6, 5)}, ValueError, r"projection has shape \(5, 3, 3, 3\): \(rank, 4, kH, kW\)"),
        ({"x": torch.zeros(2, 3, 1, 5), "padding": 0}, ValueError, "the kernel spans 3 pixels of height, more than"),
        ({"projection": torch.zeros(5, 3, 3)}, ValueError, r"projection has shape \(5, 3, 3\)"),
        ({"weight": torch.zeros(107, 5, 1, 1)}, ValueError, "weight has shape .*107.* multiple of the 27"),
        ({"weight": torch.zeros(108, 5)}, ValueError, r"weight has shape \(108, 5\): \(rows, 5, 1, 1\) is needed"),
        ({"bias": torch.zeros(4)}, ValueError, r"bias has shape \(4,\): \(108,\), one entry per row of weight"),
        ({"groups": 2}, ValueError, "groups=2 does not divide the rank 5 of projection"),
        ({"groups": 0}, ValueError, "groups=0: must be at least 1"),
        ({"stride": 0}, ValueError, "stride=0: must be at least 1|stride.*at least 1"),
        ({"padding": "same"}, TypeError, "padding='same': an int is needed"),
        ({"norm": "l3"}, ValueError, "norm='l3': allowed are 'squash', 'l1', 'l2'"),
        ({"norm": ["l1"]}, ValueError, r"norm=\['l1'\]: allowed are 'squash', 'l1', 'l2'"),
        ({"backend": ["cpu"]}, ValueError, r"backend=\['cpu'\]: allowed are 'cpu'"),
        ({"detach": 1}, TypeError, "detach=1: True or False is needed"),
        (
            {"backend": "gpu"},
            ValueError,
            "allowed are 'cpu', 'cuda', 'triton', 'torch', 'reference', 'cuda,triton' and None",
        ),
    ],
)
def test_bad_input_is_named(change, kind, message):
    (x, projection, weight, bias), options = tensors("plain", torch.float32)
    given = {"x": x, "projection": projection, "weight": weight, "bias": bias, **options}
    with pytest.raises(kind, match=message):
        dynamic_alignment(**given | change)


@pytest.mark.parametrize(
    "change, kind, message",
    [
        ({"rank": 0}, ValueError, "rank=0: must be at least 1"),
        ({"in_channels": 2.5}, TypeError, "in_channels=2.5: an int is needed"),
        ({"norm": "max"}, ValueError, "norm='max': allowed are"),
        ({"groups": 4}, ValueError, "groups=4 does not divide both rank=5 and the 108 dynamic weights"),
        ({"bias": None}, TypeError, "bias=None: True or False is needed"),
        ({"padding": -1}, ValueError, "padding=-1: must be at least 0"),
    ],
)
def test_bad_options_of_the_module_are_named(change, kind, message):
    with pytest.raises(kind, match=message):
        bk.DAUConv2d(**{"in_channels": 3, "out_channels": 4, "rank": 5} | change)


def test_the_extension_checks_what_it_is_given():
    """Each check of the C++ code, which Python's checks never let through."""
    native = bk.dynamic_alignment.cpu._C
    spec = native.DynamicAlignmentSpec(kernel=[1, 1], stride=[1, 1], padding=[0, 0], norm="squash", detach=False)
    x, h, weight = torch.zeros(1, 2, 3, 3), torch.zeros(1, 4, 3, 3), torch.zeros(6, 4)
    y, norm, l = native.dynamic_alignment_forward(x, h, weight, None, spec)  # noqa: E741
    assert y.shape == (1, 3, 3, 3) and norm.shape == l.shape == (3, 9)
    for change, message in (
        ({"h": h[:, :, 1:]}, "h has shape"),
        ({"weight": weight[:5]}, "weight has 5 rows, allowed: a multiple of 2"),
        ({"weight": weight.double()}, "weight has dtype Double"),
        ({"bias": torch.zeros(5)}, "bias has shape"),
        ({"x": x.half()}, "x has dtype Half"),
    ):
        given = {"x": x, "h": h, "weight": weight, "bias": None} | change
        with pytest.raises((TypeError, ValueError), match=message):
            native.dynamic_alignment_forward(**given, spec=spec)
    for change, message in (
        ({"grad": y[..., 1:]}, "grad has shape"),
        ({"grad": torch.cat([y, y])}, "grad has 2 images, allowed: 1"),
        ({"norm": norm[1:]}, "norm has shape"),
        ({"l": l[1:]}, "l has shape"),
        ({"needs": [True]}, "needs has 1 values, allowed: 4"),
    ):
        given = {"grad": y, "x": x, "h": h, "weight": weight, "bias": None, "norm": norm, "l": l, "needs": [True] * 4}
        with pytest.raises((TypeError, ValueError), match=message):
            native.dynamic_alignment_backward(**given | change, spec=spec)
    frozen = native.DynamicAlignmentSpec(kernel=[1, 1], stride=[1, 1], padding=[0, 0], norm="squash", detach=True)
    with pytest.raises(ValueError, match="needs asks for more than the gradient of x"):
        native.dynamic_alignment_backward(y, x, h, weight, None, norm, l, frozen, [True, True, False, False])
    with pytest.raises(ValueError, match="norm is 'l3', allowed: 'squash', 'l1' and 'l2'"):
        native.DynamicAlignmentSpec(kernel=[1, 1], stride=[1, 1], padding=[0, 0], norm="l3", detach=False)
    far = [2**30, 2**30]  # the values of such a patch of 16 channels are 2^64
    absurd = native.DynamicAlignmentSpec(kernel=far, stride=far, padding=far, norm="l2", detach=False)
    with pytest.raises(ValueError, match=r"a multiple of 16 \* 1073741824 \* 1073741824"):
        native.dynamic_alignment_forward(torch.zeros(1, 16, 1, 1), h, weight, None, absurd)
