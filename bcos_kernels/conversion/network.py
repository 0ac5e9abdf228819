"""A converted network: the normalisation of its input, the converted model and the bias of its logits."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..explanation import explain, explanation_mode
from .inputs import LogitBias, Normalize
from .report import Report

__all__ = ["BcosNetwork"]


class BcosNetwork(nn.Module):
    """What :func:`bcos_kernels.convert` returns: images ``[N, 6, H, W]`` with values in [0, 1] -> logits.

    The state dict has the keys of B-cosification's models: ``model.`` before the names of the plain model, and
    ``linear.weight`` for the weight of a layer.

    Args:
        normalize: what the six channels pass first: ``(images - mean) / std``.
        model: the converted model.
        logit_layer: what adds the bias of the logits, or None.
        report: what became of the modules.
    """

    def __init__(self, normalize: Normalize, model: nn.Module, logit_layer: LogitBias | None, report: Report) -> None:
        super().__init__()
        self.normalize = normalize
        self.model = model
        self.logit_layer = logit_layer
        self.report = report
        """What was converted, and what was left as it is."""

    def forward(self, images: Tensor) -> Tensor:
        """Images ``[N, 6, H, W]`` with values in [0, 1] -> what the plain model returns, with the logits' bias."""
        y = self.model(self.normalize(images))
        return y if self.logit_layer is None else self.logit_layer(y)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        """Takes state dicts of B-cosification as well, whose code numbers the modules of every ``nn.Sequential``."""
        for name, module in self.model.named_modules(prefix=f"{prefix}model"):
            if isinstance(module, nn.Sequential):
                _by_name(state_dict, f"{name}.", list(module._modules))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def explanation_mode(self):
        """A context in which the network is in explanation mode."""
        return explanation_mode(self)

    def explain(self, image: Tensor, idx: int | None = None) -> dict[str, Any]:
        """The explanation of one logit of one image, under the names of ``bcos.common.BcosUtilMixin.explain``.

        Args:
            image: ``[1, 6, H, W]`` with values in [0, 1].
            idx: the class to explain; None explains the predicted one.

        Returns:
            ``prediction`` and ``explained_class_idx``, classes; ``dynamic_linear_weights`` ``[1, 6, H, W]``, the
            logit's row of the network's dynamic linear map; ``contribution_map`` ``[1, H, W]``, the sum over the
            channels of the weights times the image; ``explanation`` ``[H, W, 4]``, its picture as a NumPy array.

        Raises:
            ValueError: the network is in training mode, ``image`` has another shape, or ``idx`` is out of range.
        """
        if image.dim() != 4 or len(image) != 1:
            raise ValueError(f"image has shape {tuple(image.shape)}: [1, 6, H, W] is needed; explain takes several")
        found = explain(self, image, idx)
        assert found.weights is not None
        return {
            "prediction": int(found.logits.argmax()),
            "explained_class_idx": int(found.targets),
            "dynamic_linear_weights": found.weights[0],
            "contribution_map": found.contributions[0],
            "explanation": found.rgba()[0, 0].numpy(force=True),
        }


def _by_name(state_dict: dict, prefix: str, names: list[str]) -> None:
    """Renames entries of an ``nn.Sequential`` by the modules' numbers to entries by their names, where they need it."""
    keys = [key for key in state_dict if key.startswith(prefix)]
    held = {key[len(prefix) :].partition(".")[0] for key in keys}
    if held <= set(names) or not all(name.isdecimal() and int(name) < len(names) for name in held):
        return
    entries = {key: state_dict.pop(key) for key in keys}
    for key, value in entries.items():
        number, dot, rest = key[len(prefix) :].partition(".")
        state_dict[f"{prefix}{names[int(number)]}{dot}{rest}"] = value
