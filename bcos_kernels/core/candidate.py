"""What a choice is made of: backends, their candidates, directions and tiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["DIRECTIONS", "REFERENCE", "Backend", "Candidate", "Tile"]

DIRECTIONS = ("forward", "explanation", "training")
"""The forward; the backward of the input alone with the scale frozen; any other backward."""


@dataclass(frozen=True)
class Tile:
    """Rows, columns and depth of a product's step, and the warps and pipeline stages that it is started with."""

    m: int
    n: int
    k: int
    warps: int = 4
    stages: int = 3


@dataclass(frozen=True, eq=False)
class Backend:
    """A set of kernels, and which calls they serve."""

    name: str
    why_not: Callable[[Any], list[str]]
    """``why_not(call)``: the reasons why the backend does not serve a call; empty where it does."""
    interchangeable: bool = False
    """Whether the backend saves the same tensors as all other interchangeable ones, so that one of them may serve the
    forward of a call and another its backward."""

    def __post_init__(self) -> None:
        _EVER_MADE.append(self)


_EVER_MADE: list[Backend] = []
"""They live as long as the process: keys of plans (:mod:`.plans`) tell one from another by its address."""

REFERENCE = Backend("reference", why_not=lambda call: [])
"""The backend in plain PyTorch, which serves every valid call of every op on every device."""


def _no_tiles(call, direction: str) -> list[Tile]:
    return []


def _no_refusal(call, direction: str, compiles: bool = False) -> str:
    return ""


@dataclass(frozen=True, eq=False)
class Candidate:
    """One way in which a backend serves calls of an op."""

    backend: str
    name: str
    forward: Callable[..., tuple] | None
    """``forward(inputs, call, tile) -> outputs``; None for a candidate that serves only backwards."""
    backward: Callable[..., tuple]
    """``backward(grad, inputs, saved, call, tile, frozen, needs) -> gradients``; a gradient not needed is None."""
    serves: Callable[[Any, str], bool] = lambda call, direction: True
    """``serves(call, direction)``: whether it serves a call that its backend serves; see :meth:`can_serve`."""
    tiles: Callable[[Any, str], list[Tile]] = _no_tiles
    """``tiles(call, direction)``: the tiles for the product that forms y or dx, the best guess first."""
    cost: Callable[[Any, str], float] = lambda call, direction: 0.0
    """``cost(call, direction)``: the predicted seconds."""
    refusal: Callable[..., str] = _no_refusal
    """``refusal(call, direction, compiles=False)``: why it cannot serve, on the call's GPU, a direction that it
    ``serves``; empty where it can. Only ``compiles`` allows it to take seconds to find that out."""
    second: Callable[..., tuple] | None = None
    """``second(v, grad, inputs, saved, call, frozen, wanted)``: the gradients of ⟨v, dx⟩, where dx is the gradient of
    the first input that ``backward`` returns. They are those of ``grad``, of the inputs and of the op's intermediates;
    one without value, or not ``wanted`` of ``grad`` and the inputs, is None. The ``backward`` of such a candidate takes
    as its last argument the gradients of the intermediates. Without it the reference gives second derivatives."""
    gradient_map: Callable[..., tuple] | None = None
    """``gradient_map(grad, inputs, saved, call, frozen, needs, joined)``: the gradients that ``backward`` returns, with
    the map ``[4, C]`` of dx in its place; for calls with :attr:`bcos_kernels.core.call.Call.has_gradient_map`."""
    takes_gradient_map: bool = False
    """Whether ``backward`` has an argument ``gradient_map``: what ``grad`` still has to pass, or None."""
    kernels: Callable[[Any, Callable[..., tuple]], Any] | None = None
    """``kernels(call, by_operators)``: what serves all calls of this spec and dtype without a step through Python, an
    object of the extension, or None for calls that take such a step. Called with the inputs it returns the outputs of
    ``forward``, and records a backward by ``backward``. That backward is ``by_operators(grad, inputs, saved, needs,
    gradient_map)`` where it is differentiated, or where something must see operators."""
    takes_rows: Callable[[Any, int], bool] = lambda call, rows: False
    """``takes_rows(call, rows)``: whether ``backward``, asked for the gradient of x alone with the scale frozen, takes
    so many gradients of every image at once, ``[T·N, ...]`` beside inputs and saved outputs of N images, and returns as
    many. These are rows of the dynamic linear map, which share the scale."""

    @property
    def has_tiles(self) -> bool:
        """Whether some call may offer tiles to choose from."""
        return self.tiles is not _no_tiles

    @property
    def compiles(self) -> bool:
        """Whether it may have to compile a call first, which only those make it do who measure or force it."""
        return self.refusal is not _no_refusal

    def can_serve(self, call, direction: str) -> bool:
        """Whether the candidate serves one direction of a call that its backend serves."""
        return (direction != "forward" or self.forward is not None) and self.serves(call, direction)

    def __str__(self) -> str:
        return f"{self.backend} {self.name}"
