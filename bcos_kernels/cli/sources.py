"""Images of folders, of WebDataset tars and of torchvision's data sets, by their numbers."""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils.data import Dataset

from ..compat import declare_torchvision_operators_when_needed
from .terminal import json_object

__all__ = ["Loaded", "Source", "configure", "open_source", "tell_skipped"]

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")

TARS = (".tar", ".tgz", *(f".tar.{kind}" for kind in ("gz", "bz2", "xz", "zst")))
"""Only the first is read; the others would be taken for images."""

NAMED = 20
"""How many skipped images are named on the terminal."""


class Loaded(NamedTuple):
    """An image as the model takes it, or the reason why it cannot be read."""

    number: int
    name: str
    image: Tensor | None
    label: int | None
    size: tuple[int, int]
    """Width and height of the file's picture."""
    reason: str = ""


@dataclass(frozen=True)
class File:
    """An image in a file of its own, or a part of a tar."""

    name: str
    path: Path
    label: int | None = None
    offset: int | None = None
    """Within a tar."""
    length: int = 0

    def identity(self) -> str:
        """What tells the image from another one of its name, without reading it."""
        size = self.length if self.offset is not None else self.path.stat().st_size if self.path.exists() else None
        return f"{self.name} {size}"

    def read(self) -> tuple[Any, int | None]:
        """The PIL image, not decoded yet, and its label."""
        from PIL import Image

        if self.offset is None:
            return Image.open(self.path), self.label
        with self.path.open("rb") as tar:
            tar.seek(self.offset)
            return Image.open(io.BytesIO(tar.read(self.length))), self.label


@dataclass(frozen=True)
class Sample:
    """A sample of a data set."""

    name: str
    data: Any
    number: int

    def identity(self) -> str:
        """What tells the image from another one of its name, without reading it: its data set, as that prints itself.

        Addresses of objects are left out, because another process has others.
        """
        return f"{self.name} {re.sub(' at 0x[0-9a-f]+', '', repr(self.data))}" if self.number == 0 else self.name

    def read(self) -> tuple[Any, int | None]:
        image, label, *_ = self.data[self.number]
        return image, label if isinstance(label, int) else None


class Source(Dataset):
    """Images by their numbers, for a ``DataLoader``; unreadable ones are told, not raised.

    ``classes`` is how many classes there are, also without images; None where that is not known.
    """

    def __init__(self, entries: Sequence[File | Sample], classes: int | None = None) -> None:
        self.entries, self.classes = entries, classes
        self.transform: Callable[[Any], Tensor] | None = None
        """What makes the model's input ``[C, H, W]`` of a PIL image; set before the first image is read."""

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, number: int) -> Loaded:
        entry = self.entries[number]
        try:
            image, label = entry.read()
            image = _rgb(image)
        except Exception as error:  # a damaged file raises whatever its decoder raises
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            return Loaded(number, entry.name, None, None, (0, 0), reason)
        assert self.transform is not None
        return Loaded(number, entry.name, self.transform(image), label, image.size)


def _rgb(image: Any) -> Any:
    """The PIL image as RGB, decoded. Pixels of 16 bits become such of 8, where PIL would clip them.

    Raises:
        ValueError: the pixels have a mode without a known range, which PIL would clip as well.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        import numpy as np
        from PIL import Image

        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode!r} have no known range: store them with 8 or 16 bits")
    return image.convert("RGB")


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that name the images."""
    found = parser.add_argument_group("images")
    found.add_argument(
        "images", metavar="IMAGES", nargs="*", type=Path, help="folders, image files, WebDataset tars (not compressed)"
    )
    found.add_argument("--dataset", metavar="NAME", help="in place of IMAGES: a class of torchvision.datasets")
    found.add_argument("--root", metavar="DIR", type=Path, default=Path("."), help="folder of the data (default .)")
    found.add_argument(
        "--dataset-args", metavar="JSON", type=json_object, default={}, help="arguments of this class, such as a split"
    )


def tell_skipped(skipped: Sequence[tuple[str, str]], others: str = "") -> None:
    """Says on stderr which images were skipped and why; of many it counts the rest, and ``others`` is said of them."""
    for name, reason in skipped[:NAMED]:
        print(f"skipped {name}: {reason}", file=sys.stderr)
    if len(skipped) > NAMED:
        print(f"skipped {len(skipped) - NAMED} more{others}", file=sys.stderr)


