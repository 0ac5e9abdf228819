"""An op, declared once: its operators of ``torch.library``, their fakes, vmap rules and derivatives, and who serves it.

``bcos_kernels::NAME`` returns the op's outputs, of which the first is the result and the others are kept for the
backward; an output that a call does not have is an empty tensor. ``bcos_kernels::NAME_backward`` returns a gradient for
every input, empty where not asked for. ``frozen`` makes the scale a constant of this backward alone (late explanation
mode), the option ``detach`` one of every derivative (early explanation mode).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _torch, choice, dispatch
from .call import Spec
from .candidate import Backend, Candidate

__all__ = ["NAMESPACE", "Op"]

NAMESPACE = "bcos_kernels"
library = torch.library.Library(NAMESPACE, "DEF")

_TYPES = {"Tensor": "Tensor", "Tensor | None": "Tensor?"}


class Op:
    """One op. Its first output is differentiable, to any order; the others serve the backward.

    Args:
        name: of the operator.
        spec: the class of its options, a :class:`bcos_kernels.core.call.Spec` with the field ``detach`` and the
            property ``saves_output``: whether the backward needs the first output.
        inputs, outputs: NamedTuple classes whose fields are annotated ``Tensor`` or ``Tensor | None``.
        call: ``call(inputs, spec)``, the :class:`bcos_kernels.core.call.Call` of concrete tensors.
        reference: ``reference(inputs, spec, late)``, the first output in plain PyTorch.
        fake: ``fake(inputs, spec)``, outputs of the right shapes, dtypes and strides.
        batches: whether many inputs x of one call of everything else are one larger batch, along x's first dimension.

    Raises:
        ValueError: the name is taken.
    """

    def __init__(
        self,
        name: str,
        *,
        spec: type[Spec],
        inputs: type[NamedTuple],
        outputs: type[NamedTuple],
        call: Callable[..., Any],
        reference: Callable[..., Tensor],
        fake: Callable[..., tuple],
        batches: bool = False,
    ) -> None:
        if hasattr(getattr(torch.ops, NAMESPACE), name):
            raise ValueError(f"op {name!r} is declared twice: every op needs a name of its own")
        self.name, self.spec, self.inputs, self.outputs = name, spec, inputs, outputs
        self.call, self.reference, self.fake, self.batches = call, reference, fake, batches
        self.backends: dict[str, Backend] = {}
        self.candidates: list[Candidate] = []
        self._candidates_of = lru_cache(maxsize=64)(self._find_candidates)
        self.forward_operator = self._define(
            name,
            f"({_arguments(inputs)}, {spec.schema()}, str backend) -> ({_results(outputs._fields)})",
            self._forward_kernel,
            self._forward_fake,
        )
        first, *others = outputs._fields
        saved = ", ".join((f"Tensor? {first}", *(f"Tensor {other}" for other in others)))
        self.backward_operator = self._define(
            f"{name}_backward",
            f"(Tensor grad, {_arguments(inputs)}, {saved}, {spec.schema()}, bool frozen, bool[{len(inputs._fields)}] "
            f"needs, str backend) -> ({_results(f'd{field}' for field in inputs._fields)})",
            self._backward_kernel,
            self._backward_fake,
        )

    def _define(self, name: str, schema: str, kernel: Callable, fake: Callable):
        library.define(name + schema)
        for key in ("CPU", "CUDA"):
            library.impl(name, kernel, key)
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=library)
        torch.library.register_vmap(f"{NAMESPACE}::{name}", self._vmap(name), lib=library)
        return getattr(getattr(torch.ops, NAMESPACE), name).default

    # ---- who serves it

    def add_backend(self, backend: Backend) -> None:
        """Registers a backend, after those that are preferred to it. Raises ValueError or TypeError, with its name."""
        if backend.name in self.backends:
            raise ValueError(f"backend {backend.name!r} of op {self.name!r} is registered twice")
        if not callable(backend.why_not):
            raise TypeError(f"backend {backend.name!r} of op {self.name!r} has no why_not(call)")
        self.backends[backend.name] = backend

    def add_candidate(self, candidate: Candidate) -> None:
        """Registers a candidate of a registered backend. Raises ValueError, with its name."""
        if candidate.backend not in self.backends:
            raise ValueError(f"candidate {candidate} of op {self.name!r}: no backend {candidate.backend!r} is there")
        if any((c.backend, c.name) == (candidate.backend, candidate.name) for c in self.candidates):
            raise ValueError(f"candidate {candidate} of op {self.name!r} is registered twice")
        self.candidates.append(candidate)
        self._candidates_of.cache_clear()

    def check_backend(self, backend: str | None) -> None:
        """Raises ValueError if the argument ``backend`` names none."""
        if backend is not None:
            dispatch.check(self.backends, backend)

    def has_choice(self, backend: str | None) -> bool:
        """Whether the backends that a string of :meth:`choose` names have several ways to serve a call."""
        return backend is not None and len(self.candidates_of(backend)) > 1

    def choose(self, call, forced: str | None = None) -> str:
        """The backend or backends that serve the call, see :func:`bcos_kernels.core.dispatch.choose`."""
        return dispatch.choose(self.backends, call, forced)

    def reasons(self, call) -> dict[str, list[str]]:
        """Why each backend does not serve the call; an empty list where it does."""
        return dispatch.reasons(self.backends, call)

    def candidates_of(self, backend: str) -> tuple[Candidate, ...]:
        """The candidates of the backends that a string of :meth:`choose` names."""
        return self._candidates_of(backend)

    def _find_candidates(self, backend: str) -> tuple[Candidate, ...]:
        names = dispatch.named(backend)
        return tuple(sorted((c for c in self.candidates if c.backend in names), key=lambda c: names.index(c.backend)))

    # ---- the operators

    def _forward_kernel(self, *args):
        inputs, spec, (backend,) = self.parsed(args)
        return self._serve(inputs, self.call(inputs, spec), backend)

    def _serve(self, inputs, call, backend: str) -> tuple:
        call = call.now()
        chosen = choice.choose(self, backend, call, "forward")
        assert chosen.candidate.forward is not None
        return chosen.candidate.forward(inputs, call, chosen.tile)

    def _forward_fake(self, *args):
        inputs, spec, _ = self.parsed(args)
        return tuple(self.fake(inputs, spec))

    def _backward_kernel(self, grad, *args):
        inputs, saved, spec, (frozen, needs, backend) = self.parsed_backward(args)
        grads = self._serve_backward(grad, inputs, saved, self.call(inputs, spec), frozen, needs, backend)
        return tuple(grad.new_empty(0) if g is None else g for g in grads)

    def _serve_backward(self, grad, inputs, saved, call, frozen: bool, needs, backend: str) -> tuple:
        frozen = frozen or call.spec.detach
        direction = "explanation" if frozen and not any(needs[1:]) else "training"
        call = call.of_backward(needs)
        chosen = choice.choose(self, backend, call, direction)
        return chosen.candidate.backward(grad, inputs, saved, call, chosen.tile, frozen, needs)

    def _backward_fake(self, grad, *args):
        inputs, _, _, (_, needs, _) = self.parsed_backward(args)
        return tuple(
            torch.empty_like(t) if need and t is not None else grad.new_empty(0)
            for t, need in zip(inputs, needs, strict=True)
        )

    def parsed(self, args: tuple) -> tuple:
        """(inputs, spec, what is left) of a forward operator's arguments."""
        count, options = len(self.inputs._fields), len(self.spec.__dataclass_fields__)
        spec = self.spec.of_flat(args[count : count + options])
        return self.inputs(*args[:count]), spec, args[count + options :]

    def parsed_backward(self, args: tuple) -> tuple:
        """(inputs, saved, spec, what is left) of a backward operator's arguments after ``grad``."""
        count, kept = len(self.inputs._fields), len(self.outputs._fields)
        inputs, saved = self.inputs(*args[:count]), self.outputs(*args[count : count + kept])
        _, spec, rest = self.parsed((*inputs, *args[count + kept :]))
        return inputs, saved, spec, rest

    def _vmap(self, name: str) -> Callable:
        """A forward that differs in x alone is one of a larger batch; anything else is one call per slice."""

        def rule(info, in_dims, *args):
            operator = getattr(getattr(torch.ops, NAMESPACE), name)
            dims = [d if isinstance(a, Tensor) else None for a, d in zip(args, in_dims, strict=True)]
            if self.batches and name == self.name and dims[0] is not None and not any(d is not None for d in dims[1:]):
                outputs = operator(args[0].movedim(dims[0], 0).flatten(0, 1), *args[1:])
                size = (info.batch_size, args[0].shape[dims[0] == 0])
                found = tuple(t.unflatten(0, size) if t.dim() > 1 else t.expand(size[0], 0) for t in outputs)
                return found, (0,) * len(found)
            slices = [
                operator(*(a if d is None else a.select(d, i) for a, d in zip(args, dims, strict=True)))
                for i in range(info.batch_size)
            ]
            found = tuple(torch.stack(outputs) for outputs in zip(*slices, strict=True))
            return found, (0,) * len(found)

        return rule

    # ---- one call per direction; where nothing watches operators past torch's dispatcher, in half the time

    def dispatched(self, inputs, spec: Spec, backend: str) -> tuple:
        """The outputs by the operator, which is differentiable."""
        return self.outputs(*self.forward_operator(*inputs, *spec.flat(), backend))

    def forward(self, inputs, call, backend: str) -> tuple:
        """The outputs without a graph."""
        if torch.compiler.is_compiling() or _is_seen(inputs):
            return self.dispatched(inputs, call.spec, backend)
        return self._serve(inputs, call, backend)

    def backward(self, grad: Tensor, inputs, saved, call, frozen: bool, needs, backend: str) -> tuple:
        """A gradient for every input, ``None`` where ``needs`` is false; differentiable where the grad mode is on."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or _is_seen((grad, *inputs)):
            grads = self.backward_operator(grad, *inputs, *saved, *call.spec.flat(), frozen, list(needs), backend)
        else:
            grads = self._serve_backward(grad, inputs, saved, call, frozen, needs, backend)
        return tuple(g if need else None for g, need in zip(grads, needs, strict=True))


def _is_seen(tensors) -> bool:
    """Whether a transform, a trace, a mode or a special kind of tensor is to see the operators."""
    if _torch.transformed() or _torch.is_watched():
        return True
    return not all(t is None or _torch.is_plain(t) for t in tensors)


def _arguments(inputs: type[NamedTuple]) -> str:
    kinds = inputs.__annotations__.items()
    return ", ".join(f"{_TYPES[str(getattr(kind, '__forward_arg__', kind))]} {name}" for name, kind in kinds)


def _results(names) -> str:
    return ", ".join(f"Tensor {name}" for name in names)
