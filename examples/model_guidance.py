"""Trains a B-cos network that looks at the digit and not at a coloured patch which gives the class away.

    python examples/model_guidance.py                  # about a minute on a CPU
    python examples/model_guidance.py --loss L1        # one of the four losses
    python examples/model_guidance.py --quick          # a few steps: does it run?

Model guidance (Rao et al., "Studying How to Efficiently and Effectively Guide Models with Explanations", ICCV 2023)
adds to the classification loss a loss on the contributions of pixels outside of bounding boxes. Each step needs second
derivatives: the gradient of a loss that contains a gradient. Layers in the late explanation mode need one forward for
both losses: the mode is on while the contributions are formed, and off before and after. Needs scikit-learn.
"""

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import bcos_kernels as bk
from bcos_kernels.functional import bcos_conv2d

SIDE, CLASSES, BATCH = 16, 10, 32


# ------------------------------------------------------------------------------------------------ losses
# Of contributions [N, H, W] and a mask [N, H, W] that is 1 inside of the bounding boxes; a value for each image.


def energy(contributions: Tensor, inside: Tensor) -> Tensor:
    """The share of positive contributions that lie outside, or 1 where there are none."""
    positive = contributions.clamp(min=0)
    found, everything = (positive * inside).sum((1, 2)), positive.sum((1, 2))
    return 1 - found / torch.where(everything < 1e-7, 1, everything)


def l1(contributions: Tensor, inside: Tensor) -> Tensor:
    """The mean distance of the positive contributions, divided by the largest of the image, from the mask."""
    return (_scaled(contributions.clamp(min=0)) - inside).abs().mean((1, 2))


def ppce(contributions: Tensor, inside: Tensor) -> Tensor:
    """The cross-entropy of the scaled positive contributions inside, per pixel, whose target is 1."""
    scaled = _scaled(contributions.clamp(min=0))
    entropy = F.binary_cross_entropy(scaled, torch.ones_like(scaled), reduction="none")
    return (entropy * inside).sum((1, 2)) / inside.sum((1, 2))


def rrr(contributions: Tensor, inside: Tensor) -> Tensor:
    """The squares of the scaled contributions outside (RRR*)."""
    return (_scaled(contributions) * (1 - inside)).square().sum((1, 2))


def _scaled(contributions: Tensor) -> Tensor:
    largest = contributions.abs().amax((1, 2), keepdim=True)
    return contributions / torch.where(largest == 0, 1, largest)


LOSSES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], float]] = {
    "Energy": (energy, 0.3), "L1": (l1, 1.0), "PPCE": (ppce, 0.02), "RRR": (rrr, 0.02),
}  # fmt: skip
"""Name -> the loss, and its weight beside the cross-entropy."""


# ------------------------------------------------------------------------------------------------ network


class LateConv2d(nn.Module):
    """A B-cos convolution whose explanation mode is read from ``state`` when the backward runs."""

    def __init__(self, channels: int, outputs: int, kernel: int, stride: int, state: dict[str, bool]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, channels, kernel, kernel))
        nn.init.kaiming_uniform_(self.weight)
        self.stride, self.state = stride, state

    def forward(self, x: Tensor) -> Tensor:
        return bcos_conv2d(x, self.weight, None, self.stride, self.weight.shape[-1] // 2, detach=self.state)


class Network(nn.Module):
    """Four B-cos convolutions; images ``[N, 3, H, W]`` in [0, 1] become logits ``[N, CLASSES]``."""

    def __init__(self) -> None:
        super().__init__()
        self.state = {"fixed_weights": False}
        shapes = (6, 32, 3, 1), (32, 64, 3, 2), (64, 64, 3, 2), (64, CLASSES, 1, 1)
        self.layers = nn.Sequential(*(LateConv2d(*shape, self.state) for shape in shapes))
        self.scale = 25.0  # |cos| < 1 shrinks what passes four layers

    def forward(self, images: Tensor) -> Tensor:
        return self.scale * self.layers(torch.cat([images, 1 - images], 1)).mean((2, 3))

    def contributions(self, images: Tensor, logits: Tensor, classes: Tensor) -> Tensor:
        """The contribution of every pixel to the logit of each image's class, ``[N, H, W]``."""
        self.state["fixed_weights"] = True
        try:
            chosen = logits.gather(1, classes[:, None]).sum()
            (gradient,) = torch.autograd.grad(chosen, images, create_graph=True)
        finally:
            self.state["fixed_weights"] = False
        return (images * gradient).sum(1)


# ------------------------------------------------------------------------------------------------ training


def scenes(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Images ``[N, 3, SIDE, SIDE]``, labels and masks ``[N, SIDE, SIDE]`` of the digits, which lie near the middle.

    At the top is a patch whose place and colour tell the label: the shortcut that nobody wants the network to use.
    """
    bunch = load_digits()
    labels = torch.tensor(bunch.target)
    images, masks = torch.zeros(len(labels), 3, SIDE, SIDE), torch.zeros(len(labels), SIDE, SIDE)
    for image, mask, digit, label in zip(images, masks, torch.tensor(bunch.images), labels, strict=True):
        top, left = (int(v) for v in torch.randint(4, 8, (2,), generator=generator))
        image[:, top : top + 8, left : left + 8] = digit / 16
        mask[top : top + 8, left : left + 8] = 1
        image[int(label) % 3, :2, int(label) : int(label) + 3] = 1
    return images, labels, masks


def step(network: Network, images: Tensor, labels: Tensor, inside: Tensor, loss: str | None) -> tuple[Tensor, Tensor]:
    """The loss of one batch, and the share of positive contributions inside of the boxes."""
    images = images.detach().requires_grad_()
    logits = network(images)
    total = F.cross_entropy(logits, labels)
    contributions = network.contributions(images, logits, labels)
    if loss is not None:
        function, weight = LOSSES[loss]
        total = total + weight * function(contributions, inside).mean()
    return total, 1 - energy(contributions.detach(), inside).mean()


def train(loss: str | None, steps: int) -> tuple[float, float]:
    """Trains a network; returns its accuracy and the share of positive contributions inside, on images kept aside."""
    generator = torch.Generator().manual_seed(0)
    images, labels, masks = scenes(generator)
    aside = torch.arange(len(labels)) % 5 == 0
    torch.manual_seed(0)
    network = Network()
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    training = (~aside).nonzero().flatten()
    for _ in range(steps):
        batch = training[torch.randint(len(training), (BATCH,), generator=generator)]
        total, _ = step(network, images[batch], labels[batch], masks[batch], loss)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    _, inside = step(network, images[aside], labels[aside], masks[aside], None)
    with torch.no_grad():
        accuracy = (network(images[aside]).argmax(1) == labels[aside]).float().mean()
    return accuracy.item(), inside.item()


def main() -> None:
    parser = argparse.ArgumentParser(description="A B-cos network that is guided by bounding boxes.")
    parser.add_argument("--loss", choices=LOSSES, help="one of the losses (default: all)")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--quick", action="store_true", help="a few steps: does it run?")
    options = parser.parse_args()
    steps = 5 if options.quick else options.steps
    print(
        f"bcos_kernels {bk.__version__}, {steps} steps\n{'loss':8} {'accuracy':>8}  contributions inside of the boxes"
    )
    for loss in (None, *([options.loss] if options.loss else LOSSES)):
        accuracy, inside = train(loss, steps)
        print(f"{loss or 'none':8} {accuracy:8.1%}  {inside:.1%}", flush=True)


if __name__ == "__main__":
    main()
