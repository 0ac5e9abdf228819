"""What a report holds and how it is shown: a summary, a table, HTML or a dictionary."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field

from ..core.candidate import DIRECTIONS
from ..text import folded_html, many, noted, wrapped
from .kinds import KINDS

__all__ = ["Report", "Row"]


@dataclass(frozen=True)
class Row:
    """One layer, norm, attention or gate: its backend, or the reason why its own forward runs."""

    name: str
    class_name: str
    backend: str | None
    reason: str | None = None
    measured: bool = False
    """Whether its formula was found by measurement, because its code is not published."""
    choices: tuple[str, ...] = ()
    """The choice for each of its directions, and why; empty without an example or where a backend has no choice."""
    kind: str = "layer"
    """``"layer"``, ``"alignment"``, ``"norm"``, ``"attention"`` or ``"gate"``."""
    note: str = ""
    """What else is to be known of how it is served."""
    has_choice: bool = field(default=False, compare=False)
    """Whether its backend has several kernels, and the input decides between them."""


@dataclass(frozen=True, repr=False)
class Report:
    """What :func:`report` found; ``str(report)`` is a summary, ``report.table()`` has a line for each module."""

    rows: tuple[Row, ...]

    @property
    def layers(self) -> tuple[Row, ...]:
        """The rows of the B-cos layers alone."""
        return self.of("layer")

    @property
    def norms(self) -> tuple[Row, ...]:
        """The rows of the norms alone."""
        return self.of("norm")

    @property
    def accelerated(self) -> int:
        """B-cos layers that run on a backend of this package."""
        return sum(row.backend is not None for row in self.layers)

    @property
    def left_alone(self) -> int:
        """B-cos layers that run their own forward."""
        return len(self.layers) - self.accelerated

    def of(self, kind: str) -> tuple[Row, ...]:
        """The rows of one kind: ``"layer"``, ``"alignment"``, ``"norm"``, ``"attention"`` or ``"gate"``."""
        return tuple(row for row in self.rows if row.kind == kind)

    def to_dict(self) -> dict:
        """The counts of each kind and all rows, in types that JSON has."""
        counts = {
            name: {
                "accelerated": sum(row.backend is not None for row in self.of(name)),
                "left_alone": sum(row.backend is None for row in self.of(name)),
                "backends": dict(Counter(row.backend for row in self.of(name) if row.backend is not None)),
            }
            for name in KINDS
        }
        rows = [{name: value for name, value in asdict(row).items() if name != "has_choice"} for row in self.rows]
        return {**counts, "rows": rows}

    def table(self) -> str:
        """A line for each module, and the summary below. Reasons and notes stand under the table, by number."""
        if not self.rows:
            return str(self)
        wide = any(row.choices for row in self.rows)
        head = ("module", "class", "backend", *(DIRECTIONS if wide else ()))
        rows = [
            ((*_named(row), *((row.choices or ("",) * len(DIRECTIONS)) if wide else ())), _note(row))
            for row in self.rows
        ]
        return "\n".join([*noted(rows, head), *self._totals(), *self._hint(wide)])

    def __str__(self) -> str:
        groups = Counter((row.kind, row.class_name, _note(row), row.backend is None) for row in self.rows if _note(row))
        remarks = [
            wrapped(f"{'left alone: ' if left else ''}{many(count, KINDS[kind].noun)} of class {class_name}: {text}")
            for (kind, class_name, text, left), count in groups.most_common()
        ]
        more = ["each of them: print(report(model).table())"] if len(self.rows) > 1 else []
        return "\n".join([*self._totals(), *remarks, *self._hint(False), *more])

    def __repr__(self) -> str:
        return f"<Report: {'; '.join(self._totals())}>"

    def _repr_html_(self) -> str:
        rows = ((*_named(row), _note(row)) for row in self.rows)
        return folded_html(self._totals(), ("module", "class", "backend", ""), rows)

    def _totals(self) -> list[str]:
        """A line for each kind that the model has: how many of them each backend serves."""
        found = []
        for kind in KINDS.values():
            rows = self.of(kind.name)
            if not rows:
                continue
            backends = Counter(row.backend for row in rows if row.backend)
            served = ", ".join(f"{count} by {name}" for name, count in backends.items())
            total = f"{many(len(rows), kind.noun)}: {backends.total()} accelerated{f' ({served})' if served else ''}"
            found.append(f"{total}, {len(rows) - backends.total()} left alone")
        return found if self.layers or self.of("alignment") else ["no B-cos layers", *found]

    def _hint(self, told: bool) -> list[str]:
        if told or not any(row.has_choice for row in self.rows):
            return []
        return [wrapped("which kernels serve a layer depends on the input: call report(model, example_input)")]


def _named(row: Row) -> tuple[str, str, str]:
    return row.name, row.class_name, row.backend or "left alone"


def _note(row: Row) -> str:
    """What a report adds to a row's backend."""
    return row.reason or "; ".join(
        filter(None, ("measured: its code is not published" if row.measured else "", row.note))
    )
