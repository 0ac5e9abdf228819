"""A layer that is changed after it was accelerated computes what its own forward computes, and the report says why."""

import copy
import functools
import types
import warnings
from unittest import mock

import families
import pytest
import torch
import torch.nn.functional as F
from families import X, example, plain, reason
from torch import nn

import bcos_kernels as bk
from bcos_kernels.adopt import fingerprint
from bcos_kernels.compat import import_reference

M = import_reference().modules


families_published = pytest.fixture(lambda monkeypatch: families.publish(monkeypatch))


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    "make, owner, name",
    [
        (lambda: M.BcosConv2d(6, 4, 3, b=1.5), M.BcosConv2d, "calc_patch_norms"),
        (lambda: M.BcosConv2d(6, 4, 3, b=1.5), M.BcosConv2d, "forward_impl"),
        (lambda: M.BcosConv2d(6, 4, 3, b=1.5), M.BcosConv2d, "forward"),
        (lambda: M.BcosConv2dWithScale(6, 4, 3, b=1.5), M.BcosConv2d, "forward_impl"),
        (lambda: M.BcosConv2d(6, 4, 3), M.bcosconv2d.NormedConv2d, "forward"),
        (lambda: M.BcosConv2d(6, 4, 3), M.bcosconv2d.NormedConv2d, "_conv_forward"),
        (lambda: M.BcosConv2d(6, 4, 3), nn.Conv2d, "_conv_forward"),
        (lambda: M.BcosConv2d(6, 4, 3), M.bcosconv2d.NormedConv2d, "__call__"),
        (lambda: M.BcosConv2d(6, 4, 3, dilation=2), M.BcosConv2d, "_calc_patch_norms_slow"),
        (lambda: M.BcosLinear(6, 4), M.bcoslinear.NormedLinear, "forward"),
        (lambda: M.BcosLinear(6, 4), M.BcosLinear, "forward"),
    ],
)
def test_a_method_patched_on_a_class(make, owner, name, when, monkeypatch):
    layer = make().double()
    x, method = example(layer), getattr(owner, name)

    def doubled(*args, **kwargs):
        return 2 * method(*args, **kwargs)

    if when == "after":
        bk.accelerate(layer)
        assert bk.report(layer).accelerated == 1
        layer(x)
    monkeypatch.setattr(owner, name, doubled, raising=False)
    if name == "_calc_patch_norms_slow":  # bound when the layer is made
        layer.calc_patch_norms = types.MethodType(doubled, layer)
    if when == "before" and name == "_calc_patch_norms_slow":  # the class's code is as published
        bk.accelerate(layer)
    elif when == "before":
        with pytest.warns(UserWarning, match="nothing is accelerated"):
            bk.accelerate(layer)
    assert bk.report(layer).accelerated == 0
    y = layer(x)
    assert torch.equal(y, plain(layer)(x))
    monkeypatch.undo()
    if name != "_calc_patch_norms_slow":
        assert not torch.allclose(layer(x), y)
    if when == "after" and name != "_calc_patch_norms_slow":
        assert bk.report(layer).accelerated == 1


def other_norm(layer):
    layer.calc_patch_norms = lambda x: x.new_ones(1)


def other_impl(layer):
    layer.forward_impl = lambda x: x


def other_convolution(layer):
    layer.linear._conv_forward = lambda input, weight, bias: F.conv2d(input, weight * 3)


def other_linear_forward(layer):
    layer.linear.forward = lambda x: F.conv2d(x, layer.linear.weight)


@pytest.mark.parametrize(
    "change, message",
    [
        (other_norm, "its calc_patch_norms was assigned on the instance"),
        (other_impl, "its forward_impl was assigned on the instance"),
        (other_convolution, "the _conv_forward of its .linear was assigned on the instance"),
        (other_linear_forward, "the forward of its .linear was assigned on the instance"),
        (lambda m: setattr(m, "patch_size", 5), "its patch_size=5 contradicts its weight"),
        (lambda m: setattr(m, "kernel_size", 1), "its kernel_size=1 contradicts its weight"),
        (lambda m: setattr(m, "in_channels", 5), None),  # read with groups alone
        (lambda m: setattr(m, "groups", 2), "its groups=2 contradicts its weight and its .linear, which have 1"),
        (lambda m: setattr(m, "padding", 1), "its padding=1 contradicts"),
        (lambda m: setattr(m, "stride", 2), "its stride=2 contradicts"),
        (lambda m: setattr(m.linear, "stride", (2, 2)), "its stride=1 contradicts"),
        (lambda m: setattr(m.linear, "dilation", (2, 2)), "its norm ignores dilation=(2, 2)"),
        (lambda m: setattr(m, "b", 0.5), "its b=0.5 is not a float of at least 1"),
        (lambda m: setattr(m, "max_out", 3), "its max_out=3 does not divide the 4 filters"),
    ],
)
def test_an_instance_changed_afterwards(change, message):
    """The layer computes what its own forward computes, or raises what that raises; the report says why."""
    layer = bk.accelerate(M.BcosConv2d(6, 4, 3, b=1.5).double())
    x = example(layer)
    layer(x)
    change(layer)
    if message is not None:
        assert message in reason(layer)
    try:
        expected = plain(layer)(x)
    except (RuntimeError, TypeError) as error:
        with pytest.raises(type(error)):
            layer(x)
    else:
        assert torch.allclose(layer(x), expected, rtol=1e-12)


