"""What a demonstration gives: the table and the picture show it."""

from __future__ import annotations

from dataclasses import dataclass

from .explaining import Explained
from .training import Training

__all__ = ["Results"]


@dataclass(frozen=True)
class Results:
    """Everything that the table and the picture show; pairs are (reference, accelerated)."""

    trainings: tuple[Training, Training]
    digits: list[Explained]
    photographs: dict[str, dict[str, Explained]]
    """Model name -> photograph name -> explanations."""

    @property
    def explained(self) -> dict[str, list[Explained]]:
        """Every explanation by the model that gave it."""
        photographs = {name: list(images.values()) for name, images in self.photographs.items()}
        return {"digits, ResNet-18": self.digits, **{f"photos, {k}": v for k, v in photographs.items()}}