def open_source(options: argparse.Namespace) -> Source:
    """The images that the arguments name; a class of a folder is the place of its subfolder among those of all folders.

    Raises:
        ImportError, ValueError: there are none, or a path or a data set is not there.
    """
    if bool(options.images) == (options.dataset is not None):
        raise ValueError("either IMAGES or --dataset is needed")
    if options.dataset is not None:
        return _data_set(options.dataset, options.root, options.dataset_args)
    entries: list[File | Sample] = []
    classes = sorted({name for path in options.images if path.is_dir() for name in _classes(path)})
    labels = {name: number for number, name in enumerate(classes)}
    for path in options.images:
        if path.is_dir():
            entries += _of_folder(path, labels)
        elif path.name.endswith(TARS) and path.is_file():
            entries += _of_tar(path)
        elif path.is_file():
            entries.append(File(str(path), path))
        else:
            raise ValueError(f"{path}: there is no such file or folder")
    if not entries:
        raise ValueError(f"{', '.join(map(str, options.images))}: no images ({', '.join(ENDINGS)})")
    return Source(entries, len(classes) or None)


def _is_image(name: str) -> bool:
    return name.lower().endswith(ENDINGS) and not name.rpartition("/")[2].startswith(".")


def _classes(folder: Path) -> list[str]:
    """The names of its subfolders, also of empty ones and of links to folders; hidden ones are none."""
    return [path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]


def _of_folder(folder: Path, labels: dict[str, int]) -> list[File]:
    paths = sorted(_images_below(folder, ()))
    names = [path.relative_to(folder).as_posix() for path in paths]
    return [File(name, path, labels.get(name.partition("/")[0])) for name, path in zip(names, paths, strict=True)]


def _images_below(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """The images in a folder and in its subfolders, through links as well; hidden ones are left out.

    ``above`` are the folders that hold this one, to which a link may lead back. A link to an image that is not there
    is an image that cannot be read.
    """
    here = folder.resolve()
    if here in above:
        return
    for entry in os.scandir(folder):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _images_below(Path(entry.path), (*above, here))
        elif _is_image(entry.name) and (entry.is_file() or entry.is_symlink()):
            yield Path(entry.path)


def _of_tar(path: Path) -> list[File]:
    """The images of a tar; the label of ``KEY.jpg`` stands in ``KEY.cls``, as WebDataset has it."""
    try:
        with tarfile.open(path, "r:") as tar:  # images are read at their places, which a compressed one has not
            members = [member for member in tar if member.isfile()]
            numbers = {
                m.name.removesuffix(".cls"): _number(tar.extractfile(m)) for m in members if m.name.endswith(".cls")
            }
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{path}: not a readable tar without compression ({error})") from None

    def label(name: str) -> int | None:
        folder, _, base = name.rpartition("/")
        return numbers.get("/".join(filter(None, (folder, base.partition(".")[0]))))

    return [
        File(f"{path.name}/{m.name}", path, label(m.name), m.offset_data, m.size) for m in members if _is_image(m.name)
    ]


def _number(file: Any) -> int | None:
    text = b"" if file is None else file.read().strip()
    return int(text) if text.isdigit() else None


def _data_set(name: str, root: Path, arguments: dict) -> Source:
    declare_torchvision_operators_when_needed()
    from torchvision import datasets

    kind: Any = getattr(datasets, name, None)
    if not isinstance(kind, type) or not issubclass(kind, Dataset):
        raise ValueError(f"--dataset {name}: torchvision.datasets has no such data set")
    try:
        found: Any = kind(root, **arguments)  # type: ignore[call-arg]  # as every class of torchvision.datasets takes it
        entries = [Sample(f"{name}/{number:08d}", found, number) for number in range(len(found))]
        first = entries[0].read()[0] if entries else None
    except (RuntimeError, OSError, TypeError, ValueError) as error:
        raise ValueError(f"--dataset {name} --root {root}: {' '.join(str(error).split())}") from error
    if not hasattr(first, "convert"):
        raise ValueError(f"--dataset {name}: its samples are no images, but {type(first).__name__}")
    return Source(entries, len(getattr(found, "classes", ())) or None)
