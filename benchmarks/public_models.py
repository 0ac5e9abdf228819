"""Models of the public repositories: small, and built by the repositories' own code. None of that code is kept here."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from bcos_kernels.adopt.layer import is_candidate
from bcos_kernels.cli.bench.coda import CODA_NETS

__all__ = ["MODELS", "UNUSED", "Model"]

UNUSED = {
    "CLIP.clip.clip": (),
    "mmcv.cnn": ("build_norm_layer",),
    "torchmetrics": ("Metric",),
    "torchvision.models.utils": ("load_state_dict_from_url",),
    "training.training_utils": ("start_training",),
}
"""Modules that files import though no model here needs them, with the names that are taken from them."""


class Model(NamedTuple):
    """A model, or a few layers: ``make`` receives the module of ``file``, which lies in ``repository``."""

    repository: str
    name: str
    file: str
    make: Callable[[ModuleType], nn.Module]
    shape: tuple[int, ...] = (6, 64, 64)
    """Of one input, without the batch."""
    call: Callable[[nn.Module, Tensor], object] = lambda model, x: model(x)


def part(m: ModuleType, name: str) -> ModuleType:
    """A module beside ``m`` of its copy of ``bcos``."""
    return importlib.import_module(f"{m.__name__.partition('.')[0]}.modules.{name}")


def norm(m: ModuleType, name: str = "BatchNormUncentered2d") -> Callable[..., nn.Module]:
    return part(m, "norms").NoBias(getattr(part(m, "norms"), name))


def conv(m: ModuleType, **options) -> Callable[..., nn.Module]:
    return partial(part(m, "bcosconv2d").BcosConv2d, **options)


def cifar(**options) -> Callable:
    sizes = {"kernel_sizes": [3] * 8 + [1], "stride": [1, 1, 2] * 3, "padding": [1] * 8 + [0]}
    rest = {"pre_process_img": None, "logit_bias": 0, "logit_temperature": 1, "max_out": 2, "out_c": [16] * 8 + [10]}
    rest |= {"load_pretrained": False, "opti": "Adam", "opti_opts": {}}
    return lambda m: m.get_model(sizes | rest | options)


def network(name: str, layer: dict | None = None, **options) -> Callable:
    """A network by its name; ``layer`` holds the options of its B-cos layers."""
    return lambda m: getattr(m, name)(num_classes=10, norm_layer=norm(m), conv_layer=conv(m, **layer or {}), **options)


def resnet(name: str, **layer) -> Callable:
    return network(name, layer, inplanes=16)


def vit(m: ModuleType, **options) -> nn.Module:
    sizes = {"image_size": 64, "patch_size": 8, "num_classes": 10, "dim": 32, "heads": 2, "mlp_dim": 64, "depth": 2}
    kinds = {"norm_layer": norm(m, "DetachableLayerNorm"), "norm2d_layer": norm(m), "act_layer": nn.Identity}
    kinds |= {"linear_layer": part(m, "bcoslinear").BcosLinear, "conv2d_layer": conv(m)}
    return m.SimpleViT(**sizes | kinds | options)


def convolutions(m: ModuleType) -> nn.Module:
    return nn.Sequential(
        m.BcosConv2d(6, 8, 3, padding=2, dilation=2),
        m.BcosConv2d(8, 8, (3, 1), padding=(1, 0), stride=(2, 1), groups=2, b=1.5),
        m.BcosConv2d(8, 8, 3, padding=1, padding_mode="reflect", b=1.25, max_out=2),
        *(m.BcosConv2dWithScale(8, 8, 3, b=b) for b in (1, 1.5) if hasattr(m, "BcosConv2dWithScale")),
    )


def linears(m: ModuleType) -> nn.Module:
    return nn.Sequential(
        m.BcosLinear(6, 8, b=1.5),
        m.BcosLinear(8, 8, max_out=2),
        m.BcosLinear(8, 8, b=1.25, normalize_weights=False),
        m.BcosLinear(8, 8, b=1),
    )


def gates(m: ModuleType) -> nn.Module:
    return nn.Sequential(nn.Linear(16, 16), m.BcosGELUActivation(), m.BcosNewGELUActivation(), m.BcosSILUActivation())


def gate(m: ModuleType) -> nn.Module:
    return nn.Sequential(nn.Linear(16, 16), m._SiLU())


def of_one_formula(m: ModuleType) -> nn.Module:
    return nn.Sequential(
        m.BcosConv2d(6, 8, 3, padding=1),
        m.BcosConv2d(8, 8, 3, stride=2, b=1.5, max_out=1),
        m.BcosConv2d(8, 8, (3, 1), padding=(1, 0), b=1, scale=2.0),
    )


def scaled_linears(m: ModuleType) -> nn.Module:
    """The linear layer with a scale, which it leaves out at b = 1."""
    return nn.Sequential(*(m.BcosLinear(8, 8, b=b, max_out=2, scale=1) for b in (1, 1.5, 2)))


def aligned_convolutions(m: ModuleType) -> nn.Module:
    """The convolutions of ALOE whose weights are those of the network that they were made from."""
    kind = getattr(m, "BcosConv2d_unnormed", None) or m.BcosUnnormedConv2d
    return nn.Sequential(
        kind(6, 8, 3, padding=1, max_out=2),
        kind(8, 8, 3, stride=2, groups=2, b=1.5),
        kind(8, 8, 3, padding=2, dilation=2),
    )


def aligned_linears(m: ModuleType, *, b: float = 2) -> nn.Module:
    return nn.Sequential(*(kind(8, 8, b=b, max_out=2) for kind in (m.BcosLinear, m.BcosUnnormedLinear)))


def aligned_block(m: ModuleType) -> nn.Module:
    """The parts of ALOE's blocks, as its package for Hugging Face holds them."""
    gates = m.DetachableGELU(), m.DetachableGELUApprox(), m.DetachableSiLU()
    return nn.Sequential(aligned_linears(m), m.NoBiasDetachableLayerNorm(8), *gates, aligned_linears(m, b=1))


