"""What commands that explain images load: the model with its checkpoint, and the transform of its images."""

from __future__ import annotations

import argparse
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import adopt
from ..compat import declare_torchvision_operators_when_needed, import_reference
from ..conversion import AddInverse
from ..explanation.modes import has_explanation_mode
from .terminal import add_factory, at_least, entry_point, factory, module_of

__all__ = ["configure", "check", "device", "load_model", "logits", "stacked", "transform_of"]

SIDE, SHOWN = 224, 0.875
"""The side of an image, and the part of its shorter side that is shown, where a model has no transform of its own."""
FITTING = ("Resize", "CenterCrop")
"""The classes of torchvision's transforms that give images another size."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that say which model explains which images."""
    model = parser.add_argument_group("model")
    add_factory(model, "--model", "the callable that builds the model")
    model.add_argument("--hub", metavar="NAME", help="in place of --model: an entry point of bcos.models.pretrained")
    model.add_argument("--weights", metavar="FILE", type=Path, help="a checkpoint with the model's state dict")
    model.add_argument(
        "--image-size", metavar="N", type=at_least(1), help=f"side of an image (default: the model's own, else {SIDE})"
    )
    model.add_argument("--batch", metavar="N", type=at_least(1), default=64, help="images of a batch (default 64)")
    model.add_argument(
        "--workers", metavar="N", type=at_least(0), default=2, help="processes that load images (default 2)"
    )
    model.add_argument("--chunk", metavar="N", type=at_least(1), help="classes of one backward (default: what fits)")


def check(options: argparse.Namespace) -> None:
    """Ends with status 2 where the arguments of :func:`configure`, or a command's ``--smooth``, are not allowed."""
    if (options.model is None) == (options.hub is None):
        options.error("one of --model and --hub is needed")
    if options.smooth is not None and (options.smooth < 0 or (options.smooth and options.smooth % 2 == 0)):
        options.error(f"--smooth {options.smooth}: 0 or an odd positive number is needed")


def load_model(options: argparse.Namespace, where: torch.device) -> nn.Module:
    """The model in evaluation mode, accelerated, channels_last, on a device.

    Raises:
        ImportError, TypeError, ValueError, OSError: there is no such model, or its checkpoint cannot be loaded.
    """
    model = _built(options)
    if options.weights is not None:
        _load_weights(model, options.weights)
    if not has_explanation_mode(model):
        raise ValueError(f"{_option(options)}: {type(model).__name__} has no B-cos layers")
    model = adopt.accelerate(model.eval())
    return model.to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch declares none


def _option(options: argparse.Namespace) -> str:
    return f"--model {options.model}" if options.hub is None else f"--hub {options.hub}"


def _built(options: argparse.Namespace) -> nn.Module:
    arguments = options.factory_args
    if options.hub is None:
        build = factory("--model", options.model)
    else:
        import_reference()
        from bcos.models import pretrained

        known = pretrained.list_available()
        if options.hub not in known:
            raise ValueError(f"--hub {options.hub}: allowed are {', '.join(known)}")
        build = entry_point(options.hub)
        arguments = {"pretrained": options.weights is None, **arguments}
    return module_of(_option(options), build, arguments)


def _load_weights(model: nn.Module, path: Path) -> None:
    """Loads a state dict, which may lie under ``state_dict`` or ``model``, and whose names may share prefixes.

    A wrapper gives its names one: DistributedDataParallel, a compiler, AveragedModel with a count of its own beside
    them, Lightning's modules. There may be several wrappers, in any order.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"--weights {path}: there is no such file") from None
    except Exception as error:  # a damaged archive raises whatever its reader raises
        raise ValueError(f"--weights {path}: not a checkpoint of tensors ({type(error).__name__})") from error
    for key in ("state_dict", "model"):
        found = found[key] if isinstance(found, Mapping) and isinstance(found.get(key), Mapping) else found
    if not isinstance(found, Mapping):
        raise ValueError(f"--weights {path}: it holds {type(found).__name__}, not a state dict")
    own = model.state_dict()
    found = {str(name): value for name, value in found.items() if name != "n_averaged" or name in own}
    while prefix := _shared_prefix(found, own):
        found = {name.removeprefix(prefix): value for name, value in found.items()}
    try:
        missing, unexpected = model.load_state_dict(found, strict=False)
    except RuntimeError as error:
        raise ValueError(f"--weights {path}: {str(error).splitlines()[-1].strip()}") from None
    if missing or unexpected:
        first = "; ".join(
            f"{word} {len(names)}, such as {names[0]}"
            for word, names in (("missing are", missing), ("unexpected are", unexpected))
            if names
        )
        raise ValueError(f"--weights {path}: not the names of the model: {first}")


def _shared_prefix(names: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """The prefix that a wrapper gave all names; "" where there is none, and where the model has such a name itself."""
    for prefix in ("module.", "_orig_mod.", "model."):
        if names and all(name.startswith(prefix) and name not in own for name in names):
            return prefix
    return ""


def device(local_rank: int = 0) -> torch.device:
    """Where the model runs: on the GPU of this process, which several share if there are fewer, or on the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank % torch.cuda.device_count())


