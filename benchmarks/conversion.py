"""``python -m benchmarks.conversion CHECKOUT``: does ``convert`` make what the authors' code makes, in numbers?

CHECKOUT is one of shrebox/B-cosification, in a folder named after its owner. Plain networks with random weights, whose
norms have statistics, γ and β that are not those of new ones, are converted by the authors' code and by
:func:`bcos_kernels.convert`, and run in float64. The table holds the largest relative differences of the logits, of the
gradients of all parameters, of explanations and of the buffers after training. The exit code is 1 if one exceeds
``BOUND``, if the state dict of theirs does not fit ours, or if a network does not run.
"""

from __future__ import annotations

import contextlib
import copy
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

import bcos_kernels as bk
from bcos_kernels.cli.bench.models import settled
from bcos_kernels.compat import declare_torchvision_operators_when_needed
from bcos_kernels.text import aligned

from .command import Parser
from .coverage import difference, explain, prepare_process
from .fingerprints import apart, imported, title

declare_torchvision_operators_when_needed()
from torchvision import models  # noqa: E402

from .public_models import BF, BFY, BFY_VIT  # noqa: E402

__all__ = ["main"]

BOUND = 1e-10
QUANTITIES = ("state", "logits", "d weights", "explanation", "training: logits", "d weights", "buffers", "loaded")
"""What is compared, in evaluation and then in training, without the constant bias of the logits. ``state`` are the
parameters and buffers after the conversion; ``loaded`` are our logits with the state dict of theirs."""
CLIP_MODEL = "bcos/experiments/CC3M/clip_bcosification/model.py"
SIX_ZEROS = (0.0,) * 6


@dataclass(frozen=True)
class Case:
    """One network, as the authors convert it and as we do."""

    name: str
    file: str
    """Of the authors' function ``get_model``."""
    plain: Callable[[], nn.Module]
    theirs: Callable[[ModuleType, nn.Module, dict], nn.Module]
    """``theirs(module of the file, plain network, config)``."""
    config: dict = field(default_factory=dict)
    options: dict = field(default_factory=dict)
    """Of :func:`bcos_kernels.convert`, which mean the same as ``config``."""
    image: int = 96


def cnn(m: ModuleType, plain: Any, config: dict) -> nn.Module:
    """By the authors' ``get_model``, whose download is replaced by the plain network's weights."""
    kind: Any = m.ResNetBcos if isinstance(plain, models.ResNet) else m.DenseNetBcos
    network = copy.deepcopy(plain)
    network.__class__ = kind
    last, pool = ("fc", "maxpool") if isinstance(plain, models.ResNet) else ("classifier", "features[3]")
    gap = config["bcosify_args"].get("gap", True)
    if not gap:
        network.__class__ = type(plain)
    changes = {pool: nn.AvgPool2d(kernel_size=3, stride=2, padding=1)}
    config = {"is_bcos": True, "name": "", "last_layer_name": last, "standard_changes": changes} | config
    m.get_torch_model_modified = lambda name, config: network  # type: ignore[attr-defined]
    if not config.pop("keeps bias", False):
        return m.get_model(config)
    made = m.BcosifyNetwork(network, config, add_channels=True, logit_layer=True)
    if last == "fc":
        made.model.maxpool = changes[pool]
    else:
        made.model.features[3] = changes[pool]
    return made


def learned(m: ModuleType, plain: Any, config: dict, start: float) -> nn.Module:
    """As :func:`cnn`; every exponent becomes a parameter with the value ``start``, as in the authors' trainer."""
    made = cnn(m, plain, config)
    for module in made.modules():
        if hasattr(module, "b"):
            module.b = nn.Parameter(torch.tensor(start))
    return made


def vit(m: ModuleType, plain: nn.Module, config: dict) -> nn.Module:
    """By the authors' ``get_model``, whose download is replaced by the plain network."""
    torch.hub.load = lambda *args, **kwargs: copy.deepcopy(plain)
    return m.get_model({"name": "", "logit_layer": True, "args": {"gap_reorder": True}} | config)


