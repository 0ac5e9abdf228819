"""What each module of PyTorch becomes, and which of its properties it keeps."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import nn

from ..core import _torch
from ..modules import BcosConv2d, BcosLinear
from . import modules
from .options import Options

__all__ = [
    "BIASED", "CONVERTIBLE", "QKV", "Made", "computes_as", "convolution_of", "is_attention_pool", "made", "opaque",
]  # fmt: skip

QKV = {
    "to_qkv", "to_q", "to_k", "to_v", "to_kv", "qkv", "qkv_proj", "q_proj", "k_proj", "v_proj", "query", "key", "value",
    "q", "k", "v", "kv",
}  # fmt: skip
"""The names of layers that form queries, keys or values. They stay plain."""

KEPT = (
    nn.Identity, _torch.Dropout, nn.Flatten, nn.Unflatten, nn.AvgPool2d, nn.AdaptiveAvgPool2d,
    nn.Upsample, nn.ZeroPad2d, nn.PixelShuffle, nn.ChannelShuffle,
)  # fmt: skip
"""Modules that are linear in their input."""

KEPT_NAMES = {"Permute", "StochasticDepth", "Rearrange", "PosEmbSinCos2d"}
"""The same, by the names of classes in torchvision, einops and ``bcos``."""

OPAQUE = (
    nn.TransformerEncoderLayer, nn.TransformerDecoderLayer, nn.RNNBase, torch.jit.ScriptModule,
    nn.modules.lazy.LazyModuleMixin,
)  # fmt: skip
OPAQUE_NAMES = {"ShiftedWindowAttention", "ShiftedWindowAttentionV2"}
"""Classes of modules that compute with their layers' weights without calling the layers."""


BIASED = (
    _torch.Convolution, nn.Linear, nn.Bilinear, _torch.NormWithStatistics, nn.LayerNorm, nn.GroupNorm,
    modules.Detachable,
)  # fmt: skip
"""Modules that compute without their bias where it is None."""


FUNCTIONS = {
    "softmax", "scaled_dot_product_attention", "normalize", "layer_norm", "group_norm", "batch_norm", "instance_norm",
    "rms_norm", "gelu", "silu", "sigmoid", "tanh", "hardswish", "hardsigmoid", "mish", "elu", "softplus",
}  # fmt: skip
"""Functions of torch that are not linear maps with constants that an explanation could hold; ReLUs and pools are."""


class Made(NamedTuple):
    """What a rule makes of a module."""

    module: Any
    reason: str = ""
    understood: bool = True


def made(module: Any, name: str, options: Options) -> Made:
    """What the module becomes, whose own modules are converted already; ``name`` is its name in its parent."""
    if type(module).__module__ == "torchvision.models.convnext" and type(module).__name__ == "LayerNorm2d":
        return _of_class(module, modules.DetachableLayerNorm2d)
    for base, rule in RULES:
        if isinstance(module, base):
            if not computes_as(module, base):
                return Made(module, f"its code is not that of nn.{base.__name__}", understood=False)
            return rule(module, name, options)
    if is_attention_pool(module):
        return Made(modules.AttentionPool(module, options.attn_unpool))
    if isinstance(module, KEPT) or type(module).__name__ in KEPT_NAMES:
        return Made(module)
    if isinstance(module, nn.Softmax) and name == "attend":
        return Made(module, "its attention makes constants of its weights")
    if next(module.children(), None) is not None or isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
        reason = _varying(module)
        return Made(module, reason, understood=not reason)
    return Made(module, f"there is no rule for {type(module).__name__}", understood=False)


def _varying(module: nn.Module) -> str:
    """What a module that holds others computes itself although it has no explanation mode; empty where nothing is seen.

    The names in the code of its forward are read, but not the code of what the forward calls.
    """
    if callable(getattr(module, "set_explanation_mode", None)):
        return ""
    own = [cls for cls in type(module).__mro__ if not cls.__module__.startswith("torch.nn.")]
    forwards = (function for cls in own for name, function in vars(cls).items() if "forward" in name)
    named = {name for function in forwards if isinstance(function, FunctionType) for name in function.__code__.co_names}
    called = sorted(name for name in named & FUNCTIONS if not hasattr(module, name))
    if called:
        return f"its forward calls {', '.join(called)}, which explanations do not take for a constant"
    if any(name in QKV and child is not None for name, child in module._modules.items()):
        return "it is an attention, whose weights explanations do not take for constants"
    return ""


def opaque(module: nn.Module) -> str | None:
    """Why the modules within ``module`` cannot be converted; None where they can."""
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return "its weight is not initialised yet"
    if isinstance(module, OPAQUE) or type(module).__name__ in OPAQUE_NAMES:
        return "it computes with the weights of its layers without calling them"
    return None


