"""What a conversion or a folding did: what each module became, and what was left as it is, with the reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass

from ..text import folded_html, many, noted, wrapped

__all__ = ["Report", "Row"]


@dataclass(frozen=True)
class Row:
    """One module of the given model."""

    name: str
    class_name: str
    became: str | None
    """The class of what it became; None if it is the given module."""
    reason: str = ""
    """Why it is the given module, or what else is to be known of its conversion."""
    understood: bool = True
    """False for a given module whose part in explanations is not known."""

    @property
    def outcome(self) -> str:
        """What became of it, in two words or fewer."""
        return self.became or ("kept" if self.understood else "left alone")


@dataclass(frozen=True, repr=False)
class Report:
    """What :func:`bcos_kernels.convert` or :func:`bcos_kernels.fold` did.

    ``str(report)`` is a summary, ``.table()`` has a line for each module.
    """

    rows: tuple[Row, ...]

    @property
    def converted(self) -> tuple[Row, ...]:
        """The modules that became others."""
        return tuple(row for row in self.rows if row.became is not None)

    @property
    def left_alone(self) -> tuple[Row, ...]:
        """The modules that the conversion does not understand; explanations may be wrong because of them."""
        return tuple(row for row in self.rows if not row.understood)

    def to_dict(self) -> dict:
        """The counts and all rows, in types that JSON has."""
        counts = {"converted": len(self.converted), "left_alone": len(self.left_alone)}
        return {**counts, "rows": [asdict(row) for row in self.rows]}

    def table(self) -> str:
        """A line for each module, and the summary below. Reasons stand under the table, by number."""
        if not self.rows:
            return str(self)
        rows = (((row.name, row.class_name, row.outcome), row.reason) for row in self.rows)
        return "\n".join([*noted(rows, ("module", "class", "became")), self._total()])

    def __str__(self) -> str:
        pairs = Counter((row.class_name, row.became) for row in self.converted)
        left = Counter((row.class_name, row.reason) for row in self.left_alone)
        return "\n".join(
            [
                self._total(),
                *(wrapped(f"{count} {name} became {became}") for (name, became), count in pairs.items()),
                *(
                    wrapped(f"left alone: {many(count, 'module')} of class {name}: {reason}")
                    for (name, reason), count in left.most_common()
                ),
                "its method table() has a line for each of them",
            ]
        )

    def __repr__(self) -> str:
        return f"<Report: {self._total()}>"

    def _repr_html_(self) -> str:
        rows = ((row.name, row.class_name, row.outcome, row.reason) for row in self.rows)
        return folded_html([self._total()], ("module", "class", "became", ""), rows)

    def _total(self) -> str:
        kept = len(self.rows) - len(self.converted) - len(self.left_alone)
        return f"{many(len(self.converted), 'module')} converted, {kept} kept, {len(self.left_alone)} left alone"