def clip(m: ModuleType, plain: Any, config: dict) -> nn.Module:
    """By the authors' ``get_model``. Without ``attn_unpool`` it leaves the pool's weights random: they are copied."""
    network = copy.deepcopy(plain)
    m.clip.load = lambda *args, **kwargs: (SimpleNamespace(visual=network, float=lambda: None), None)
    made = m.get_model({"is_bcos": True} | config)
    if not config.get("attn_unpool"):
        for name in ("k_proj", "q_proj", "v_proj"):
            getattr(made.model.attnpool, name).weight.data = getattr(plain.attnpool, name).weight.data.clone()
        made.model.attnpool.c_proj.linear.weight.data = plain.attnpool.c_proj.weight.data.clone()
    return made


def simple_vit(**options) -> nn.Module:
    """The authors' transformer with plain layers, as their hub gives it; imported where their code is."""
    from bcos.models import vit

    sizes = {"dim": 384, "depth": 12, "heads": 6, "mlp_dim": 1536, "num_classes": 1000, "image_size": 224}
    kinds = {"linear_layer": nn.Linear, "norm_layer": nn.LayerNorm, "act_layer": nn.GELU, "channels": 3}
    kinds |= {"conv2d_layer": nn.Conv2d, "norm2d_layer": partial(nn.GroupNorm, 1)}
    return vit.SimpleViT(**{"patch_size": 16} | sizes | kinds | options)


def modified_resnet() -> nn.Module:
    from CLIP.clip.model import ModifiedResNet

    return ModifiedResNet((3, 4, 6, 3), 1024, 32, 224, 64)


