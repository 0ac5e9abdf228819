"""torchvision's ResNets, DenseNets and ConvNeXts with the classifier in front of the pooling."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..compat import declare_torchvision_operators_when_needed

declare_torchvision_operators_when_needed()

from torchvision import models  # noqa: E402

__all__ = ["FAMILIES"]


class ResNet(models.ResNet):
    """torchvision's ResNet; ``fc`` is a 1×1 convolution."""

    def _forward_impl(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.avgpool(self.fc(x)).flatten(1)


class DenseNet(models.DenseNet):
    """torchvision's DenseNet; ``classifier`` is a 1×1 convolution."""

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[N, 6, H, W]`` -> logits ``[N, classes]``."""
        return F.adaptive_avg_pool2d(self.classifier(F.relu(self.features(x))), 1).flatten(1)


class ConvNeXt(models.ConvNeXt):
    """torchvision's ConvNeXt; the norm of ``classifier`` is in front of the pooling, too."""

    def _forward_impl(self, x: Tensor) -> Tensor:
        norm, _, layer = self.classifier
        return self.avgpool(layer(norm(self.features(x)))).flatten(1)


FAMILIES: dict[type, tuple[type, str]] = {
    models.ResNet: (ResNet, "fc"),
    models.DenseNet: (DenseNet, "classifier"),
    models.ConvNeXt: (ConvNeXt, "classifier.2"),
}
"""The class of a network -> the class with the other order, and the name of the last linear layer."""
