"""Turns a pretrained network into a B-cos network: checks first, then a copy is changed module by module.

Source: Arya et al., B-cosification: Transforming Deep Neural Networks to be Inherently Interpretable, NeurIPS 2024
(arXiv 2411.00715), and the published code.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..adopt.accelerate import accelerate, check_options, plan_of
from ..adopt.layer import is_candidate
from ..core import _torch
from ..core.checks import check_model
from ..modules import BcosLayer, Detachable
from .families import head_of
from .inputs import LogitBias, Normalize
from .network import BcosNetwork
from .options import CLASSES, Options
from .report import Report, Row
from .rules import BIASED, CONVERTIBLE, computes_as, convolution_of, is_attention_pool, made, opaque

__all__ = ["convert"]

PATCHES = "to_patch_embedding"
"""The part of a ``SimpleViT`` that makes tokens of patches."""


def convert(
    model: nn.Module,
    *,
    b: float = 2.0,
    learn_b: str | None = None,
    bias: bool = False,
    uncentered: bool = True,
    activations: bool = True,
    average_pool: bool = True,
    pool_logits: bool = True,
    attn_unpool: bool = False,
    logit_bias: float | str | None = CLASSES,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    out_dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> BcosNetwork:
    """A B-cos network with the weights of ``model``, to be fine-tuned (Arya et al., NeurIPS 2024); a copy is changed.

    The defaults are the paper's. Convolutions and linear layers become B-cos layers with the weights as they are, batch
    norms uncentered ones; layer norms, group norms, GELUs and attentions get an explanation mode; ReLUs stay. Layers
    that form queries, keys or values stay plain. The first layer takes six channels, ``[W, -W] / 2``. Activations no
    longer work in place. ``network.report`` says what became of every module. Parameters keep their names after
    ``network.model.``, and ``weight`` of a layer is ``linear.weight`` then.

    Args:
        model: a network whose first layer takes three or six channels: torchvision's ResNets, DenseNets, ConvNeXts,
            VGGs and vision transformers, the ``SimpleViT`` of ``bcos`` without B-cos layers, and the ResNets that are
            the visual part of CLIP are known; of all others, modules of the classes of PyTorch named above.
        b: the exponent of every layer, at least 1; its first value where it is learned.
        learn_b: None keeps it; ``"clamp"`` learns b, clamped above 1; ``"offset"`` learns b - 2, which a weight decay
            draws to 0. The parameters end with ``.b``.
        bias: False removes the biases of layers and norms, and the positional embedding of CLIP's attention pool; a
            module that is left alone keeps its own. With True batch norms get ``β - μγ/σ``, so that in evaluation they
            compute what they did.
        uncentered: False keeps ``nn.BatchNorm2d``.
        activations: False replaces ReLUs and GELUs by the identity.
        average_pool: False keeps max pools; True replaces them by average pools of the same window.
        pool_logits: True puts the classifier in front of the last average pool, as a 1×1 convolution, in the networks
            whose code is known: ResNet, DenseNet, ConvNeXt and SimpleViT.
        attn_unpool: True makes CLIP's attention pool embed every position, instead of pooling them.
        logit_bias: what is added to the logits: ``"classes"``, the default, is ``-log(classes - 1)``, of the outputs of
            the layer that the network names last, and none for CLIP and for fewer than three classes; a float; or None.
        mean, std: of the channels: three values m and s, which become ``[m, 1 - m]`` and ``[s, s]``, or six. None
            takes ImageNet's, and CLIP's for networks with its attention pool. Six zeros are the paper's zero mean.
        out_dtype, backend: of the B-cos layers, as in :func:`bcos_kernels.accelerate`, which may be called again on the
            network, with ``pairs=True``.

    Returns:
        The network, in the mode, dtype and device of ``model``. It takes images ``[N, 6, H, W]`` with values in [0, 1],
        see :class:`bcos_kernels.AddInverse`, and returns what ``model`` returns of ``[N, 3, H, W]``.

    Raises:
        TypeError: ``model`` is not a module or was compiled by TorchScript, or an argument is of another type.
        ValueError: the model has B-cos layers already, or none that could become one; its first layer takes another
            number of channels, or a second layer takes the images, too; its ``transform_input`` is True; a module that
            would be replaced has hooks or parametrizations; or an argument is not allowed.

    Warns:
        UserWarning: modules were left alone, because there is no rule for them: explanations may be wrong.
    """
    check_model(model)
    check_options(out_dtype, backend, "leave")
    options = Options(
        b, learn_b, bias, uncentered, activations, average_pool, pool_logits, attn_unpool, logit_bias, mean, std,
        out_dtype, backend,
    )  # fmt: skip
    name, _ = _first_layer(model)
    _check_hooks(model)
    clip = any(map(is_attention_pool, model.modules()))
    conversion = _Conversion(copy.deepcopy(model), options)
    parameter = next(model.parameters())
    normalize = Normalize(*options.statistics(clip), device=parameter.device, dtype=parameter.dtype)
    conversion.widen(name)
    converted = conversion.run()
    classes = None if clip else conversion.classes
    bias_of_logits = options.bias_of_logits(classes)
    counted = classes if logit_bias == CLASSES else None
    logit_layer = None if bias_of_logits is None else LogitBias(bias_of_logits, counted)
    network = BcosNetwork(normalize, converted, logit_layer, Report(tuple(conversion.rows)))
    for own in (network.normalize, network.logit_layer):
        if own is not None:
            own.train(model.training)
    network.training = model.training
    if (left := len(network.report.left_alone)) > 0:
        warnings.warn(f"convert({type(model).__name__}): modules left alone: {left}; see network.report", stacklevel=2)
    return accelerate(network, out_dtype=out_dtype, backend=backend)  # type: ignore[return-value]


def _first_layer(model: nn.Module) -> tuple[str, Any]:
    """Name and module of the layer that sees the images. Raises if the model cannot be converted."""
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(f"model: a module of {type(model).__name__} was compiled by TorchScript, a plain one is needed")
    for name, module in model.named_modules():
        if isinstance(module, (BcosNetwork, BcosLayer)) or is_candidate(module) or plan_of(module) is not None:
            raise ValueError(f"model: {name or type(model).__name__} is a B-cos layer: the network is one already")
        if getattr(module, "transform_input", False) is True:  # of torchvision's GoogLeNet and Inception
            shown = f"{name}." if name else ""
            raise ValueError(
                f"model: {shown}transform_input=True would see three channels: set it to False, "
                "and convert with mean=(0.5,) * 3, std=(0.5,) * 3, which do the same"
            )
    layers = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear)) and opaque(module) is None
    ]
    if not layers:
        raise ValueError(f"model: {type(model).__name__} has no nn.Conv2d and no nn.Linear to become a B-cos layer")
    name, first = layers[0]
    shown = name or type(model).__name__
    if isinstance(first, nn.Conv2d):
        if first.in_channels not in (3, 6):
            raise ValueError(f"model: its first layer {shown} takes {first.in_channels} channels: 3 or 6 are needed")
        if first.groups != 1 and first.in_channels == 3:
            raise ValueError(f"model: its first layer {shown} has groups={first.groups}: 1 is needed")
        if first.in_channels == 3 and (other := _other_first_layer(model, layers)) is not None:
            raise ValueError(
                f"model: {shown} and {other} both take 3 channels, which no layer makes: one alone may see the images"
            )
    elif not _takes_patches(model, name):
        raise ValueError(f"model: its first layer {shown} is linear: a convolution of 3 or 6 channels is needed")
    if not computes_as(first, nn.Conv2d if isinstance(first, nn.Conv2d) else nn.Linear):
        raise ValueError(f"model: the code of its first layer {shown} is not that of PyTorch")
    return name, first


def _other_first_layer(model: nn.Module, layers: list[tuple[str, Any]]) -> str | None:
    """The name of a further layer that takes three channels, in a network where the images alone have as many."""
    made = {getattr(module, "out_channels", getattr(module, "out_features", None)) for module in model.modules()}
    if 3 in made or any(isinstance(module, nn.PixelShuffle) for module in model.modules()):
        return None
    return next((name for name, m in layers[1:] if isinstance(m, nn.Conv2d) and m.in_channels == 3), None)


def _takes_patches(model: nn.Module, name: str) -> bool:
    """Whether a linear layer gets patches whose values are ordered by pixel, then by channel."""
    if name.rpartition(".")[0].rpartition(".")[2] != PATCHES:
        return False
    before = next(iter(model.get_submodule(name.rpartition(".")[0]).children()))
    pattern = str(getattr(before, "pattern", "")).replace(" ", "")
    linear: Any = model.get_submodule(name)
    return pattern.endswith("(p1p2c)") and linear.in_features % 3 == 0


def _check_hooks(model: nn.Module) -> None:
    """Raises if a module that would be replaced has something that its replacement would not have."""
    for name, module in model.named_modules():
        what = "parametrizations" if "parametrizations" in module._modules else None
        what = "hooks" if _torch.has_hook(module) else what
        if isinstance(module, CONVERTIBLE) and what is not None:
            raise ValueError(
                f"model: {name or type(model).__name__} has {what}, which would be lost: remove them first"
            )


class _Conversion:
    """The conversion of one copy of a model, which collects the rows of its report."""

    def __init__(self, model: nn.Module, options: Options) -> None:
        self.model = model
        self.options = options
        self.rows: list[Row] = []
        self.classes: int | None = None
        self._done: dict[int, nn.Module] = {}
        self._plain: list[nn.Module] = []
        """Keeps what was replaced, so that no other object gets its id."""
        self._alone: set[int] = set()
        """Modules that are left alone, and all that stand in one whose forward reads their weights."""
        self._convolved: set[int] = set()
        """Linear layers that become 1×1 convolutions."""

    def widen(self, name: str) -> None:
        """Makes the first layer take ``[x, 1 - x]``: its weights are ``[W, -W] / 2``."""
        first: Any = self.model.get_submodule(name)
        weight = first.weight.detach()
        if isinstance(first, nn.Conv2d):
            if first.in_channels == 6:
                return
            first.in_channels = 6
            wide = torch.cat([weight, -weight], 1) / 2
        else:
            first.in_features *= 2
            pixels = weight.unflatten(1, (-1, 3))
            wide = torch.cat([pixels, -pixels], 2).flatten(1) / 2
        first.weight = nn.Parameter(wide, first.weight.requires_grad)

    def run(self) -> nn.Module:
        """The converted model."""
        modules = list(self.model.modules())
        if self.options.pool_logits:
            for module in modules:
                self._reorder(module)
        converted = self._converted(self.model, "", "")
        for module in converted.modules():
            if getattr(module, "inplace", False) is True:
                module.inplace = False  # type: ignore[assignment]
            if not self.options.bias and isinstance(module, BIASED) and id(module) not in self._alone:
                ours = ("in_proj_bias", "positional_embedding") if isinstance(module, Detachable) else ()
                for name in ("bias", *ours):
                    if module._parameters.get(name) is not None:
                        setattr(module, name, None)
        return converted

    def _reorder(self, network: Any) -> None:
        head = head_of(network)
        if head is None:
            return
        if head.reordered is None:
            network.gap_reorder = True
        else:
            network.__class__ = head.reordered
        if head.convolves:
            self._convolved.add(id(network.get_submodule(head.linear)))

    def _converted(self, module: Any, path: str, name: str) -> nn.Module:
        """What ``module`` becomes; modules that stand in several places are converted once."""
        if id(module) in self._done:
            return self._done[id(module)]
        title, position = type(module).__name__, len(self.rows)
        self._plain.append(module)
        reason = opaque(module)
        if reason is not None:
            self._done[id(module)] = module
            self._alone.update(map(id, module.modules()))
            self.rows.append(Row(path or "(model)", title, None, reason, understood=False))
            return module
        self._done[id(module)] = module
        for child_name, child in list(module._modules.items()):
            if child is not None:
                below = f"{path}.{child_name}" if path else child_name
                module._modules[child_name] = self._converted(child, below, child_name)
        convolves = id(module) in self._convolved
        found = made(convolution_of(module) if convolves else module, name, self.options)
        found.module.training = module.training
        if not found.understood:
            self._alone.add(id(found.module))
        self._done[id(module)] = found.module
        if isinstance(found.module, BcosLayer):
            self.classes = len(found.module.weight)
        row = self._row(path or "(model)", title, module, found, convolves)
        if row is not None:
            self.rows.insert(position, row)
        return found.module

    def _row(self, path: str, title: str, plain: Any, found, convolves: bool) -> Row | None:
        """The row of a module; None for one that only holds others."""
        became, reason = type(found.module).__name__, found.reason
        if convolves:
            reason = "a 1×1 convolution in front of the pooling"
        if found.module is plain and became == title:
            if not reason and next(plain.children(), None) is not None:
                if not plain._parameters:
                    return None
                reason = f"its own parameters stay: {', '.join(plain._parameters)}"
            return Row(path, title, None, reason, found.understood)
        return Row(path, title, became, reason)
