"""The measures of a whole model, and the standard network that stands beside each of the reference's models."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...compat import import_reference
from ...conversion import fold
from ...core import _torch
from ...explanation import explain, explanation_mode
from ...explanation.passes import backward, default_chunk
from .contenders import FOLDED, PLAIN, Contender, Contest

__all__ = [
    "CLASSES", "COMPILABLE", "EXPLAINED", "EXPLAINED_MODELS", "MEASURES", "contest", "plain", "settled", "signalling",
    "still",
]  # fmt: skip

EXPLAINED = {"explained batch": (8, 1), "explained grids": (4, 9), "further classes": (4, 8)}
"""Measures of whole explanations -> images and classes of each: what a data set takes, what GridPG takes, and the
backwards alone, which are what every class costs beyond the forward."""
MEASURES = ("inference", "training", "explanation", "class explanations", "explanation loss", *EXPLAINED)
"""As ``show`` tells them. Whole explanations are those of the reference's ``model.explain``, which takes one image and
one class at a time, and of our ``explain``, beside the passes alone of the standard network; the backwards of further
classes are ours as ``explain`` forms them, and one class at a time by all others."""
COMPILABLE = MEASURES[:4]
"""torch.compile has no second derivatives, and compiles no passes that a model makes by itself."""
EXPLAINED_MODELS = ("resnet50", "densenet121")
"""Models whose explanations are measured unless others are asked for: each takes minutes on a CPU."""
CLASSES = 5
TURNS = 4
"""Number of inputs, one rounding apart, that decide about a contender: a network can magnify a rounding above the bound
of 1.1 times the reference's error."""
DIRECTIONS = {"inference": "forward", "training": "training", "explanation loss": "training"}
"""Measure -> its direction, of ``core.candidate.DIRECTIONS``; that of all others is the explanation."""


# ------------------------------------------------------------------------------------------------ networks


def plain(model: str, image: int) -> nn.Module:
    """torchvision's network of the same shape, with 6 input channels and random weights."""
    import_reference()  # torchvision may need it
    from torchvision import models
    from torchvision.models.vision_transformer import ConvStemConfig

    vit = partial(models.VisionTransformer, image, num_heads=6, hidden_dim=384, mlp_dim=1536)
    stem = [ConvStemConfig(channels, 3, 2) for channels in (48, 96, 192, 384)]
    made = {
        "resnet50": models.resnet50,
        "resnext50": models.resnext50_32x4d,
        "densenet121": models.densenet121,
        "vgg11": lambda: _convolutional(models.vgg11_bn(init_weights=False)),
        "convnext_t": models.convnext_tiny,
        "vit_s": lambda: vit(16, 12),
        "vitc_s": lambda: vit(16, 11, conv_stem_configs=stem),
    }[model]()
    first = next(name for name, module in made.named_modules() if isinstance(module, nn.Conv2d))
    conv = made.get_submodule(first)
    geometry = conv.kernel_size, conv.stride, conv.padding
    wider = nn.Conv2d(6, conv.out_channels, *geometry, bias=conv.bias is not None)
    made.set_submodule(first, wider)
    return made


