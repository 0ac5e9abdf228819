"""The model and the images on which the authors' localisation code was run once; see :mod:`test_metrics`."""

import torch
from torch import nn

import bcos_kernels as bk

CLASSES, SIDE, IMAGES = 12, 8, 240


class Standardised(nn.Module):
    """Logits of mean 0 and deviation 1 over the images, so that every class is predicted."""

    def __init__(self, mean, deviation):
        super().__init__()
        self.mean, self.deviation = mean, deviation

    def forward(self, x):
        return (x - self.mean) / self.deviation


def model():
    """A small network of fixed weights, in float64."""
    generator = torch.Generator().manual_seed(11)
    network = nn.Sequential(
        bk.BcosConv2d(6, 16, 3, padding=1), bk.BcosConv2d(16, CLASSES, 3, padding=1, b=1.5),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        logits = network(images())
    return network.append(Standardised(logits.mean(0), logits.std(0))).eval()


def images():
    """``[N, 6, SIDE, SIDE]`` in float64, each with a colour of its own."""
    generator = torch.Generator().manual_seed(12)
    colours = torch.rand(IMAGES, 3, 1, 1, generator=generator, dtype=torch.float64)
    noise = torch.rand(IMAGES, 3, SIDE, SIDE, generator=generator, dtype=torch.float64)
    x = 0.6 * colours + 0.4 * noise
    return torch.cat([x, 1 - x], 1)


def labels(network, x):
    """What the network predicts, but for every seventh image."""
    with torch.no_grad():
        found = network(x).argmax(1)
    found[::7] = (found[::7] + 1) % CLASSES
    return found