class Beside(nn.Module):
    """The sum of what several norms make of an image, each with parameters that are not those of a new one."""

    def __init__(self, *norms: nn.Module) -> None:
        super().__init__()
        self.norms = nn.ModuleList(norms)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(torch.randn_like(parameter))

    def forward(self, x: Tensor) -> Tensor:
        return sum(
            (norm(x.flatten(2)).view_as(x) if "1d" in type(norm).__name__ else norm(x)) / (i + 1)
            for i, norm in enumerate(self.norms)
        )  # type: ignore[return-value]


def norms(m: ModuleType, *without: str) -> nn.Module:
    """Every norm of a version, in all of its forms."""
    names = ("AllNorm", "BatchNorm", "GNInstanceNorm", "GNLayerNorm", "PositionNorm")
    names = (*(f"{name}Uncentered2d" for name in names), "BatchNormUncentered1d")
    names += tuple(f"Detachable{name}Norm2d" for name in ("GNInstance", "GNLayer", "Position"))
    made = [getattr(m, name)(6) for name in names if hasattr(m, name) and name not in without]
    made += [m.NoBias(m.BatchNormUncentered2d)(6, momentum=None), m.Unaffine(m.GroupNormUncentered2d)(2, 6)]
    made += [m.DetachableGroupNorm2d(3, 6), m.DetachableLayerNorm(8), m.NoBias(m.DetachableLayerNorm)((8, 8))]
    return Beside(*made)


def bcosified(name: str, last: str, learned: float | None = None, **options) -> Callable:
    config = {"is_bcos": True, "name": name, "last_layer_name": last, "weights": None, "standard_changes": {}}
    config |= {"bcosify_args": options, "bcos_args": {"b": 2}}

    def make(m: ModuleType) -> nn.Module:
        model = m.get_model(config) if options.get("gap", True) else m.BcosifyNetwork(resnet18(), config)
        for layer in filter(is_candidate, model.modules() if learned is not None else ()):
            layer.b = nn.Parameter(torch.tensor(learned))  # as the training script does
        return model

    return make


def bcosified_vit(m: ModuleType) -> nn.Module:
    kinds = {"linear_layer": nn.Linear, "norm_layer": nn.LayerNorm, "act_layer": nn.GELU, "channels": 3}
    model = vit(importlib.import_module("bcos.models.vit"), **kinds)
    return m.BcosifyNetwork(model, {"bcosify_args": {}, "bcos_args": {"b": 2}}, logit_layer=True)


