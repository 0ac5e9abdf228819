"""torch's counter of FLOPs counts a layer of this package as the plain layer of the same sizes."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import bcos_kernels as bk
from bcos_kernels.compat import import_reference

LAYERS = {
    "linear": (bk.BcosLinear(8, 6), nn.Linear(8, 6, bias=False), (3, 5, 8)),
    "conv1d": (bk.BcosConv1d(8, 6, 3), nn.Conv1d(8, 6, 3), (2, 8, 9)),
    "conv2d": (bk.BcosConv2d(8, 6, 3, 2, 1), nn.Conv2d(8, 6, 3, 2, 1), (2, 8, 9, 7)),
    "max_out": (bk.BcosConv2d(8, 3, 1, max_out=2), nn.Conv2d(8, 6, 1), (2, 8, 5, 5)),
    "padding": (bk.BcosConv2d(8, 6, 3, padding=1, padding_mode="reflect"), nn.Conv2d(8, 6, 3, padding=1), (2, 8, 5, 5)),
    "conv3d": (bk.BcosConv3d(4, 6, 3), nn.Conv3d(4, 6, 3), (2, 4, 5, 4, 3)),
}


def counted(function) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_counts_as_a_plain_one(name):
    layer, plain, shape = LAYERS[name]
    for of_x in (False, True):
        for of_weight in (False, True):
            layer.requires_grad_(of_weight), plain.requires_grad_(of_weight)
            x = torch.rand(shape, requires_grad=of_x)

            def trained(model, x=x):
                y = model(x)
                if y.requires_grad:
                    y.sum().backward()

            mine, theirs = (counted(lambda model=model: trained(model)) for model in (layer, plain))
            assert mine == theirs > 0
    with torch.inference_mode():
        assert counted(lambda: layer(torch.rand(shape))) == counted(lambda: plain(torch.rand(shape))) > 0


def test_an_accelerated_model_counts_as_it_did_before():
    layer = import_reference().modules.BcosConv2d
    model = nn.Sequential(layer(4, 8, 3, padding=1), layer(8, 6, 3, stride=2, max_out=2), layer(6, 2, 1))
    x = torch.rand(2, 4, 8, 8)
    before = counted(lambda: model(x).sum().backward())
    bk.accelerate(model)
    assert counted(lambda: model(x).sum().backward()) == before > 0


def test_a_grouped_layer_counts_the_products_that_are_formed():
    """torch's own formula of a convolution counts its weight's gradient once for every group."""
    layer, x = bk.BcosConv2d(8, 8, 3, groups=4, padding=1), torch.rand(2, 8, 5, 5, requires_grad=True)
    forward = counted(lambda: nn.Conv2d(8, 8, 3, groups=4, padding=1)(x))
    assert counted(lambda: layer(x)) == forward
    assert counted(lambda: layer(x).sum().backward()) == 3 * forward


def test_the_backward_of_a_forward_that_was_not_counted():
    layer, x = bk.BcosConv2d(4, 6, 3), torch.rand(2, 4, 5, 5, requires_grad=True)
    y = layer(x)
    assert counted(lambda: y.sum().backward()) == 2 * counted(lambda: layer(x)) > 0


def test_counts_stand_under_the_modules_of_a_model():
    model = nn.Sequential(bk.BcosConv2d(4, 6, 3), bk.BcosConv2d(6, 2, 1))
    with FlopCounterMode(display=False) as counter:
        model(torch.rand(1, 4, 4, 4))
    counts = {name: sum(found.values()) for name, found in counter.get_flop_counts().items()}
    assert counts["Sequential.0"] == 2 * 4 * 6 * 4 * 9 and counts["Sequential.1"] == 2 * 4 * 2 * 6
    assert counts["Global"] == counts["Sequential.0"] + counts["Sequential.1"]


def test_an_exported_program_is_counted():
    model, x = nn.Sequential(bk.BcosConv2d(4, 6, 3), nn.Flatten()).eval(), torch.rand(1, 4, 4, 4)
    forward = counted(lambda: model(x))
    program = torch.export.export(model, (x,)).module()
    assert counted(lambda: program(x)) == forward


def test_a_formula_of_the_callers_own_is_kept():
    x, layer = torch.rand(1, 4, 4, 4), bk.BcosConv2d(4, 6, 3)
    own = {torch.ops.bcos_kernels.transform: lambda *args, out_shape=None, **kwargs: 7}
    with FlopCounterMode(display=False, custom_mapping=own) as counter:
        layer(x)
    assert counter.get_total_flops() == 7


def test_dynamic_alignment_counts_as_its_formula_in_plain_pytorch():
    x = torch.rand(2, 3, 5, 5)
    projection, weight = (torch.rand(shape, requires_grad=True) for shape in ((4, 3, 3, 3), (3 * 9 * 6, 4)))

    def trained(backend):
        weights = projection, weight.view(-1, 4, 1, 1)
        bk.functional.dynamic_alignment(x, *weights, padding=1, backend=backend).sum().backward()

    counts = {backend: counted(lambda backend=backend: trained(backend)) for backend in ("cpu", "reference", "torch")}
    assert counts["cpu"] == counts["reference"] == counts["torch"] > 3 * 2 * (2 * 25) * (3 * 9) * 6 * 4