def computes_as(module: nn.Module, base: Any) -> bool:
    """Whether the module's code is that of ``base``, a class of PyTorch."""
    cls: Any = type(module)
    same = cls.forward is base.forward and "forward" not in vars(module)
    return same and getattr(cls, "_conv_forward", None) is getattr(base, "_conv_forward", None)


def is_attention_pool(module: nn.Module) -> bool:
    """Whether the module is the attention pool of CLIP's ResNets, or one that holds the same things."""
    parts = {"q_proj", "k_proj", "v_proj", "c_proj"} <= set(module._modules)
    return parts and "positional_embedding" in module._parameters and hasattr(module, "num_heads")


def _convolution(conv: nn.Conv2d, name: str, options: Options) -> Made:
    if name in QKV:
        return Made(conv, "it forms queries, keys or values")
    layer = BcosConv2d(
        conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation,  # type: ignore[arg-type]
        conv.groups, conv.padding_mode, device="meta", **options.layer(conv.weight),
    )  # fmt: skip
    return _holding(layer, conv, options)


def _linear(linear: nn.Linear, name: str, options: Options) -> Made:
    if name in QKV:
        return Made(linear, "it forms queries, keys or values")
    layer = BcosLinear(linear.in_features, linear.out_features, device="meta", **options.layer(linear.weight))
    return _holding(layer, linear, options)


def _holding(layer: Any, linear: nn.Module, options: Options) -> Made:
    """The layer with ``linear`` itself as its linear part, which keeps its parameters."""
    layer.linear, layer.b_rule = linear, options.learn_b
    layer.device = layer.dtype = None
    return Made(layer)


def convolution_of(linear: nn.Linear) -> nn.Conv2d:
    """The linear layer as a 1×1 convolution with the same weights."""
    weight = linear.weight
    conv = nn.Conv2d(linear.in_features, linear.out_features, 1, bias=linear.bias is not None, device="meta")
    conv.weight = nn.Parameter(weight.detach()[:, :, None, None].clone(), weight.requires_grad)
    conv.bias = linear.bias
    return conv.train(linear.training)


def _of_class(module: Any, cls: type) -> Made:
    """The norm as one of ours, which holds the same things."""
    module.__class__ = cls
    return Made(module)


def _batch_norm(norm: Any, name: str, options: Options) -> Made:
    if not options.uncentered:
        return Made(norm, "uncentered=False")
    if norm.running_mean is not None and options.bias:
        if norm.bias is None:  # a norm without γ and β subtracts its mean as well
            norm.bias = nn.Parameter(torch.zeros_like(norm.running_mean), requires_grad=False)
        std = (norm.running_var + norm.eps).sqrt()
        norm.bias.data = norm.bias.data - norm.running_mean / std * (1 if norm.weight is None else norm.weight.data)
    return _of_class(norm, modules.BatchNormUncentered2d)


def _gelu(gelu: nn.GELU, name: str, options: Options) -> Made:
    if not options.activations:
        return Made(nn.Identity(), "activations=False")
    if gelu.approximate != "none":
        return Made(gelu, f"there is no rule for a GELU with approximate={gelu.approximate!r}", understood=False)
    return Made(modules.GatedGELU())


def _relu(relu: nn.ReLU, name: str, options: Options) -> Made:
    return Made(relu) if options.activations else Made(nn.Identity(), "activations=False")


def _max_pool(pool: nn.MaxPool2d, name: str, options: Options) -> Made:
    if not options.average_pool:
        return Made(pool, "average_pool=False")
    if pool.return_indices or pool.dilation not in (1, (1, 1)):
        return Made(pool, "an average pool has neither dilation nor indices", understood=False)
    return Made(nn.AvgPool2d(pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode))


def _attention(attention: nn.MultiheadAttention, name: str, options: Options) -> Made:
    unusual = {
        "kdim or vdim": not attention._qkv_same_embed_dim,
        "add_bias_kv": attention.bias_k is not None,
        "add_zero_attn": attention.add_zero_attn,
        "dropout": attention.dropout > 0,
    }
    found = ", ".join(name for name, given in unusual.items() if given)
    if found:
        return Made(attention, f"there is no rule for an attention with {found}", understood=False)
    return Made(modules.Attention(attention))


RULES: tuple[tuple[Any, Callable[..., Made]], ...] = (
    (nn.Conv2d, _convolution),
    (nn.Linear, _linear),
    (nn.BatchNorm2d, _batch_norm),
    (nn.LayerNorm, lambda norm, name, options: _of_class(norm, modules.DetachableLayerNorm)),
    (nn.GroupNorm, lambda norm, name, options: _of_class(norm, modules.DetachableGroupNorm)),
    (nn.GELU, _gelu),
    (nn.ReLU, _relu),
    (nn.MaxPool2d, _max_pool),
    (nn.MultiheadAttention, _attention),
)

CONVERTIBLE = tuple(base for base, _ in RULES)
"""The classes for which there is a rule."""