def stacked(images: Iterable[Tensor | None], model: nn.Module) -> Tensor:
    """A batch of the images ``[C, H, W]`` that could be read, in the dtype and on the device of the model.

    Raises:
        ValueError: they are not of one size.
    """
    found = [image for image in images if image is not None]
    shapes = sorted({tuple(image.shape) for image in found})
    if len(shapes) > 1:
        raise ValueError(f"images of different sizes, {shapes[0]} and {shapes[1]}: choose one by --image-size")
    like = next(model.parameters())
    return torch.stack(found).to(like.device, like.dtype, memory_format=torch.channels_last)


def logits(model: nn.Module, images: Tensor) -> Tensor:
    """The logits in what a model returns, for ``explain``, whose own error names an argument that no command has.

    Raises:
        TypeError: it returns no tensor.
    """
    found = model(images)
    found = found["logits"] if isinstance(found, Mapping) and "logits" in found else getattr(found, "logits", found)
    if not isinstance(found, Tensor):
        raise TypeError(
            f"the model returns {type(found).__name__}: a tensor of logits [N, K] is needed, and a factory of your own "
            "can wrap the model so that it returns one"
        )
    return found


def transform_of(model: nn.Module, size: int | None, whole: bool = False) -> Callable[[Any], Tensor]:
    """A function that turns a PIL image into the model's input ``[C, H, W]``.

    It is the model's own attribute ``transform``, where it has one and no size is asked for. Else images are resized
    and cropped in the middle, or, with ``whole``, squeezed into a square. The other steps are those of the model's own
    transform, where it is a list of steps. Without such a list the pixels become floats, of one channel where the first
    layer takes one or two, and get the inverse channels 1 - x where it takes two or six.
    """
    own = getattr(model, "transform", None)
    own = own if callable(own) and not inspect.isclass(own) else None
    if size is None and not whole and own is not None:
        return own
    declare_torchvision_operators_when_needed()
    from torchvision.transforms import CenterCrop, Compose, Grayscale, Resize, ToTensor

    size = size or SIDE
    fit = [Resize((size, size))] if whole else [Resize(round(size / SHOWN)), CenterCrop(size)]
    channels = _channels(model)
    grey = [Grayscale()] if channels in (1, 2) else []
    inverse = [AddInverse()] if channels in (2, 6) and not _adds_inverse(model) else []
    return Compose([*fit, *(_without_fitting(own) or [*grey, ToTensor(), *inverse])])


def _without_fitting(own: Any) -> list[Callable]:
    """The steps of a transform, without those that resize and crop; none where it is no list of steps."""
    steps = getattr(own, "transforms", None)
    steps = getattr(steps, "transforms", steps)  # the presets of bcos hold a Compose
    return [s for s in steps if type(s).__name__ not in FITTING] if isinstance(steps, (list, tuple)) else []


def _channels(model: nn.Module) -> int | None:
    """How many channels the first layer takes: a convolution, or a linear layer of the patches that einops makes."""
    pixels = None
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
        if type(module).__name__ == "Rearrange":
            pixels = math.prod(dict(module.axes_lengths).values())  # type: ignore[arg-type]
        if isinstance(module, nn.Linear):
            return module.in_features // pixels if pixels else None
    return None


def _adds_inverse(model: nn.Module) -> bool:
    """Whether the model itself forms the inverse channels."""
    return any(type(module).__name__ == "AddInverse" for module in model.modules())
