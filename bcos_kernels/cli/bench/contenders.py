"""The contenders: the plain module, the reference, compiled ones and ours; and the parity check before any timing."""

from __future__ import annotations

import copy
import os
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ...adopt import Row, accelerate, report
from ...core.candidate import DIRECTIONS
from ...core.choice import Choice, forced
from ...modules import BcosLayer
from ...transform import TRANSFORM
from ...transform.call import of_shapes
from .results import CONTENDERS, EVERY

__all__ = [
    "BACKENDS", "COMPILED", "FOLDED", "PAIRS", "PLAIN", "Contender", "Contest", "build", "error", "in_a_line",
    "known", "possible", "refusal", "served", "unjudged",
]  # fmt: skip

PLAIN = ("plain", "compiled plain")
"""The contenders that compute something else and are not compared with the reference."""
COMPILED = {"compiled": "reference", "compiled plain": "plain", "compiled ours": "ours"}
"""A contender made by torch.compile -> the one that it compiles."""
PAIRS = "ours pairs"
"""Ours by ``accelerate(model, pairs=True)``; it takes part where it is named."""
FOLDED = "ours folded"
"""Ours by ``fold``, for measures of evaluation; it takes part where it is named."""
BACKENDS = tuple(name for name in TRANSFORM.backends if name != "reference")
WORST, WORST_OF_HALF = 1e-2, 0.5
"""The largest relative error of the reference with which it can be a bound: in fp32 and float64, and in bf16 and fp16,
where a deep network loses more. Zeros have an error of 1 and would pass a bound near it."""


def candidates(backend: str) -> tuple[str, ...]:
    """The candidates of a backend, where it has several."""
    return tuple(c.name for c in TRANSFORM.candidates_of(backend)) if TRANSFORM.has_choice(backend) else ()


def known() -> tuple[str, ...]:
    """The names of all contenders, including those that this machine or a workload does not allow."""
    ours = [f"ours/{backend}" for backend in BACKENDS]
    forced = [f"ours/{backend}/{candidate}" for backend in BACKENDS for candidate in candidates(backend)]
    return *CONTENDERS, *ours, *forced


def possible(device: str) -> tuple[str, ...]:
    """The names of the contenders that this machine can run on a device: ``cpu`` or ``cuda``."""
    call = replace(of_shapes((1, 8, 4, 4), (8, 8, 1, 1)), device=device)
    unserved = {name for name in BACKENDS if TRANSFORM.backends[name].why_not(call)}
    cannot_compile = device == "cpu" and shutil.which(os.environ.get("CXX") or "g++") is None
    allowed = (name for name in known() if not (cannot_compile and name in COMPILED))
    return tuple(name for name in allowed if name.split("/")[1:2] == [] or name.split("/")[1] not in unserved)


@dataclass(frozen=True)
class Contender:
    """A module, and the backend and the candidate that are forced to serve it, if any."""

    module: nn.Module
    backend: str | None = None
    candidate: str | None = None

    def within(self):
        """The context in which the module is called; it yields the choices that :func:`forced` records."""
        return nullcontext({}) if self.candidate is None else forced(self.candidate)


@dataclass(frozen=True)
class Contest:
    """What one row compares: the contenders, and what is checked and timed of each on one input."""

    contenders: dict[str, Contender]
    x: Tensor
    direction: str
    """The direction that is measured, of ``DIRECTIONS``."""
    exact: Callable[[], Sequence[Tensor]]
    """Computes the reference's results in float64."""
    compared: Callable[..., Sequence[Tensor]]
    """Computes a module's results, which are compared with ``exact``; where there are ``turns``, those of one turn."""
    step: Callable[[nn.Module], Callable[[], object]]
    """Makes the call of a module that is timed."""
    graph: Callable[[nn.Module], Tensor] | None
    """The forward whose saved bytes are counted; None for a measure that builds no graph."""
    turns: int = 1
    """Number of evaluations that decide, where the error of a single one is mostly chance."""

    def admitted(self) -> tuple[dict[str, list[float] | None], dict[str, str]]:
        """``(errors, refused)``: the errors of the contenders that may be timed, and why the others may not.

        Every contender is refused where the reference's own error is above the limit of :func:`unjudged`, because it
        is no bound then. A contender that is less exact than the reference gets all turns, and so does the reference;
        it is refused if the smallest of its errors is above the bound of the reference's largest, which happens by
        chance once in 70 times with 4 turns. Whatever the reference raises is raised: without it there is no bound.
        """
        exact = self.exact()
        bound = error(self.compared(self.contenders["reference"].module), exact)
        reason = unjudged(bound, self.x.dtype)
        if reason is not None:
            return {}, {EVERY: reason}
        errors: dict[str, list[float] | None] = {}
        refused: dict[str, str] = {}
        worst: list[float] = []
        for name, contender in self.contenders.items():
            if name == "reference" or name in PLAIN:
                errors[name] = None if name in PLAIN else bound
                continue
            try:
                with contender.within() as chosen:
                    own = error(self.compared(contender.module), exact)
                    reason = refusal(own, bound, self.x.dtype)
                    if reason is not None and self.turns > 1:
                        worst = worst or self._over_turns(self.contenders["reference"].module, exact, bound, max)
                        reason = refusal(self._over_turns(contender.module, exact, own, min), worst, self.x.dtype)
            except Exception as failure:  # one contender's; the others are timed
                chosen, reason = {}, in_a_line(failure)
            if reason is not None:
                refused[name] = reason
            elif contender.candidate is None or self._serves(chosen, contender.candidate):
                errors[name] = own
        return errors, refused

    def _over_turns(self, module: nn.Module, exact: Sequence[Tensor], first: list[float], reduce: Callable) -> list:
        further = [error(self.compared(module, turn), exact) for turn in range(1, self.turns)]
        return [reduce(errors) for errors in zip(first, *further, strict=True)]

    def _serves(self, chosen: dict[str, tuple[object, Choice]], candidate: str) -> bool:
        """Whether the candidate served the measured direction; where it does not exist another one did."""
        return any(choice.candidate.name == candidate for key, (_, choice) in chosen.items() if key == self.direction)

    def call(self, name: str) -> Callable[[], object]:
        """The timed step of one contender."""
        contender = self.contenders[name]
        if contender.candidate is None:
            return self.step(contender.module)
        with contender.within():
            step = self.step(contender.module)

        def call() -> object:
            with contender.within():
                return step()

        return call


