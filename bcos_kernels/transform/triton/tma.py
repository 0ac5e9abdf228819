"""The products of the candidate tma, as :mod:`bcos_kernels.transform.triton.layer` starts them."""

from torch import Tensor

from ...core.candidate import Tile
from ..call import Call
from ..spec import Outputs
from . import tma_matmul, tma_one_pass, tma_tiles
from .weight_norm import Weights

__all__ = ["backward", "forward"]


def forward(call: Call, x: Tensor, weights: Weights, bias, b, out: Outputs, tile: Tile | None) -> None:
    """Writes y, n and l into ``out``."""
    tma_matmul.forward(call, x, weights, bias, b, out, tile or tma_tiles.tiles(call, "forward")[0])


def backward(
    call: Call, grad, x, weights: Weights, b, saved: Outputs, frozen: bool, needs, tile: Tile | None,
    *, bias=None, gradient_map=None,
):  # fmt: skip
    """dx, partial sums of the gradient of the products' weights, dbias and db, which is None."""
    bias = None if bias is None else bias.contiguous()
    v = saved.l if call.saves_linear else saved.y
    if frozen and not any(needs[1:]):
        tile = tile or tma_tiles.tiles(call, "explanation")[0]
        return tma_matmul.dgrad(call, grad, v, saved.n, weights, bias, b, gradient_map, x, tile), None, None, None
    tile = tma_tiles.training_tile(call, gradient_map is not None)  # the only one, for which a map leaves less memory
    return *tma_one_pass.gradients(call, grad, v, saved.n, weights, bias, gradient_map, x, frozen, needs, tile), None
