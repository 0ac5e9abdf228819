"""Trains a small B-cos network on handwritten digits, accelerated, and draws what its decisions rest on.

    python examples/train_digits.py            # half a minute on a CPU; writes train_digits.png
    python examples/train_digits.py --quick    # a few steps: does it run?

The network is made of the modules of ``bcos``; the one line that changes is ``bk.accelerate(...)``. The loss is that of
the papers, a binary cross-entropy for each class (Böhle et al., B-cos Networks, CVPR 2022, section 3.2.1). Needs
scikit-learn, matplotlib and ``bcos``.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import bcos_kernels as bk
from bcos_kernels.compat import import_reference

bcos = import_reference()
SIDE, CLASSES, BATCH, TEST = 16, 10, 64, 360


def digits() -> tuple[Tensor, Tensor]:
    """All 1797 digits as images ``[N, 6, SIDE, SIDE]``, which are [x, 1 - x], and labels; the first TEST are a test."""
    bunch = load_digits()
    grey = torch.tensor(bunch.images / 16, dtype=torch.float32)[:, None]
    images = F.interpolate(grey, size=(SIDE, SIDE), mode="bilinear").expand(-1, 3, -1, -1)
    return bk.AddInverse()(images), torch.tensor(bunch.target)


def network(width: int = 32) -> nn.Module:
    """A B-cos network with norms, accelerated: images ``[N, 6, H, W]`` become logits ``[N, CLASSES]``."""
    norms = bcos.modules.norms
    conv, norm = bcos.modules.BcosConv2d, norms.NoBias(norms.BatchNormUncentered2d)
    layers: list[nn.Module] = []
    for before, after, stride in ((6, width, 1), (width, 2 * width, 2), (2 * width, 2 * width, 2)):
        layers += [conv(before, after, 3, stride, 1), norm(after)]
    head = [conv(2 * width, CLASSES, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), bcos.modules.LogitLayer(0.1)]
    return bk.accelerate(nn.Sequential(*layers, *head))


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    """A binary cross-entropy for each class: logits ``[N, CLASSES]`` and labels ``[N]`` to one number."""
    return F.binary_cross_entropy_with_logits(logits, F.one_hot(labels, CLASSES).float())


def train(model: nn.Module, images: Tensor, labels: Tensor, steps: int) -> None:
    """Trains on random batches, and leaves the model in evaluation mode."""
    optimizer = torch.optim.Adam(model.train().parameters(), lr=3e-3)
    for _ in range(steps):
        batch = torch.randint(len(images), (BATCH,))
        loss = loss_of(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of images that the model gets right."""
    with torch.no_grad():
        return (model(images).argmax(1) == labels).float().mean().item()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Trains a B-cos network on handwritten digits.")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--out", type=Path, default=Path("train_digits.png"), help="the picture")
    parser.add_argument("--quick", action="store_true", help="a few steps: does it run?")
    options = parser.parse_args(argv)
    torch.manual_seed(0)
    images, labels = digits()
    model = network()
    print(bk.report(model))
    train(model, images[TEST:], labels[TEST:], 5 if options.quick else options.steps)
    print(f"{accuracy(model, images[:TEST], labels[:TEST]):.1%} of {TEST} test digits are right")
    found = bk.explain(model, images[:6], labels[:6])
    found.plot(smooth=3).savefig(options.out)
    print(f"picture: {options.out}")


if __name__ == "__main__":
    main()
