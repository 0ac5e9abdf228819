"""Converts a plain network that was trained on handwritten digits into a B-cos network, and fine-tunes it.

    python examples/convert_digits.py                # about a minute on a CPU; writes convert_digits.png
    python examples/convert_digits.py --quick        # a few steps: does it run?

The picture shows test digits with the contributions of their pixels to the logit of their class: by input × gradient of
the plain network, by the converted network, and by the fine-tuned one; and four digits in one image, explained class by
class. Needs scikit-learn and matplotlib.
"""

import argparse
import copy
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import bcos_kernels as bk

SIDE, CLASSES, BATCH = 16, 10, 64
MEAN, STD = (0.3,) * 3, (0.37,) * 3  # of the digits


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images ``[N, 3, SIDE, SIDE]`` in [0, 1] and labels ``[N]``, to train and to test with."""
    bunch = load_digits()
    grey = torch.tensor(bunch.images / 16, dtype=torch.float32)[:, None]
    images = F.interpolate(grey, size=(SIDE, SIDE), mode="bilinear").expand(-1, 3, -1, -1).contiguous()
    labels = torch.tensor(bunch.target)
    train, test = train_test_split(range(len(labels)), test_size=360, random_state=0, stratify=bunch.target)
    return images[train], labels[train], images[test], labels[test]


def normalized(images: Tensor) -> Tensor:
    """The images as the plain network reads them; the converted one normalises by itself."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (images - mean) / std


def plain_network() -> nn.Module:
    """A network as people have it: convolutions, batch norms, ReLUs in place, a pooling."""

    def stage(before: int, after: int, stride: int) -> list[nn.Module]:
        conv = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        return [conv, nn.BatchNorm2d(after), nn.ReLU(inplace=True)]

    stages = [*stage(3, 32, 1), *stage(32, 64, 2), *stage(64, 64, 1), *stage(64, 128, 2)]
    return nn.Sequential(*stages, nn.Conv2d(128, CLASSES, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def train(network: nn.Module, images: Tensor, labels: Tensor, seconds: float, steps: int | None, rate: float) -> None:
    """Trains for so many seconds, or steps, with a learning rate that falls to 0."""
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    start, step, share = time.monotonic(), 0, 0.0
    while share < 1:
        optimizer.param_groups[0]["lr"] = rate * (1 - share)
        chosen = torch.randint(len(images), (BATCH,))
        loss = F.binary_cross_entropy_with_logits(network(images[chosen]), F.one_hot(labels[chosen], CLASSES).float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        share = (time.monotonic() - start) / seconds if steps is None else step / steps
    network.eval()


def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of images that the network gets right."""
    with torch.no_grad():
        return (network(images).argmax(1) == labels).float().mean().item()


def input_times_gradient(network: nn.Module, image: Tensor, label: int) -> Tensor:
    """What an image ``[1, C, H, W]`` contributes to a logit of a network without an explanation mode, ``[H, W]``."""
    image = image.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(network(image)[0, label], image)
    return (image.detach() * gradient).sum(1)[0]


def contributions(network, image: Tensor, label: int) -> Tensor:
    """The same of a B-cos network; ``image`` is ``[1, 6, H, W]``."""
    return network.explain(image, idx=label)["contribution_map"][0]


def show(axes, pixels, title: str = "") -> None:
    """An image ``[3, H, W]``, or contributions ``[H, W]`` in red where they are positive and in blue where negative."""
    if pixels.dim() == 3:
        axes.imshow(pixels.permute(1, 2, 0), interpolation="nearest")
    else:
        limit = pixels.abs().quantile(0.995)
        axes.imshow(pixels, cmap="bwr", vmin=-limit, vmax=limit, interpolation="nearest")
    axes.set(xticks=[], yticks=[], title=title)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("convert_digits.png"), help="picture to write")
    parser.add_argument("--quick", action="store_true", help="a few steps of training: does it run?")
    options = parser.parse_args()
    torch.manual_seed(0)
    images, labels, test_images, test_labels = digits()
    six, test_six = map(bk.AddInverse(), (images, test_images))

    network = plain_network()
    train(network, normalized(images), labels, 10, 3 if options.quick else None, 2e-3)
    print(f"plain network:        {accuracy(network, normalized(test_images), test_labels):.1%} of the test digits")

    converted = bk.convert(network, mean=MEAN, std=STD)
    print(f"converted:            {accuracy(converted, test_six, test_labels):.1%}")
    print(converted.report)

    tuned = copy.deepcopy(converted)
    train(tuned, six, labels, 40, 3 if options.quick else None, 2e-3)
    print(f"converted and tuned:  {accuracy(tuned, test_six, test_labels):.1%}")

    chosen = [int((test_labels == digit).nonzero()[0]) for digit in range(CLASSES)]
    figure = Figure(figsize=(13, 8.6), dpi=100, layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(4, 2.4))
    top.suptitle("What the pixels of a digit contribute to the logit of its class")
    grid = top.subplots(4, CLASSES)
    for digit, index in enumerate(chosen):
        image = test_images[index : index + 1]
        show(grid[0, digit], image[0])
        show(grid[1, digit], input_times_gradient(network, normalized(image), digit))
        show(grid[2, digit], contributions(converted, bk.AddInverse()(image), digit))
        show(grid[3, digit], contributions(tuned, bk.AddInverse()(image), digit))
    for axes, name in zip(grid[:, 0], ("image", "plain", "converted", "fine-tuned"), strict=True):
        axes.set_ylabel(name)

    bottom.suptitle("Four digits in one image, which the network has never seen: each class finds its own")
    cells = [test_images[chosen[digit]] for digit in (3, 7, 0, 4)]
    mosaic = torch.cat([torch.cat(cells[:2], 2), torch.cat(cells[2:], 2)], 1)[None]
    places = bottom.subplots(1, 5)
    show(places[0], mosaic[0], "image")
    for axes, digit in zip(places[1:], (3, 7, 0, 4), strict=True):
        show(axes, contributions(tuned, bk.AddInverse()(mosaic), digit), f"class {digit}")
    figure.savefig(options.out, facecolor="white")
    print(f"picture: {options.out}")


if __name__ == "__main__":
    main()
