"""What a demonstration gives: the table and the picture show it."""

from __future__ import annotations

from dataclasses import dataclass

from .converting import Fine
from .explaining import Explained
from .training import Training

__all__ = ["Results"]


@dataclass(frozen=True)
class Results:
    """Everything that the table and the picture show; pairs are (reference, accelerated)."""

    trainings: tuple[Training, Training]
    digits: list[Explained]
    models: dict[str, Explained]
    """Name of a full-size model with random weights -> its explanation of a photograph."""
    photographs: dict[str, Fine]
    """Name -> explanations by a network that was converted and fine-tuned."""

    @property
    def explained(self) -> dict[str, list[Explained]]:
        """Every explanation by the model that gave it."""
        return {"digits, ResNet-18": self.digits, **{f"photo, {k}": [v] for k, v in self.models.items()}}