def in_a_line(failure: Exception) -> str:
    """The type and the message of a failure, in one line."""
    text = " ".join(str(failure).split())[:300]
    return f"{type(failure).__name__}: {text}" if text else type(failure).__name__


def build(
    reference: nn.Module, plain: nn.Module | None, wanted: Collection[str], lone: bool = False
) -> dict[str, Contender]:
    """The wanted contenders, and always the reference; all but those of ``PLAIN`` hold equal weights.

    A backend is forced only where several serve the module, because otherwise ``ours`` is the same; ``lone`` forces it
    there, too.
    """
    found = {} if plain is None or "plain" not in wanted else {"plain": Contender(plain)}
    found["reference"] = Contender(reference)
    ours = _by(reference, None)
    originals = {"plain": plain, "reference": reference, "ours": ours}
    for name, of in COMPILED.items():
        if name in wanted and (original := originals[of]) is not None:
            compiled = torch.compile(copy.deepcopy(original), dynamic=False)
            found[name] = Contender(compiled)  # type: ignore[arg-type]  # a module, which torch declares a function
    serving = _serving(ours)
    for backend in serving:
        if (lone or len(serving) > 1) and f"ours/{backend}" in wanted:
            found[f"ours/{backend}"] = Contender(_by(ours, backend), backend)
        for candidate in candidates(backend):
            if (name := f"ours/{backend}/{candidate}") in wanted:
                found[name] = Contender(_by(ours, backend), backend, candidate)
    if "ours" in wanted:
        found["ours"] = Contender(ours)
    if PAIRS in wanted:
        found[PAIRS] = Contender(accelerate(copy.deepcopy(reference), pairs=True))
    if FOLDED in wanted:
        found[FOLDED] = Contender(copy.deepcopy(ours))  # folded once its statistics are those of the measure
    return found


def _by(module: nn.Module, backend: str | None) -> nn.Module:
    """A copy that is served by this backend; by the usual one for None. It may hold layers of this package."""
    made = accelerate(copy.deepcopy(module), backend=backend)
    for layer in made.modules():
        if isinstance(layer, BcosLayer):
            layer.backend = backend
    return made


def _serving(ours: nn.Module) -> list[str]:
    """The backends that serve every layer of an accelerated module."""
    usual = _rows(ours)
    found = []
    for backend in BACKENDS:
        rows = _rows(_by(ours, backend))
        if usual and all(mine.backend or not row.backend for row, mine in zip(usual, rows, strict=True)):
            found.append(backend)
    return found


def _rows(module: nn.Module, *example: Tensor) -> tuple[Row, ...]:
    """The report's rows of the B-cos layers; of a module without any, those of its norms."""
    found = report(module, *example)
    return found.layers or found.rows


def served(contender: Contender, x: Tensor, direction: str) -> dict[str, int]:
    """``backend``, ``backend/candidate`` or ``own forward`` -> how many layers it serves in one direction."""
    rows = _rows(contender.module, x)
    if contender.candidate is not None:
        return {f"{contender.backend}/{contender.candidate}": len(rows)}
    ways: Counter[str] = Counter()
    for row in rows:
        chosen = row.choices[DIRECTIONS.index(direction)].partition(" (")[0] if row.choices else ""
        ways["/".join(chosen.split()[:2]) or row.backend or "own forward"] += 1  # without the tile
    return dict(ways)


def error(computed: Sequence[Tensor], exact: Sequence[Tensor]) -> list[float]:
    """Error of each tensor relative to the exact one, in the 2-norm: the largest error of an entry is mostly chance."""
    pairs = zip(computed, exact, strict=True)
    return [((c.double() - e).norm() / e.norm()).item() for c, e in pairs]


def refusal(own: Iterable[float], reference: Iterable[float], dtype: torch.dtype) -> str | None:
    """Why a contender with the errors ``own`` is not timed: one is above 1.1 times the reference's plus 1 ulp."""
    ulp = torch.finfo(dtype).eps
    for i, (mine, bound) in enumerate(zip(own, (1.1 * e + ulp for e in reference), strict=True)):
        if not mine <= bound:  # also when it is NaN
            return f"relative error {mine:.1e} of output {i} is above {bound:.1e}"
    return None


def unjudged(reference: Iterable[float], dtype: torch.dtype) -> str | None:
    """Why a reference with these errors is no bound: one is above ``WORST`` or ``WORST_OF_HALF``."""
    limit = WORST if torch.finfo(dtype).bits >= 32 else WORST_OF_HALF
    for i, found in enumerate(reference):
        if not found <= limit:  # also when it is NaN
            own = f"the reference's own relative error {found:.1e} of output {i}"
            return f"{own} is above {limit:g}: it is no bound for the others"
    return None