def bcosified_clip(m: ModuleType) -> nn.Module:
    model = importlib.import_module("CLIP.clip.model").ModifiedResNet((1, 1, 1, 1), 16, 2, 64, 8)
    return m.BcosifyNetwork(model, {"bcosify_args": {"clip_kd": True}, "bcos_args": {"b": 2}, "attn_unpool": True})


def transformer(config: str, kind: str, **options) -> Callable:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    sizes |= {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "vocab_size": 20, "num_labels": 3}
    sizes |= {"bcos": True, "bcos_attention": True, "b": 2, "attn_implementation": "eager"}
    return lambda m: getattr(m, kind)(getattr(importlib.import_module("transformers"), config)(**sizes | options))


def language_model(repository: str, name: str, file: str, b: float = 2) -> Model:
    """A classifier of texts in ``bcos_lm``, whose class begins with ``name``."""
    make = transformer(f"{name}Config", f"{name}ForSequenceClassification", b=b)
    return Model(repository, f"{name} of {file}", f"bcos_lm/models/{file}.py", make, (5, 16), by_embeddings)


def by_embeddings(model: nn.Module, x: Tensor, name: str = "inputs_embeds") -> object:
    return model(**{name: x}).logits


def coda_net(norm: str = "Squashing", small: int = 1, **options) -> Callable:
    """A CoDA-Net of a published configuration; ``small`` divides its outputs and ranks."""

    def make(m: ModuleType) -> nn.Module:
        made = getattr(importlib.import_module("modules.norms"), norm)
        config = dict(zip(("outputs", "ranks", "kernels", "strides"), options["sizes"], strict=True))
        outputs, ranks = ([max(2, n // small) for n in config[name]] for name in ("outputs", "ranks"))
        kernels, strides, paddings = config["kernels"], config["strides"], [k // 2 for k in config["kernels"]]
        kind = partial(made, p=options["p"], return_norm=True) if "p" in options else made
        return m.make_coda_net(6, outputs, ranks, kernels, strides, paddings, kind, 0, options["temperature"])

    return make


def of_bench(name: str) -> dict:
    """The sizes and the temperature of a CoDA-Net that the bench measures."""
    net = CODA_NETS[name]
    return {"sizes": (net.outputs, net.ranks, net.kernels, net.strides), "temperature": net.temperature}


def of_a_tuple(model: nn.Module, x: Tensor) -> object:
    return model((x,))


CODA, SIMPLE_CODA = "moboehle/CoDA-Nets", "models/simple_coda.py"
V1, V2, BF = "moboehle/B-cos", "B-cos/B-cos-v2", "shrebox/B-cosification"
MG, KD = "sukrutrao/Model-Guidance", "m-parchami/GoodTeachersExplain"
LM, HTP = "Ewanwong/B-cos-v2", "sidgairo18/how-to-probe"
FAIR, LM_SP = "Ewanwong/fairness_x_explainability", "314-Foundation/bcos_lm_SP"
SD = "n-bernold/bcos-stablediffusion"
ALOE, ALIGNED = "rmaser/ALOE", "src/models/hf/aloe/modules/bcos_core.py"
SIC, BD, PR = "ai-med/SIC", "sidgairo18/dino_with_bcos", "pedroroblesduten/B-COS-Networks-Implementation"
EPG, GRID = "evaluate_attributions/epg", "evaluate_attributions/gridpg"
DINO, MM = "pretraining/dino", "pretraining/mmpretrain"
MM_MODELS = f"{MM}/mmpretrain/models"
RESNET, DENSENET, CONV = "bcos/models/resnet.py", "bcos/models/densenet.py", "bcos/modules/bcosconv2d.py"
BFY, CIFAR = "bcos/experiments/ImageNet/bcosification/model.py", "experiments/CIFAR10/bcos/model.py"
BFY_VIT = BFY.replace("bcosification", "vit_bcosification")
NORMS = "bcos/modules/norms/__init__.py"
LM_NORMS = "norms", "new_norms"
FAILING = "PositionNormUncentered2d", "DetachablePositionNorm2d"
"""Norms of one version that raise an error at every call."""
MODELS = (
    Model(V1, "CIFAR10, b = 2", CIFAR, cifar(), (3, 32, 32)),
    Model(V1, "CIFAR10, b = 1.5", CIFAR, cifar(b_exp=1.5), (3, 32, 32)),
    Model(V1, "resnet34", "models/bcos/resnet.py", lambda m: m.resnet34(num_classes=10)),
    Model(V1, "densenet121", "models/bcos/densenet.py", lambda m: m.densenet121(num_classes=10)),
    Model(V1, "inception_v3", "models/bcos/inception.py", lambda m: m.inception_v3(aux_logits=False), (6, 80, 80)),
    Model(V2, "resnet18", RESNET, resnet("resnet18")),
    Model(V2, "resnet50, b = 1.5", RESNET, resnet("resnet50", b=1.5)),
    Model(V2, "resnext50, MaxOut", RESNET, resnet("resnext50_32x4d", max_out=2)),
    Model(V2, "densenet121", DENSENET, network("densenet121")),
    Model(V2, "convnext_tiny", "bcos/models/convnext.py", network("convnext_tiny", stochastic_depth_prob=0.0)),
    Model(V2, "vgg11 without its head", "bcos/models/vgg.py", lambda m: m.make_layers(m.cfgs["A"], norm(m), conv(m))),
    Model(V2, "ViT", "bcos/models/vit.py", vit),
    Model(V2, "ViT with convolutions", "bcos/models/vit.py", partial(vit, conv_stem=[12, 24])),
    Model(V2, "convolutions", CONV, convolutions),
    Model(V2, "minimal resnet18", "extra/minimal_bcos_resnet.py", lambda m: m.resnet18(num_classes=10, inplanes=16)),
    Model(V2, "minimal resnext50", "extra/minimal_bcos_resnet.py", lambda m: m.resnext50_32x4d(num_classes=10)),
    *(Model(repository, "norms", NORMS, norms, (6, 8, 8)) for repository in (V2, MG, BF, LM)),
    *(Model(LM, f"norms of {path}", f"bcos_lm/modules/{path}/__init__.py", norms, (6, 8, 8)) for path in LM_NORMS),
    Model(KD, "norms", NORMS, lambda m: norms(m, *FAILING), (6, 8, 8)),
    Model(HTP, "norms", f"{EPG}/{NORMS}", norms, (6, 8, 8)),
    Model(MG, "norm of convnext", "bcos/models/convnext.py", lambda m: Beside(m.LayerNormUncentered2d(6)), (6, 8, 8)),
    Model(MG, "resnet18", RESNET, resnet("resnet18")),
    Model(MG, "resnet50, b = 1.5, |w| in the norm", RESNET, resnet("resnet50", b=1.5, normalize_weights=False)),
    Model(MG, "densenet121", DENSENET, network("densenet121")),
    Model(MG, "convnext_atto", "bcos/models/convnext.py", network("convnext_atto", stochastic_depth_prob=0.0)),
    Model(MG, "inception_v3", "bcos/models/inception.py", network("inception_v3", aux_logits=False), (6, 80, 80)),
    Model(MG, "convolutions", CONV, convolutions),
    Model(MG, "linear layers", "bcos/modules/bcoslinear.py", linears, (6,)),
    Model(KD, "resnet18, b = 1.5", RESNET, resnet("resnet18", b=1.5)),
    Model(KD, "densenet121", DENSENET, network("densenet121")),
    Model(KD, "ViT with convolutions", "bcos/models/vit.py", partial(vit, conv_stem=[12, 24])),
    Model(KD, "convolutions", CONV, convolutions),
    Model(LM, "resnet18", RESNET, resnet("resnet18")),
    Model(LM, "resnet18 of bcos_lm", "bcos_lm/models/resnet.py", resnet("resnet18")),
    Model(
        LM, "BERT", "bcos_lm/models/bert.py", transformer("BertConfig", "BertForSequenceClassification"), (5, 16),
        partial(by_embeddings, name="input_embeds"),
    ),
    language_model(LM, "Bert", "modeling_bert"),
    language_model(LM, "Bert", "new_modeling_bert", 1.5),
    language_model(LM, "Roberta", "new_modeling_roberta"),
    language_model(LM, "DistilBert", "new_modeling_distilbert"),
    language_model(LM, "Bert", "new_new_modeling_bert", 1.25),
    language_model(LM, "Roberta", "new_new_modeling_roberta", 1.5),
    language_model(LM, "DistilBert", "new_new_modeling_distilbert", 1.5),
    Model(BF, "resnet18", BFY, bcosified("resnet18", "fc")),
    Model(BF, "resnet18, linear head, b + 2", BFY, bcosified("resnet18", "fc", learned=0.25, gap=False, learn_b=True)),
    Model(BF, "resnet18, b clamped", BFY, bcosified("resnet18", "fc", learned=1.5, clamping=True)),
    Model(BF, "densenet121, b clamped at 1", BFY, bcosified("densenet121", "classifier", learned=1.0, clamping=True)),
    Model(BF, "ViT", BFY_VIT, bcosified_vit, (6, 64, 64)),
    Model(BF, "CLIP", BFY, bcosified_clip, (6, 64, 64)),
    Model(BF, "resnet18 of its own", RESNET, resnet("resnet18")),
    Model(BF, "convolutions", CONV, convolutions),
    *(Model(HTP, f"resnet18 of {path}", f"{path}/{RESNET}", resnet("resnet18")) for path in (EPG, GRID, DINO, MM)),
    Model(HTP, "convnext_atto", f"{MM}/bcos/models/convnext.py", network("convnext_atto", stochastic_depth_prob=0.0)),
    Model(HTP, "ViT with convolutions", f"{EPG}/bcos/models/vit.py", partial(vit, conv_stem=[12, 24])),
    Model(HTP, "convolutions", f"{GRID}/{CONV}", convolutions),
    Model(HTP, "DINO resnet18", f"{DINO}/resnet_bcos.py", lambda m: m.bcosresnet18(inplanes=16)),
    Model(HTP, "DINO head", f"{DINO}/dino_heads.py", lambda m: m.BcosDINOHead(6, 10, hidden_dim=8), (6,)),
    Model(HTP, "mmpretrain resnet50", f"{MM_MODELS}/backbones/resnet_bcos.py", lambda m: m.bcosresnet50(inplanes=16)),
    Model(CODA, "CIFAR-10", SIMPLE_CODA, coda_net(**of_bench("coda_cifar10")), (6, 32, 32)),
    Model(CODA, "ImageNet", SIMPLE_CODA, coda_net(**of_bench("coda_imagenet")), (6, 48, 48)),
    *(
        Model(CODA, f"L{p} norm", SIMPLE_CODA, coda_net("LpNorm", 4, p=p, **of_bench("coda_cifar10")), (6, 16, 16))
        for p in (1, 2)
    ),
    Model(PR, "convolutions", "Bcos_modules.py", of_one_formula),
    Model(BD, "linear layers", "src/bcos/modules/bcoslinear.py", scaled_linears, (8,)),
    Model(BD, "norms", f"src/{NORMS}", norms, (6, 8, 8)),
    Model(SIC, "resnet18", "bcos/resnet.py", lambda m: m.resnet18(num_classes=10, inplanes=16)),
    *(
        language_model(repository, name, f"modeling_{name.lower()}")
        for repository in (FAIR, LM_SP)
        for name in ("Bert", "Roberta", "DistilBert")
    ),
    Model(
        LM_SP, "Llama", "bcos_lm/models/modeling_llama.py", transformer("LlamaConfig", "LlamaModel"), (5, 16),
        lambda model, x: model(inputs_embeds=x).last_hidden_state,
    ),
    Model(SD, "gate", "ldm/modules/diffusionmodules/bcosmodules.py", gate, (5, 16)),
    Model(ALOE, "convolutions", "src/modules/bcos/bcos_conv.py", aligned_convolutions),
    Model(ALOE, "linear layers", "src/modules/bcos/bcos_linear.py", partial(aligned_linears, b=1.5), (8,)),
    Model(ALOE, "convolutions of its package", ALIGNED, aligned_convolutions),
    Model(ALOE, "block of its package", ALIGNED, aligned_block, (5, 8)),
    Model(LM_SP, "gates", "bcos_lm/modules/bcoslinear.py", gates, (5, 16)),
    Model(
        HTP, "mmpretrain neck", f"{MM_MODELS}/necks/bcosnonlinear_neck.py",
        lambda m: m.BcosNonLinearNeck(6, 8, 8, num_layers=3), (6, 5, 4), of_a_tuple,
    ),
)  # fmt: skip
