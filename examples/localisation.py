"""Trains a B-cos network on handwritten digits, explains a folder of images, and measures GridPG.

    python examples/localisation.py               # half a minute on a CPU; writes localisation/
    python examples/localisation.py --quick       # a few steps: does it run?

The explanations of the folder are made by the command ``explain`` as one would explain a data set: WebDataset shards
with contribution maps and pictures, and an index. GridPG (Böhle et al., CVPR 2021) puts four digits into one image and
asks which share of a digit's positive contributions lies in its own cell; 25 % is chance. Needs scikit-learn, Pillow
and matplotlib.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn

import bcos_kernels as bk
from bcos_kernels import metrics

SIDE, CLASSES, CELLS, BATCH = 16, 10, 4, 64


def network(width: int = 32) -> nn.Module:
    """Images ``[N, 6, H, W]`` of any size become logits ``[N, CLASSES]``. The command builds the network by it, too."""
    conv = bk.BcosConv2d
    stages = conv(6, width, 3, padding=1), conv(width, 2 * width, 3, stride=2, padding=1)
    return nn.Sequential(*stages, conv(2 * width, CLASSES, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def digits() -> tuple[Tensor, Tensor]:
    """Images ``[N, 3, SIDE, SIDE]`` in [0, 1], and labels."""
    bunch = load_digits()
    grey = torch.tensor(bunch.images / 16, dtype=torch.float32)[:, None]
    return F.interpolate(grey, size=(SIDE, SIDE), mode="bilinear").expand(-1, 3, -1, -1), torch.tensor(bunch.target)


def train(model: nn.Module, images: Tensor, labels: Tensor, steps: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        batch = torch.randint(len(images), (BATCH,), generator=generator)
        loss = F.cross_entropy(40 * model(images[batch]), labels[batch])  # |cos| < 1 shrinks what passes three layers
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


def grid_pointing(model: nn.Module, images: Tensor, labels: Tensor, count: int) -> float:
    """The mean share of positive contributions in the right cell of ``count`` grids, chosen by confidence."""
    with torch.no_grad():
        logits = 40 * model(images)
    chosen = torch.tensor(metrics.select_grids(logits, labels, cells=CELLS, count=count))
    explained = bk.explain(model, metrics.make_grid(images[chosen]), labels[chosen])
    return metrics.grid_pointing(explained.contributions).mean().item()


def explain_folder(model: nn.Module, images: Tensor, out: Path) -> str:
    """Writes images and the network's weights, and has the command explain them; returns what it printed."""
    folder = out / "images"
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray((255 * image.permute(1, 2, 0)).byte().numpy()).save(folder / f"digit{i:02}.png")
    torch.save(model.state_dict(), out / "weights.pt")
    command = [
        sys.executable, "-m", "bcos_kernels", "explain", folder, "--model", f"{Path(__file__).stem}:network",
        "--weights", out / "weights.pt", "--image-size", SIDE, "--save", "map,rgba", "--smooth", 3,
        "--out", out / "explained",
    ]  # fmt: skip
    found = subprocess.run(
        [str(word) for word in command], cwd=Path(__file__).parent, check=True, capture_output=True, text=True
    )
    return found.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description="Explanations of a folder of images, and GridPG.")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("localisation"))
    parser.add_argument("--quick", action="store_true", help="a few steps: does it run?")
    options = parser.parse_args()
    images, labels = digits()
    six = bk.AddInverse()(images)
    torch.manual_seed(0)
    model = network()
    train(model, six[360:], labels[360:], 60 if options.quick else options.steps)
    with torch.no_grad():
        right = (model(six[:360]).argmax(1) == labels[:360]).float().mean()
    print(f"{right:.1%} of 360 test digits are right")
    print(
        f"GridPG of {CELLS} digits: {grid_pointing(model, six[:360], labels[:360], 10):.1%}, chance is {1 / CELLS:.0%}"
    )
    print(explain_folder(model, images[:20], options.out.resolve()))


if __name__ == "__main__":
    main()
