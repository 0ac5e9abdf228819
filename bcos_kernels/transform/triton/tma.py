"""The products of the candidate tma, as :mod:`bcos_kernels.transform.triton.layer` starts them."""

from torch import Tensor

from ...core.candidate import Tile
from ..call import Call
from ..spec import Outputs
from . import tma_matmul, tma_one_pass, tma_tiles, vendor
from .weight_norm import Weights

__all__ = ["backward", "backward_with_vendor", "forward"]


def forward(call: Call, x: Tensor, weights: Weights, bias, b, out: Outputs, tile: Tile | None) -> None:
    """Writes y, n and l into ``out``."""
    tma_matmul.forward(call, x, weights, bias, b, out, tile or tma_tiles.tiles(call, "forward")[0])


def backward(
    call: Call, grad, x, weights: Weights, bias, b, saved: Outputs, frozen: bool, needs, tile: Tile | None,
    gradient_map=None,
):  # fmt: skip
    """dx, partial sums of the gradient of the products' weights, dbias and db, which is None."""
    v = saved.l if call.saves_linear else saved.y
    if frozen and not any(needs[1:]):
        tile = tile or tma_tiles.tiles(call, "explanation")[0]
        dx, _ = tma_matmul.dgrad(
            call, grad, v, saved.n, weights, bias, b, gradient_map, x, "explanation", True, False, tile
        )
        return dx, None, None, None
    tile = tma_tiles.training_tile(call, gradient_map is not None)  # the only one, for which a map leaves less memory
    return *tma_one_pass.gradients(call, grad, v, saved.n, weights, bias, gradient_map, x, frozen, needs, tile), None


def backward_with_vendor(
    call: Call, grad, x, weights: Weights, bias, b, saved: Outputs, frozen: bool, needs, tile: Tile | None,
    gradient_map=None,
):  # fmt: skip
    """The same, of which one kernel forms dx and u = ∂L/∂z, and the vendor the gradient of the products' weights."""
    v = saved.l if call.saves_linear else saved.y
    tile = tile or tma_tiles.tiles_of_product(call, "training")[0]
    tile = tile if gradient_map is None else tma_tiles.beside_map(call, tile)
    with_u = needs[1] or needs[2]
    dx, u = tma_matmul.dgrad(
        call, grad, v, saved.n, weights, bias, b, gradient_map, x, "training", frozen, with_u, tile
    )
    if u is None:
        return dx, None, None, None
    _, partial, dbias = vendor.gradients(call, u, x, weights.operand, (False, *needs[1:]))
    return dx, partial, dbias, None
