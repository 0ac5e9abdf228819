"""What norms, GELUs and attentions become: the same numbers, and an explanation mode.

In explanation mode a norm's variance, a GELU's gate and an attention's weights are constants, so that each module is a
linear map of its input. The state dicts are those of PyTorch's modules.

Sources: Arya et al., B-cosification, NeurIPS 2024 (arXiv 2411.00715); Böhle et al., B-cos Alignment, TPAMI 2024.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adopt import attend, gate
from ..adopt.norm import Fit, run
from ..adopt.norm_code import Variant
from ..core import _torch
from ..modules import Detachable

__all__ = [
    "Attention", "AttentionPool", "BatchNormUncentered2d", "DetachableGroupNorm", "DetachableLayerNorm",
    "DetachableLayerNorm2d", "GatedGELU",
]  # fmt: skip


class BatchNormUncentered2d(Detachable, nn.BatchNorm2d):
    """Batch norm that leaves the mean in: ``y = γ · x / √(var + ε) + β``, with the variance around the mean.

    It has the dtype of its input, under autocast as well. The running mean stays in the state dict and is not used.
    """

    kind = "norm"
    variant = Variant("batch", centered=False, ranks=(4,), vendor=False, runs=True, counts=True)
    pairs = False
    """That of :func:`bcos_kernels.accelerate`, which sets it."""

    def forward(self, input: Tensor) -> Tensor:
        """``[N, C, H, W]`` -> the same shape."""
        self._check_input_dim(input)
        fit = Fit(self.variant, frozen=self.detach, dtype=input.dtype)
        weight, bias, var = (getattr(self, name) for name in ("weight", "bias", "running_var"))
        return run(self, input, (fit, weight, bias, var), None, self.backend, self.pairs)


class _Centered(Detachable):
    """A norm of PyTorch that has a forward of its own in explanation mode alone."""

    kind = "norm"
    variant: Variant

    def _explained(self, x: Tensor) -> Tensor:
        weight, bias = (getattr(self, name) for name in ("weight", "bias"))
        return run(self, x, (Fit(self.variant, frozen=True), weight, bias, None), None, self.backend)


class DetachableLayerNorm(_Centered, nn.LayerNorm):
    """``nn.LayerNorm`` with an explanation mode."""

    variant = Variant("token", centered=True, ranks=(), vendor=True, runs=False, counts=False)

    def forward(self, input: Tensor) -> Tensor:
        """``[..., *normalized_shape]`` -> the same shape."""
        return self._explained(input) if self.detach else super().forward(input)


class DetachableLayerNorm2d(_Centered, nn.LayerNorm):
    """The layer norm over the channels of each position that ConvNeXts have, with an explanation mode."""

    variant = Variant("position", centered=True, ranks=(4,), vendor=True, runs=False, counts=False)

    def forward(self, input: Tensor) -> Tensor:
        """``[N, C, H, W]`` -> the same shape."""
        if self.detach:
            return self._explained(input)
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class DetachableGroupNorm(_Centered, nn.GroupNorm):
    """``nn.GroupNorm`` with an explanation mode."""

    variant = Variant("group", centered=True, ranks=(4,), vendor=True, runs=False, counts=False)

    def forward(self, input: Tensor) -> Tensor:
        """``[N, C, ...]`` -> the same shape."""
        return self._explained(input) if self.detach else super().forward(input)


class GatedGELU(Detachable):
    """``nn.GELU``, whose gate Φ(x) is a constant in explanation mode."""

    kind = "gate"
    variant = gate.Variant("early", held=False)

    def forward(self, input: Tensor) -> Tensor:
        """``[...]`` -> the same shape."""
        if not _torch.is_followed() and gate.is_served(input):
            return gate.run(self, input, gate.Found(self.variant, self.detach, None))
        function = gate.FUNCTIONS[self.variant.name]
        if self.detach:
            return input * function.gate(input.detach())
        return input * function.gate(input) if function.inexact(input) else function.value(input)


class Attention(Detachable):
    """``nn.MultiheadAttention`` of a sequence with itself; the attention weights are constants in explanation mode.

    Queries, keys and values are plain linear maps of the input; what becomes of the heads is the layer ``out_proj``.

    Args:
        plain: the attention to take the parameters of; its ``out_proj`` becomes this module's.
    """

    kind = "attention"

    def __init__(self, plain: nn.MultiheadAttention) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.batch_first = plain.embed_dim, plain.num_heads, plain.batch_first
        self.in_proj_weight, self.in_proj_bias = plain.in_proj_weight, plain.in_proj_bias
        self.out_proj = plain.out_proj

    def forward(self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False, **others):
        """``[N, L, embed_dim]``, or ``[L, N, embed_dim]`` without ``batch_first`` -> ``(the same shape, None)``.

        Raises:
            ValueError: query, key and value differ, the weights are asked for, or there is a mask.
        """
        if query is not key or query is not value or query.dim() != 3:
            raise ValueError("query, key and value: one and the same tensor of three dimensions is needed")
        if need_weights:
            raise ValueError("need_weights=True: False is needed, a converted attention returns no weights")
        masks = [name for name, given in others.items() if given is not None and "mask" in name]
        if masks or others.get("is_causal"):
            raise ValueError(f"{', '.join(masks) or 'is_causal'}: a converted attention has no masks")
        x = query if self.batch_first else query.transpose(0, 1)
        y = self.out_proj(self._heads(x))
        return (y if self.batch_first else y.transpose(0, 1)), None

    def _heads(self, x: Tensor) -> Tensor:
        """The weighted values of all heads, ``[N, L, embed_dim]``."""
        weight, bias, scale = self.in_proj_weight, self.in_proj_bias, (self.embed_dim // self.num_heads) ** -0.5
        if _torch.is_followed():
            qkv = F.linear(x, weight, bias).reshape(x.shape[0], x.shape[1], 3, self.num_heads, -1)
            q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()
            if self.detach:
                q, k = q.detach(), k.detach()
            return (torch.softmax(q @ k.transpose(-2, -1) * scale, -1) @ v).transpose(1, 2).flatten(2)
        if self.detach:
            first = 2 * self.embed_dim
            parts = (None, None) if bias is None else (bias[:first], bias[first:])
            with torch.no_grad():
                qk = F.linear(x, weight[:first], parts[0])
            return attend.explained(qk, F.linear(x, weight[first:], parts[1]), self.num_heads, scale)
        qkv = F.linear(x, weight, bias)
        if not (torch.is_grad_enabled() and qkv.requires_grad):
            return attend.inferred(qkv, self.num_heads, scale, qkv.dtype)
        return attend.attention(qkv, self.num_heads, scale, None, qkv.dtype)

    def extra_repr(self) -> str:
        return f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, batch_first={self.batch_first}"


class AttentionPool(Detachable):
    """The attention pool of CLIP's ResNets; the attention weights are constants in explanation mode.

    The mean of all positions attends to the positions. ``c_proj`` is a plain product there, as in the published code.
    While the attribute ``attn_unpool`` is true nothing is pooled: every position is embedded by ``v_proj`` and
    ``c_proj``, a B-cos layer then, and divided by its norm, which is a constant in explanation mode.

    Args:
        plain: CLIP's pool to take the parameters of; its ``c_proj`` is a B-cos layer already.
        attn_unpool: see above; True leaves out ``k_proj`` and ``q_proj``.
    """

    kind = "attention"

    def __init__(self, plain, attn_unpool: bool) -> None:
        super().__init__()
        self.num_heads, self.attn_unpool = plain.num_heads, attn_unpool
        self.positional_embedding = plain.positional_embedding
        if not attn_unpool:
            self.k_proj, self.q_proj = plain.k_proj, plain.q_proj
        self.v_proj, self.c_proj = plain.v_proj, plain.c_proj

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` -> ``[N, D]``; with ``attn_unpool`` ``[H·W, N, D]``, vectors of norm 1."""
        x = x.flatten(2).transpose(1, 2)
        if self.attn_unpool:
            y = self.c_proj(self.v_proj(x)).transpose(0, 1)
            norm = y.norm(dim=-1, keepdim=True)
            return y / (norm.detach() if self.detach else norm)
        x = torch.cat([x.mean(1, keepdim=True), x], 1)
        if self.positional_embedding is not None:
            x = x + self.positional_embedding.to(x.dtype)
        known = x.detach() if self.detach else x
        q, k, v = (
            layer(of).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer, of in ((self.q_proj, known[:, :1]), (self.k_proj, known), (self.v_proj, x))
        )
        y = torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, -1) @ v
        return F.linear(y.transpose(1, 2).flatten(2), self.c_proj.weight, self.c_proj.linear.bias).squeeze(1)
