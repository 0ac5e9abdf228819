"""``accelerate(model, pairs=True)`` by the GPU kernels: the norm's map, and the layers that apply it."""

import pytest
import torch
from pairs_checks import LAYERS, NORMS, check_pair, formed  # noqa: F401
from where import DEVICE, STANDS_IN

MODES = ("training", "evaluation", "explanation")
LAYOUTS = (torch.contiguous_format, torch.channels_last)


def cases():
    """Every layer with both norms; in a stand-in, which is slow, each with one mode, dtype and layout."""
    for i, layer in enumerate(LAYERS):
        for j, norm in enumerate(NORMS):
            for k, mode in enumerate(MODES):
                for candidate in ("semi", "vendor"):
                    number = i + j + k + (candidate == "semi")
                    dtype = (torch.float32, torch.bfloat16)[number % 2]
                    if not STANDS_IN or (i + j) % 3 == k:
                        yield pytest.param(
                            layer, norm, mode, candidate, dtype, LAYOUTS[(number // 2) % 2],
                            id=f"{layer}-{norm}-{mode}-{candidate}-{str(dtype)[6:]}",
                        )  # fmt: skip


@pytest.mark.parametrize("layer, norm, mode, candidate, dtype, layout", list(cases()))
def test_gradients(layer, norm, mode, candidate, dtype, layout, force, formed):  # noqa: F811
    force(candidate)
    check_pair(layer, norm, dtype, layout, mode, DEVICE, formed)


@pytest.mark.parametrize("layer", ["conv3x3", "depthwise"])
def test_a_candidate_that_takes_no_map_is_replaced(layer, force, formed):  # noqa: F811
    force("one-pass")
    check_pair(layer, "batch", torch.float32, torch.channels_last, "training", DEVICE, formed)
