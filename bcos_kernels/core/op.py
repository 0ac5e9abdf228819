"""The declaration of an op: operators of ``torch.library`` with fakes, vmap rules and derivatives, and its backends.

``bcos_kernels::NAME`` returns the op's outputs: the first is the result, the others are kept for the backward. An
output that a call does not have is an empty tensor. ``bcos_kernels::NAME_backward`` returns a gradient for every input;
one that is not needed is an empty tensor. With ``frozen`` the scale is a constant of this backward alone (late
explanation mode); with the option ``detach`` it is a constant of every derivative (early explanation mode).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _torch, choice, dispatch, flops, formats
from .call import Spec
from .candidate import Backend, Candidate
from .formula import mapped

__all__ = ["NAMESPACE", "Op"]

NAMESPACE = "bcos_kernels"
library = torch.library.Library(NAMESPACE, "DEF")

_TYPES = {"Tensor": "Tensor", "Tensor | None": "Tensor?"}


class Op:
    """One op. Its first output is differentiable to any order; the others are constants, kept for the backward.

    Args:
        name: the name of the forward operator.
        spec: the class of the options, a subclass of :class:`bcos_kernels.core.call.Spec` with the field ``detach``
            and the property ``saves_output``, which says whether the backward needs the first output.
        inputs, outputs: NamedTuple classes whose fields are annotated ``Tensor`` or ``Tensor | None``.
        call: ``call(inputs, spec)`` returns the :class:`bcos_kernels.core.call.Call` of concrete tensors.
        reference: ``reference(inputs, spec, late)`` computes the returned outputs in plain PyTorch, as a tuple.
        fake: ``fake(inputs, spec)`` returns outputs of the right shapes, dtypes and strides.
        batches: whether the first dimension of x is a batch of independent rows, so that vmap over x alone is one call
            of a larger batch.
        scaling: the inputs that shape the scale alone, and so have no gradient in a backward that freezes it.
        added: the inputs that are only added to the first output: neither its gradients nor the intermediates depend on
            them.
        returned: how many of the outputs the caller of a function gets; the rest is kept for the backward alone.
        second_in_parts: ``second_in_parts(derived, grad, inputs, spec, grads, wanted)`` forms the second derivative of
            the reference in parts that need less memory: the gradients of ``grad`` and of the inputs, None for those
            not ``wanted``, from ``grads``, those of the gradients of the inputs, of which some are None.
            ``derived(function, grad, inputs, grads, wanted)`` does it for any function of tensors.
        flops: ``flops(call, needs)`` is what torch's counter of FLOPs counts, of a backward with these ``needs``, or of
            a forward, where they are None; without it nothing is counted.

    Raises:
        ValueError: an op of this name exists.
        TypeError: an option of ``spec`` has a type that no schema can hold.
    """

    def __init__(
        self,
        name: str,
        *,
        spec: type[Spec],
        inputs: type[NamedTuple],
        outputs: type[NamedTuple],
        call: Callable[..., Any],
        reference: Callable[..., tuple[Tensor, ...]],
        fake: Callable[..., tuple],
        batches: bool = False,
        scaling: tuple[str, ...] = (),
        added: tuple[str, ...] = (),
        returned: int = 1,
        second_in_parts: Callable[..., tuple] | None = None,
        flops: Callable[..., int] | None = None,
    ) -> None:
        if hasattr(getattr(torch.ops, NAMESPACE), name):
            raise ValueError(f"op {name!r} is declared twice: every op needs a name of its own")
        self.name, self.spec, self.inputs, self.outputs = name, spec, inputs, outputs
        self.call, self.reference, self.fake, self.batches = call, reference, fake, batches
        self.returned, self.second_in_parts, self.flops = returned, second_in_parts, flops
        self.has_frozen_gradient = tuple(field not in scaling for field in inputs._fields)
        self.is_added = tuple(field in added for field in inputs._fields)
        self.backends: dict[str, Backend] = {}
        self.candidates: list[Candidate] = []
        self.candidates_of = lru_cache(maxsize=64)(self._candidates_of)
        self.without_choice = lru_cache(maxsize=64)(self._without_choice)
        self.forward_operator = self._define(
            name,
            f"({_arguments(inputs)}, {spec.schema()}, str backend) -> ({_results(outputs._fields)})",
            self._forward_kernel,
            self._forward_fake,
        )
        first, *others = outputs._fields
        names = [f"saved_{other}" if other in inputs._fields else other for other in others]  # no name stands twice
        saved = ", ".join((f"Tensor? {first}", *(f"Tensor {name}" for name in names)))
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

    # ---- who serves a call

    def add_backend(self, backend: Backend) -> None:
        """Registers a backend; those registered before it are preferred.

        Raises:
            ValueError: a backend of this name is registered.
            TypeError: its ``why_not`` is not a function.
        """
        if backend.name in self.backends:
            raise ValueError(f"backend {backend.name!r} of op {self.name!r} is registered twice")
        if not callable(backend.why_not):
            raise TypeError(f"backend {backend.name!r} of op {self.name!r} has no why_not(call)")
        self.backends[backend.name] = backend
        dispatch.OF_ANY_OP.add(backend.name)

    def add_candidate(self, candidate: Candidate) -> None:
        """Registers a candidate. Raises ValueError if its backend is unknown or has a candidate of this name."""
        if candidate.backend not in self.backends:
            raise ValueError(
                f"candidate {candidate} of op {self.name!r}: backend {candidate.backend!r} is not registered"
            )
        if any((c.backend, c.name) == (candidate.backend, candidate.name) for c in self.candidates):
            raise ValueError(f"candidate {candidate} of op {self.name!r} is registered twice")
        self.candidates.append(candidate)
        self.candidates_of.cache_clear()
        self.without_choice.cache_clear()

    def check_backend(self, backend: str | None) -> None:
        """Raises ValueError unless ``backend`` is None or names backends of this op."""
        if backend is not None:
            dispatch.check(self.backends, backend)

    def has_choice(self, backend: str | None) -> bool:
        """Whether the backends in a result of :meth:`choose` have several candidates; False for None."""
        return backend is not None and len(self.candidates_of(backend)) > 1

    def choose(self, call, forced: str | None = None) -> str:
        """The backend or backends that serve the call; see :func:`bcos_kernels.core.dispatch.choose`."""
        return dispatch.choose(self.backends, call, forced, self.name)

    def reasons(self, call) -> dict[str, list[str]]:
        """Why each backend does not serve the call; an empty list where it does."""
        return dispatch.reasons(self.backends, call)

    def _candidates_of(self, backend: str) -> tuple[Candidate, ...]:
        """The candidates of the backends in a result of :meth:`choose`."""
        names = dispatch.named(backend)
        return tuple(sorted((c for c in self.candidates if c.backend in names), key=lambda c: names.index(c.backend)))

    def _without_choice(self, backend: str) -> Candidate | None:
        """The candidate of a backend that leaves nothing to choose; None where there is a choice."""
        found = self.candidates_of(backend)
        return found[0] if len(found) == 1 and not found[0].has_tiles else None

    # ---- the operators

    def _forward_kernel(self, *args):
        inputs, spec, (backend,) = self.parsed(args)
        return self.serve(inputs, self.call(inputs, spec), backend)

    def serve(self, inputs, call, backend: str) -> tuple:
        """All outputs, of the candidate that is chosen for the call."""
        call, lone = call.now(), self.without_choice(backend)
        if lone is not None and lone.forward is not None:
            return lone.forward(inputs, call, None)
        chosen = choice.choose(self, backend, call, "forward")
        assert chosen.candidate.forward is not None
        return chosen.candidate.forward(inputs, call, chosen.tile)

    def _forward_fake(self, *args):
        inputs, spec, _ = self.parsed(args)
        return tuple(self.fake(inputs, spec))

    def _backward_kernel(self, grad, *args):
        inputs, saved, spec, (frozen, needs, backend) = self.parsed_backward(args)
        grads = self.serve_backward(grad, inputs, saved, self.call(inputs, spec), frozen, needs, backend)
        return tuple(
            grad.new_empty(0) if g is None or t is None else g.contiguous(memory_format=formats.suggested(t))
            for g, t in zip(grads, inputs, strict=True)
        )

    def serve_backward(self, grad, inputs, saved, call, frozen: bool, needs, backend: str, gradient_map=None) -> tuple:
        """The gradients, of the candidate that is chosen for the call; those that are not needed may be None."""
        frozen, options = frozen or call.spec.detach, _given(gradient_map)
        call, lone = call.of_backward(needs), self.without_choice(backend)
        if lone is not None:
            return lone.backward(grad, inputs, saved, call, None, frozen, needs, **options)
        direction = "explanation" if frozen and not any(needs[1:]) else "training"
        chosen = choice.choose(self, backend, call, direction)
        if gradient_map is not None and not chosen.candidate.takes_gradient_map:
            chosen = choice.taking_map(self, backend, call, direction)
        return chosen.candidate.backward(grad, inputs, saved, call, chosen.tile, frozen, needs, **options)

    def _backward_fake(self, grad, *args):
        inputs, _, _, (_, needs, _) = self.parsed_backward(args)
        return tuple(
            torch.empty_like(t, memory_format=formats.suggested(t)) if need and t is not None else grad.new_empty(0)
            for t, need in zip(inputs, needs, strict=True)
        )

    def parsed(self, args: tuple) -> tuple:
        """``(inputs, spec, remaining arguments)`` from a forward operator's arguments."""
        count, options = len(self.inputs._fields), len(self.spec.__dataclass_fields__)
        spec = self.spec.of_flat(args[count : count + options])
        return self.inputs(*args[:count]), spec, args[count + options :]

    def parsed_backward(self, args: tuple) -> tuple:
        """``(inputs, saved, spec, remaining arguments)`` from a backward operator's arguments after ``grad``."""
        count, kept = len(self.inputs._fields), len(self.outputs._fields)
        inputs, saved = self.inputs(*args[:count]), self.outputs(*args[count : count + kept])
        _, spec, rest = self.parsed((*inputs, *args[count + kept :]))
        return inputs, saved, spec, rest

    def _vmap(self, name: str) -> Callable:
        """The vmap rule: one call of a larger batch where that computes the same, all else one call per slice.

        That is a forward batched over x alone, and a backward batched over the gradient alone that forms rows of the
        dynamic linear map.
        """

        def rule(info, in_dims, *args):
            operator = getattr(getattr(torch.ops, NAMESPACE), name)
            dims = [d if isinstance(a, Tensor) else None for a, d in zip(args, in_dims, strict=True)]
            alone = dims[0] is not None and not any(d is not None for d in dims[1:])
            if alone and name != self.name and (rows := self._of_rows(args[0].movedim(dims[0], 0), args[1:])):
                return rows, (0, *(None,) * (len(rows) - 1))
            if self.batches and name == self.name and alone:
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

    def _of_rows(self, grads: Tensor, args: tuple) -> tuple | None:
        """The backward operator's results for several gradients ``[T, *y]`` of the same call, in one call of a kernel.

        None where that is not possible: with the scale frozen and the gradient of x alone, T gradients differ in
        nothing else, but a candidate must take them.
        """
        inputs, saved, spec, (frozen, needs, backend) = self.parsed_backward(args)
        if not (frozen or spec.detach) or not needs[0] or any(needs[1:]):
            return None
        if torch.is_grad_enabled() or grads.numel() == 0 or _torch.is_seen_beside_vmap((grads, *inputs)):
            return None
        call = self.call(inputs, spec).of_backward(needs)
        taker = next((c for c in self.candidates_of(backend) if c.takes_rows(call, len(grads))), None)
        if taker is None:
            return None
        dx, *others = taker.backward(grads.flatten(0, 1), inputs, saved, call, None, True, needs)
        return dx.unflatten(0, (-1, len(inputs[0]))), *(grads.new_empty(0) for _ in others)

    # ---- a call of each direction: past torch's dispatcher, in half the time, where nothing has to see the operators

    def dispatched(self, inputs, spec: Spec, backend: str) -> tuple:
        """The outputs of the operator, which is differentiable."""
        if not torch.compiler.is_compiling():
            flops.tell_counters(self)
        return self.outputs(*self.forward_operator(*inputs, *spec.flat(), backend))

    def forward(self, inputs, call, backend: str) -> tuple:
        """The outputs, without recording derivatives."""
        if torch.compiler.is_compiling() or _torch.is_seen(inputs):
            return self.dispatched(inputs, call.spec, backend)
        return self.serve(inputs, call, backend)

    def backward(
        self, grad: Tensor, inputs, saved, call, frozen: bool, needs, backend: str, gradient_map=None
    ) -> tuple:
        """A gradient for every input, ``None`` where ``needs`` is False; differentiable if the grad mode is on.

        ``gradient_map`` is what ``grad`` still has to pass before it is the gradient of the first output; see
        :mod:`bcos_kernels.core.pairs`.
        """
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or _torch.is_seen((grad, *inputs)):
            grad = grad if gradient_map is None else mapped(grad, saved[0], gradient_map)
            grads = self.backward_operator(grad, *inputs, *saved, *call.spec.flat(), frozen, list(needs), backend)
        else:
            grads = self.serve_backward(grad, inputs, saved, call, frozen, needs, backend, gradient_map)
        return tuple(g if need else None for g, need in zip(grads, needs, strict=True))

    def takes_gradient_map(self, call, backend: str) -> bool:
        """Whether :meth:`backward` may be given a map for this call."""
        return call.takes_gradient_map and any(
            candidate.takes_gradient_map for candidate in self.candidates_of(backend)
        )

    def gradient_map(
        self, grad: Tensor, joined: tuple, inputs, saved, call, frozen: bool, needs, backend: str
    ) -> tuple | None:
        """The gradients with the map of dx in its place; None where no candidate has one."""
        for candidate in self.candidates_of(backend):
            if candidate.gradient_map is not None:
                return candidate.gradient_map(
                    grad, inputs, saved, call, frozen or call.spec.detach, needs, joined or (None,)
                )
        return None

    def second(self, v: Tensor, grad: Tensor, inputs, saved, call, frozen: bool, wanted, backend: str) -> tuple | None:
        """The second derivative as :attr:`Candidate.second` forms it; None where only the reference does."""
        if not call.has_second(frozen or call.spec.detach):
            return None
        for candidate in self.candidates_of(backend):
            if candidate.second is not None:
                return candidate.second(v, grad, inputs, saved, call, frozen, wanted)
        return None

    def without_added(self, needs) -> tuple[bool, ...]:
        """The gradients that are needed and exist where the first output itself has no gradient."""
        return tuple(need and not added for need, added in zip(needs, self.is_added, strict=True))

    def joined(
        self,
        grad: Tensor | None,
        joined: tuple,
        inputs,
        saved,
        call,
        frozen: bool,
        needs,
        backend: str,
        gradient_map=None,
    ) -> tuple:
        """A backward that also takes the gradients ``joined`` of the op's intermediates, from :meth:`second`."""
        if grad is None:
            needs = self.without_added(needs)
        candidate = next(c for c in self.candidates_of(backend) if c.second is not None)
        call = call.of_backward(needs)
        return candidate.backward(grad, inputs, saved, call, None, frozen, needs, joined, **_given(gradient_map))


def _given(gradient_map: Tensor | None) -> dict[str, Tensor]:
    """The argument of a candidate's backward, which only those have that take it."""
    return {} if gradient_map is None else {"gradient_map": gradient_map}


def _arguments(inputs: type[NamedTuple]) -> str:
    kinds = inputs.__annotations__.items()
    return ", ".join(f"{_TYPES[str(getattr(kind, '__forward_arg__', kind))]} {name}" for name, kind in kinds)


def _results(names) -> str:
    return ", ".join(f"Tensor {name}" for name in names)