@pytest.mark.parametrize("change", [other_norm, other_impl, other_convolution, other_linear_forward])
def test_an_instance_changed_after_it_was_compiled(change):
    """The compiled graph is made anew, as that of the published layer is."""
    torch._dynamo.reset()
    layer = bk.accelerate(M.BcosConv2d(6, 4, 3, b=1.5).double())
    x = example(layer)
    compiled = torch.compile(layer, backend="eager")
    before = compiled(x)
    change(layer)
    y = compiled(x)
    assert torch.allclose(y, plain(layer)(x), rtol=1e-12)
    assert y.shape != before.shape or not torch.allclose(y, before)


def test_padding_changed_under_a_padding_mode():
    """``nn.Conv2d`` keeps the amounts of its other padding modes from when it was made."""
    layer = bk.accelerate(M.BcosConv2d(6, 4, 3, padding=1, padding_mode="reflect").double())
    layer(X)
    layer.padding, layer.linear.padding = 2, (2, 2)
    assert "was changed after it was made" in reason(layer)


def test_a_copy_that_shares_the_norm_of_its_original():
    layer = bk.accelerate(M.BcosConv2d(6, 4, 3, dilation=2, padding=2).double())
    shallow = copy.copy(layer)
    assert bk.report(copy.deepcopy(layer)).accelerated == 1
    assert reason(shallow) == "its calc_patch_norms was assigned on the instance"


def test_a_mode_that_was_replaced(families_published):
    layer = bk.accelerate(families.ModelGuidance.BcosLinear(6, 4).double())
    layer.dynamic_multiplication.forward = lambda weight, input: weight + input
    assert "forward of its .dynamic_multiplication was assigned" in reason(layer)

    class Sum(families.DynamicMultiplication):
        def forward(self, *, weight, input):
            return weight + input

    layer.dynamic_multiplication = Sum()
    assert "its .dynamic_multiplication: the code of Sum.forward" in reason(layer)
    assert torch.allclose(layer(X[0, 0, :2, :]), plain(layer)(X[0, 0, :2, :]), rtol=1e-12)


