"""The vision transformer of ``bcos`` with the classifier in front of the mean over the tokens."""

from __future__ import annotations

from bcos.models import vit
from torch import Tensor

__all__ = ["SimpleViT"]


class SimpleViT(vit.SimpleViT):
    """``bcos.models.vit.SimpleViT``; every token has logits, which are averaged."""

    def forward(self, img: Tensor) -> Tensor:
        """Images ``[N, 6, H, W]`` -> logits ``[N, classes]``."""
        x = self.to_patch_embedding(img)
        x = x.flatten(1, -2) + self.positional_embedding(x)
        return self.linear_head(self.to_latent(self.transformer(x))).mean(1)
