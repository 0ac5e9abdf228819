"""Explains every image of a folder by the classes that the network finds most likely, and writes pictures.

    python examples/explain_folder.py               # half a minute on a CPU; writes explain_folder/
    python examples/explain_folder.py --quick       # a few steps of training: does it run?

The folder holds handwritten digits, for which a network is trained first. ``explain_folder`` below takes any B-cos
network and any folder. For whole data sets, several processes and a run that can be interrupted, use the command
``python -m bcos_kernels explain``, as ``localisation.py`` does. Needs scikit-learn, matplotlib, Pillow and ``bcos``.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from train_digits import TEST, digits, network, train

import bcos_kernels as bk

SUFFIXES = (".png", ".jpg", ".jpeg")


def read(path: Path) -> Tensor:
    """An image as ``[6, H, W]``: its colours in [0, 1], and one minus them."""
    pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB")))
    return bk.AddInverse()(pixels.permute(2, 0, 1) / 255)


def explain_folder(model: nn.Module, folder: Path, out: Path, top: int, batch: int = 16, smooth: int = 15) -> int:
    """Writes ``NAME-classK.png`` for the ``top`` classes of each image, all of one size; returns how many it wrote."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    out.mkdir(parents=True, exist_ok=True)
    written = 0
    for start in range(0, len(paths), batch):
        some = paths[start : start + batch]
        found = bk.explain(model, torch.stack([read(path) for path in some]), f"top{top}")
        pictures = (255 * found.rgba(smooth)).byte().cpu().numpy()  # [N, T, H, W, 4]
        for path, classes, of_image in zip(some, found.targets.tolist(), pictures, strict=True):
            for chosen, picture in zip(classes, of_image, strict=True):
                Image.fromarray(picture).save(out / f"{path.stem}-class{chosen}.png")
                written += 1
    return written


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Explains every image of a folder.")
    parser.add_argument("--top", type=int, default=2, help="classes of each image (default 2)")
    parser.add_argument("--out", type=Path, default=Path("explain_folder"))
    parser.add_argument("--quick", action="store_true", help="a few steps of training: does it run?")
    options = parser.parse_args(argv)
    torch.manual_seed(0)
    images, labels = digits()
    model = network()
    train(model, images[TEST:], labels[TEST:], 5 if options.quick else 400)
    folder = options.out / "images"
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images[:20]):
        Image.fromarray((255 * image[:3].permute(1, 2, 0)).byte().numpy()).save(folder / f"digit{number:02}.png")
    count = explain_folder(model, folder, options.out / "explained", options.top, smooth=3)
    print(f"{count} explanations of the images in {folder}: {options.out / 'explained'}")


if __name__ == "__main__":
    main()