SPARSE = {
    "sparse": lambda x: x.to_sparse(),
    "sparse rows": lambda x: x.to_sparse_csr(),
    "oneDNN's": lambda x: x.to_mkldnn(),
    "jagged": lambda x: torch.nested.nested_tensor([x, x[:2]], layout=torch.jagged),
    "nested": lambda x: torch.nested.nested_tensor([x, x[:2]]),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:The PyTorch API of nested")
@pytest.mark.parametrize("name", SPARSE)
def test_an_input_that_is_not_dense_runs_the_layers_own_forward(name):
    """At b = 1 a layer is a linear one, which takes such inputs."""
    layer = M.BcosLinear(6, 4, b=1)
    theirs, x = copy.deepcopy(layer), SPARSE[name](torch.rand(3, 6))
    bk.accelerate(layer)
    for inputs in (torch.rand(3, 6), x, x):
        for ours, expected in zip(parts(layer(inputs)), parts(theirs(inputs)), strict=True):
            assert torch.allclose(ours, expected)
    layer.b = theirs.b = 2
    with pytest.raises(RuntimeError) as missing:  # torch has no norm of them, or no product
        theirs(x)
    with pytest.raises(missing.type) as ours:
        layer(x)
    assert str(ours.value) == str(missing.value)


def parts(y):
    """The dense tensors of a result."""
    return y.unbind() if y.is_nested else [y.to_dense()]


def test_a_complex_layer_runs_its_own_forward():
    layer = bk.accelerate(M.BcosLinear(6, 4, dtype=torch.complex128, b=2))
    x = example(M.BcosLinear(6, 4)).to(torch.complex128)
    assert torch.equal(layer(x), plain(layer)(x))
    assert "complex128, not of a floating-point dtype" in reason(layer)


def test_a_linear_part_that_the_code_does_not_read(families_published):
    layer = families.Minimal.BcosConv2d(6, 4, 3).double()
    layer.linear = families.UnitConv2d(6, 4, 3)
    with pytest.warns(UserWarning, match="do not agree on where the weight is"):
        bk.accelerate(layer)


def test_a_part_hidden_by_an_attribute():
    layer = bk.accelerate(M.BcosLinear(6, 4).double())
    vars(layer)["linear"] = nn.Linear(6, 4).double()
    assert reason(layer) == "its linear was assigned on the instance"
    x = example(M.BcosLinear(6, 4))
    assert torch.allclose(layer(x), plain(layer)(x), rtol=1e-12)


@pytest.mark.parametrize("kind", [nn.Sequential, nn.Softmax])
def test_a_linear_part_that_became_another_of_torchs_modules(kind):
    layer = bk.accelerate(M.BcosConv2d(6, 4, 3).double())
    for _ in range(2):
        layer(X)
    layer.linear = nn.Sequential(layer.linear) if kind is nn.Sequential else nn.Softmax(1)
    assert reason(layer) == f"its .linear is {kind.__name__}, neither nn.Conv2d nor nn.Linear"
    if kind is nn.Sequential:
        assert torch.equal(layer(X), plain(layer)(X))


def test_a_weight_hidden_by_an_attribute():
    layer = bk.accelerate(M.BcosLinear(6, 4).double())
    vars(layer.linear)["weight"] = torch.rand(4, 6, dtype=torch.float64)
    x = example(M.BcosLinear(6, 4))
    assert torch.allclose(layer(x), plain(layer)(x), rtol=1e-12)


def same_as_its_own(layer, x, message):
    """The layer computes what its own forward computes, and the report says why."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bk.accelerate(layer)
    y, expected = layer(x), plain(layer)(x)
    assert y.dtype == expected.dtype and y.shape == expected.shape
    assert torch.equal(y, expected)
    if message is not None:
        assert message in reason(layer)


class Rounded(nn.Conv2d):
    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input, weight.round(decimals=1), bias)


def test_a_convolution_whose_inner_method_is_overridden(families_published):
    """``nn.Conv2d.forward`` itself is PyTorch's; what it calls is not."""
    layer = families.Bcosification.BcosifyConv2d(6, 4, 3, b=1.5).double()
    layer.linear = Rounded(6, 4, 3).double()
    same_as_its_own(layer, X, "its .linear: the code of Rounded.forward is not among the published ones")


def test_a_method_of_a_plain_convolution_assigned_on_the_instance(families_published):
    layer = bk.accelerate(families.Bcosification.BcosifyConv2d(6, 4, 3, b=1.5).double())
    layer.linear._conv_forward = lambda input, weight, bias: F.conv2d(input, weight * 3)
    same_as_its_own(layer, X, "the _conv_forward of its .linear was assigned on the instance")


def test_a_plain_convolution_patched_afterwards(families_published, monkeypatch):
    layer = bk.accelerate(families.Bcosification.BcosifyConv2d(6, 4, 3, b=1.5).double())
    monkeypatch.setattr(nn.Conv2d, "_conv_forward", lambda self, input, weight, bias: F.conv2d(input, weight * 3))
    same_as_its_own(layer, X, "Conv2d._conv_forward of torch was replaced")


def test_a_layer_that_torch_prepared_for_quantization(families_published):
    """Its class is torch's own and a subclass of ``nn.Linear``, but no ``nn.Linear``."""
    quantized = pytest.importorskip("torch.ao.nn.qat")
    from torch.ao.quantization import get_default_qat_qconfig

    layer = families.Bcosification.BcosifyLinear(6, 4, b=1.5)
    layer.linear = quantized.Linear(6, 4, qconfig=get_default_qat_qconfig("fbgemm"))
    layer.eval()
    layer.linear.weight_fake_quant.disable_observer()
    same_as_its_own(layer, example(layer).float(), "its .linear: the code of Linear.forward is not among")


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("disguise", ["wraps", "mock"])
def test_a_method_of_torch_patched_in_disguise(disguise, when, monkeypatch):
    """A wrapper takes the name and the module of what it wraps."""
    original = nn.Conv2d._conv_forward

    @functools.wraps(original)
    def doubled(self, input, weight, bias):
        return 2 * original(self, input, weight, bias)

    replaced = mock.MagicMock(side_effect=lambda input, weight, bias: F.conv2d(input, 2 * weight))
    layer = M.BcosConv2d(6, 4, 3, b=1.5).double()
    if when == "after":
        bk.accelerate(layer)
    monkeypatch.setattr(nn.Conv2d, "_conv_forward", doubled if disguise == "wraps" else replaced)
    same_as_its_own(layer, X, "Conv2d._conv_forward of torch was replaced")


def test_code_put_into_a_function(monkeypatch):
    """IPython's autoreload does so with the functions of an edited file."""
    layer = bk.accelerate(M.BcosConv2d(6, 4, 3, b=1.5).double())

    def ones(self, in_tensor):
        return in_tensor.new_ones(1)

    monkeypatch.setattr(M.BcosConv2d.calc_patch_norms, "__code__", ones.__code__)
    same_as_its_own(layer, X, "the code of BcosConv2d.forward is not among the published layers")


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    "make, owner, name",
    [
        (lambda: M.BcosLinear(6, 4, b=1.5), F, "linear"),
        (lambda: M.BcosLinear(6, 4, b=1.5), torch.linalg, "vector_norm"),
        (lambda: M.BcosConv2d(6, 4, 3, b=1.5), F, "avg_pool2d"),
        (lambda: M.BcosConv2d(6, 4, 3, b=1.5), F, "conv2d"),
        (lambda: families.Bcosification.BcosifyLinear(6, 4, b=1.5), F, "linear"),
    ],
)
def test_a_function_of_torch_patched(make, owner, name, when, families_published, monkeypatch):
    layer, original = make().double(), getattr(owner, name)
    if when == "after":
        bk.accelerate(layer)
    monkeypatch.setattr(owner, name, lambda *args, **options: 2 * original(*args, **options))
    same_as_its_own(layer, example(layer), f"{name} was replaced")