def _convolutional(vgg: Any) -> nn.Module:
    """VGG with its classifier applied at every position and averaged, as in the reference."""
    classifier = nn.Conv2d(512, 4096, 7, padding=3), nn.ReLU(), nn.Conv2d(4096, 4096, 1), nn.ReLU()
    return nn.Sequential(vgg.features, *classifier, nn.Conv2d(4096, 1000, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def still(model: nn.Module) -> nn.Module:
    """``model`` with nothing random in its forward, in place: dropout and stochastic depth have probability 0."""
    modules: Iterable[Any] = model.modules()
    for module in modules:
        if type(module).__name__ == "StochasticDepth" or isinstance(module, _torch.Dropout):
            module.p = 0.0
    return model


def settled(model: Any, images: Tensor) -> nn.Module:
    """Gives batch norms, in place, the statistics of ``images``, as training would.

    With those of an untrained network each B-cos layer multiplies its output by a cosine, and no norm makes up for it:
    in the last layers of a ResNet values would be so small that a trained network's kernels do not serve them.
    """
    norms = {norm: norm.momentum for norm in model.modules() if hasattr(norm, "running_var")}
    if not norms:
        return model
    for norm in norms:
        norm.momentum = 1.0
    training = model.training
    with torch.no_grad():
        model.train()(images)
    for norm, momentum in norms.items():
        norm.momentum = momentum
    return model.train(training)


def signalling(vgg: Any, images: Tensor) -> nn.Module:
    """Gives the reference's untrained VGG, in place, weights with which its explanations do not underflow.

    A B-cos layer multiplies its output by a cosine, about 1/√taps between a random filter and its input. The three
    layers of VGG's classifier have up to 25,088 taps and no norm behind them, so that explanations fall below the
    smallest number of fp32. Here each filter of the classifier becomes a patch of its input for ``images`` plus noise
    of the same length, and the layers before are :func:`settled`.
    """

    def imitate(layer: Any, inputs: tuple[Tensor, ...]) -> None:
        weight = layer.linear.weight
        patches = F.unfold(inputs[0], layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        patches = F.normalize(patches.transpose(1, 2).flatten(0, 1))
        chosen = patches[torch.randint(len(patches), (len(weight),))]
        weight.copy_((chosen + F.normalize(torch.randn_like(chosen))).view_as(weight))

    hooks = [layer.register_forward_pre_hook(imitate) for layer in vgg.classifier]
    settled(vgg, images)
    for hook in hooks:
        hook.remove()
    return vgg


# ------------------------------------------------------------------------------------------------ measures


def logits(model: nn.Module, x: Tensor) -> Tensor:
    """Logits ``[N, K]``; raises TypeError for a model that returns no tensor."""
    y = model(x)
    if not isinstance(y, Tensor):
        raise TypeError(f"the model returns {type(y).__name__}, not a tensor")
    return y.flatten(1)


def explanations(model: nn.Module, x: Tensor, classes: list[Tensor]) -> list[Tensor]:
    """y, and for each of the classes ``[N]`` the gradient of their logits with respect to x, all from one graph."""
    x = x.detach().requires_grad_()
    with explanation_mode(model):
        y = logits(model, x)
        chosen = [y.gather(1, c[:, None]).sum() for c in classes]
        return [y.detach(), *(torch.autograd.grad(s, x, retain_graph=s is not chosen[-1])[0] for s in chosen)]


def explained(model: nn.Module, x: Tensor, classes: list[Tensor]) -> list[Tensor]:
    """The same by our ``explain``."""
    found = explain(model, x, torch.stack(classes, 1))
    assert found.weights is not None
    return [found.logits, *found.weights.unbind(1)]


def one_by_one(model: Any, x: Tensor, classes: list[Tensor]) -> None:
    """Explains as the reference does, one image and one class at a time; ``explain`` is the reference's method."""
    for c in classes:
        for image, index in zip(x.split(1), c.tolist(), strict=True):
            model.explain(image.clone().requires_grad_(), idx=index)


def further(model: nn.Module, x: Tensor, classes: list[Tensor], at_once: bool) -> Callable[[], object]:
    """A call that forms dx of logits of the classes ``[N]``, ``at_once`` as ours does, from a graph that is kept."""
    x = x.detach().requires_grad_()
    with explanation_mode(model):
        y = logits(model, x)
    gradients = F.one_hot(torch.stack(classes), y.shape[1]).to(y.dtype)
    chunk = default_chunk(y, x, len(gradients)) if at_once else 1

    def call() -> None:
        with explanation_mode(model):
            for several in gradients.split(chunk):
                backward(y, x, several, create_graph=False, retain=True)

    return call


def loss_of(model: nn.Module, x: Tensor, labels: Tensor, explained: bool) -> tuple[Tensor, Tensor]:
    """``(loss, y)``: binary cross-entropy, with ``explained`` plus the share of contributions outside of the middle."""
    y = logits(model, x)
    loss = F.binary_cross_entropy_with_logits(y, F.one_hot(labels, y.shape[1]).to(y.dtype))
    if not explained:
        return loss, y
    x = x.detach().requires_grad_()
    with explanation_mode(model), sdpa_kernel(SDPBackend.MATH):  # the one attention that has a second derivative
        chosen = logits(model, x).gather(1, labels[:, None]).sum()
        (gradient,) = torch.autograd.grad(chosen, x, create_graph=True)
    contributions = (x * gradient).sum(1).abs() if x.dim() > 2 else (x * gradient).abs()
    inside = contributions
    for dim in range(1, contributions.dim()):
        size = contributions.shape[dim]
        inside = inside.narrow(dim, size // 4, max(1, size // 2))
    return loss + 1 - inside.sum() / contributions.sum(), y


def contest(contenders: dict[str, Contender], x: Tensor, measure: str, checked: int) -> Contest:
    """One measure of a model on a batch, of which the first ``checked`` images are checked.

    Gradients of parameters are compared as one vector, because the largest error of a single one is mostly chance.
    Modes and buffers are set as the measure needs them.
    """
    trains = measure in ("training", "explanation loss")
    reference = contenders["reference"].module
    buffers = [buffer.clone() for buffer in reference.buffers()]
    for name, contender in contenders.items():
        contender.module.train(trains)
        if name not in PLAIN:
            _fill(contender.module.buffers(), buffers)
    contenders = _folded(contenders, trains)
    with torch.no_grad():
        count = logits(copy.deepcopy(reference).eval(), x[:1]).shape[1]
    labels = torch.arange(len(x), device=x.device) * 7 % count
    classes = EXPLAINED[measure][1] if measure in EXPLAINED else CLASSES if measure == "class explanations" else 1
    several = [(labels + i) % count for i in range(min(classes, count))]
    mine = {id(contenders[name].module) for name in contenders if name.startswith("ours")}

    def computed(model: nn.Module, x: Tensor) -> list[Tensor]:
        n = len(x)
        if measure == "inference":
            with torch.no_grad():
                return [logits(model, x)]
        if not trains:
            checked = [c[:n] for c in several[:CLASSES]]
            ours = measure in EXPLAINED and id(model) in mine
            y, *gradients = explained(model, x, checked) if ours else explanations(model, x, checked)
            return [y, torch.cat([gradient.flatten() for gradient in gradients])]
        kept = [buffer.clone() for buffer in model.buffers()]
        loss, y = loss_of(model, x, labels[:n], measure == "explanation loss")
        parts = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
        _fill(model.buffers(), kept)
        return [y.detach(), torch.cat([part.flatten() for part in parts])]

    def exact() -> list[Tensor]:
        return computed(copy.deepcopy(reference).double(), x[:checked].double())

    def step(model: nn.Module) -> Callable[[], object]:
        if measure == "inference":
            return partial(torch.no_grad()(logits), model, x)
        if measure == "further classes":
            return further(model, x, several, id(model) in mine)
        if measure in EXPLAINED and model is reference:
            return partial(one_by_one, model, x, several)
        if measure in EXPLAINED and id(model) in mine:
            return lambda: explain(model, x, torch.stack(several, 1)).rgba()
        if not trains:
            return partial(explanations, model, x, several)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)  # the weights stay equal

        def call() -> None:
            optimizer.zero_grad()
            loss_of(model, x, labels, measure == "explanation loss")[0].backward()
            optimizer.step()

        return call

    def graph(model: nn.Module) -> Tensor:
        if trains:
            return loss_of(model, x, labels, False)[0]
        with explanation_mode(model):
            return logits(model, x.detach().requires_grad_())

    def compared(model: nn.Module, turn: int = 0) -> list[Tensor]:
        return computed(model, _nearby(x[:checked], turn))

    counted = measure not in ("inference", "explanation loss")  # a second derivative allows no hooks on saved tensors
    return Contest(
        contenders, x, DIRECTIONS.get(measure, "explanation"), exact, compared, step, graph if counted else None, TURNS
    )


def _folded(contenders: dict[str, Contender], trains: bool) -> dict[str, Contender]:
    """The contenders, with one of them folded; without it where nothing can be folded or the measure trains."""
    others = {name: contender for name, contender in contenders.items() if name != FOLDED}
    if FOLDED not in contenders or trains:
        return others
    try:
        return others | {FOLDED: Contender(fold(contenders[FOLDED].module))}
    except ValueError:
        return others


def _nearby(x: Tensor, turn: int) -> Tensor:
    """``x`` in turn 0, and an input one rounding away from it in any other turn."""
    if turn == 0:
        return x
    sign = torch.randint(2, x.shape, generator=torch.Generator().manual_seed(turn)).to(x.device) * 2 - 1
    return x * (1 + sign * torch.finfo(x.dtype).eps).to(x.dtype)


def _fill(buffers: Iterator[Tensor], values: list[Tensor]) -> None:
    with torch.no_grad():
        for buffer, value in zip(buffers, values, strict=True):
            buffer.copy_(value)