BASE, STEM = {"dim": 768, "heads": 12, "mlp_dim": 3072}, {"conv_stem": [48, 96, 192, 384]}
IN_CLIP = {"bcosify_args": {"clip_kd": True}}
CASES = (
    Case("resnet18", BFY, models.resnet18, cnn),
    Case("resnet50", BFY, models.resnet50, cnn),
    Case("resnext50", BFY, models.resnext50_32x4d, cnn),
    Case("densenet121", BFY, models.densenet121, cnn),
    Case("resnet18, biases kept", BFY, models.resnet18, cnn, {"keeps bias": True}, {"bias": True}),
    Case("densenet121, biases kept", BFY, models.densenet121, cnn, {"keeps bias": True}, {"bias": True}),
    Case("resnet18, b = 1.25", BFY, models.resnet18, cnn, {"bcos_args": {"b": 1.25}}, {"b": 1.25}),
    Case(
        "resnet18, b clamped", BFY, models.resnet18, partial(learned, start=1.5),
        {"bcosify_args": {"clamping": True}}, {"b": 1.5, "learn_b": "clamp"},
    ),
    Case(
        "resnet18, b = 2 + parameter", BFY, models.resnet18, partial(learned, start=-0.5),
        {"bcosify_args": {"learn_b": True}}, {"b": 1.5, "learn_b": "offset"},
    ),
    Case(
        "resnet18, no ReLU, linear head", BFY, models.resnet18, cnn,
        {"bcosify_args": {"gap": False, "act_layer": False}}, {"pool_logits": False, "activations": False},
    ),
    Case("resnet18, centered norms", BFY, models.resnet18, cnn, {"bcosify_args": {"norm_layer": "Bn2d"}},
         {"uncentered": False}),
    Case("ViT-S", BFY_VIT, simple_vit, vit, image=224),
    Case("ViT-B", BFY_VIT, partial(simple_vit, **BASE), vit, image=224),
    Case("ViTC-S", BFY_VIT, partial(simple_vit, image_size=14, patch_size=1, depth=11, **STEM), vit, image=224),
    Case(
        "ViT-S, biases kept, no GELU, head behind the mean", BFY_VIT, simple_vit, vit,
        {"bcosify_args": {"use_bias": True}, "act_layer": False, "args": {}},
        {"bias": True, "activations": False, "pool_logits": False},
        224,
    ),
    Case("CLIP RN50", CLIP_MODEL, modified_resnet, clip, IN_CLIP),
    Case("CLIP RN50, unpooled", CLIP_MODEL, modified_resnet, clip, {"attn_unpool": True} | IN_CLIP,
         {"attn_unpool": True}),
    Case("CLIP RN50, zero mean", CLIP_MODEL, modified_resnet, clip, {"bfy_mean_zero": True} | IN_CLIP,
         {"mean": SIX_ZEROS}),
)  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Prints the table; 1 if something is amiss."""
    parser = Parser(__doc__)
    parser.add_argument("folder", type=Path, metavar="CHECKOUT", help=f"a checkout of {BF}")
    folder = parser.parse_args(argv).folder
    if not (folder / ".git").exists() or title(folder) != BF:
        parser.error(f"{folder}: not a checkout of {BF}")
    rows, right = [("network", *QUANTITIES)], True
    for index, case in enumerate(CASES):
        found = apart(outcome, folder, index)
        failed = isinstance(found, str)
        right &= not failed and max(found) <= BOUND
        cells = (found, *("-",) * (len(QUANTITIES) - 1)) if failed else (f"{d:.0e}" for d in found)
        rows.append((case.name, *cells))
        print(*rows[-1], sep="  ", file=sys.stderr, flush=True)
    print(aligned(rows))
    return 0 if right else 1


def outcome(folder: Path, index: int) -> list[float] | str:
    """The differences of one network, or what went wrong; for a process that ends with it."""
    case = CASES[index]
    prepare_process()
    defaults = {"weights": "given", "bcosify_args": {}, "bcos_args": {"b": 2}}
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            m = imported(folder, folder / case.file)
            sys.path.insert(0, str(folder))
            plain = perturbed(case.plain())
            theirs: Any = case.theirs(m, plain, defaults | case.config).double()
            ours = bk.convert(plain, **case.options)
            if bias_of(ours) != bias_of(theirs):
                return f"the bias of the logits is {bias_of(ours)}, theirs is {bias_of(theirs)}"
            ours.logit_layer = theirs.logit_layer = None
            x = bk.AddInverse()(torch.rand(2, 3, case.image, case.image))
            results = [([1 + t.double() for t in state(n)] for n in (ours, theirs))]
            settled(ours, x)
            for mine, other in zip(state(ours), state(theirs), strict=True):
                other.data.copy_(mine)
            results += zip(measured(ours, x), measured(theirs, x), strict=True)
            for tensor in state(ours):
                tensor.data.zero_()
            ours.load_state_dict(theirs.state_dict())
            results.append(([ours.eval()(x)], [theirs.eval()(x)]))
            return [difference(a, b) for a, b in results]
    except Exception as error:  # anything that a stranger's code can raise
        return f"{type(error).__name__}: {error}"


def bias_of(network: Any) -> float | None:
    """The constant that the network adds to its logits."""
    return network.logit_layer and network.logit_layer.logit_bias


def perturbed(model: nn.Module) -> nn.Module:
    """The model with vectors and statistics that are not those of a new one."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.3)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return model.double()


def measured(network: nn.Module, x: Tensor) -> tuple[Sequence[Tensor | None], ...]:
    """The ``QUANTITIES`` from logits to buffers; parameters in the order in which the network holds them."""
    parameters = list(network.parameters())

    def run(training: bool, explained: bool) -> tuple[Tensor, Sequence[Tensor | None]]:
        """The logits, and the gradients of a weighted sum of them: of the input if explained, else of the parameters"""
        network.train(training)
        explain(network, explained)
        inputs = x.clone().requires_grad_()
        y = network(inputs)
        explain(network, False)
        total = (y * torch.cos(torch.arange(y.numel())).view_as(y)).sum()
        return y, torch.autograd.grad(total, [inputs] if explained else parameters, allow_unused=True)

    logits, gradients = run(False, False)
    _, explanation = run(False, True)
    trained, of_training = run(True, False)
    return [logits], gradients, explanation, [trained], of_training, [1 + t.double() for t in state(network)]


def state(network: nn.Module) -> list[Tensor]:
    """The parameters and buffers of the state dict, in its order."""
    return list(network.state_dict(keep_vars=True).values())


if __name__ == "__main__":
    raise SystemExit(main())