def test_a_global_name_bound_to_something_else(families_published, monkeypatch):
    class Product:
        @staticmethod
        def apply(scale, linear, state):
            return 2 * scale * linear

    layer = bk.accelerate(families.ModelGuidance.BcosLinear(6, 4, b=1.5).double())
    monkeypatch.setattr(families, "_LateProduct", Product)
    same_as_its_own(layer, example(layer), "its .dynamic_multiplication: the code of DynamicMultiplication.forward")


def test_a_module_under_the_name_of_another(monkeypatch):
    module = types.ModuleType(F.__name__)
    vars(module).update(vars(F) | {"avg_pool2d": lambda *args, **options: 2 * F.avg_pool2d(*args, **options)})
    monkeypatch.setattr(M.bcosconv2d, "F", module)
    same_as_its_own(M.BcosConv2d(6, 4, 3, b=1.5).double(), X, "which is not the imported module torch.nn.functional")


def test_an_exponent_that_changes_the_shape_or_the_dtype():
    layer = M.BcosLinear(6, 4)
    layer.b = nn.Parameter(torch.full((1, 1), 1.5))
    same_as_its_own(layer, torch.ones(6), "its b is not one floating-point value")
    layer.b = nn.Parameter(torch.full((1,), 1.5, dtype=torch.float64))
    same_as_its_own(layer, torch.ones(3, 6), "its b of shape (1,) gives the output dtype torch.float64")


@pytest.mark.parametrize("b_loss", [None, 0])
def test_a_switch_that_is_neither_on_nor_off(b_loss, families_published):
    """``self.b_loss == False`` is the published test for it."""
    layer = bk.accelerate(families.Bcosification.BcosifyLinear(6, 4).double())
    layer.b_loss = b_loss
    assert f"its b_loss={b_loss} is neither True nor False" in reason(layer)


def test_an_image_without_a_batch():
    """The published norm sums over the second dimension whatever it is."""
    layer = M.BcosConv2d(4, 4, 1, b=1.5).double()
    bk.accelerate(layer)
    x = torch.randn(4, 5, 5, dtype=torch.float64)
    assert torch.equal(layer(x), plain(layer)(x))
    assert bk.report(layer).accelerated == 1


def test_dilation_with_several_filters_for_a_channel():
    layer = M.BcosConv2d(6, 1, 3, dilation=2, padding=2, max_out=2, b=1.5).double()
    same_as_its_own(layer, X, "its norm for dilation has a channel for each filter")


def test_the_norm_for_dilation_is_not_read_at_each_call(monkeypatch):
    layer = bk.accelerate(M.BcosConv2d(6, 4, 3, dilation=2, padding=2).double())
    layer(X)
    monkeypatch.setattr(fingerprint, "of", mock.MagicMock(side_effect=AssertionError))
    layer(X)
