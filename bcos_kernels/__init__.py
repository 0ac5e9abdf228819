"""B-cos layers at the price of plain ones: fused kernels for the B-cos transform (Böhle et al., CVPR 2022)."""

import importlib
from typing import TYPE_CHECKING

from . import functional
from .coda import DAUConv2d
from .modules import BcosConv1d, BcosConv2d, BcosConv2dWithScale, BcosConv3d, BcosLinear

__version__ = "0.1.0"
__all__ = [
    "AddInverse", "BcosConv1d", "BcosConv2d", "BcosConv2dWithScale", "BcosConv3d", "BcosLinear", "DAUConv2d",
    "accelerate", "convert", "explain", "fold", "functional", "metrics", "report", "restore", "tune",
]  # fmt: skip

_LATER = {
    "AddInverse": "conversion", "accelerate": "adopt", "convert": "conversion", "explain": "explanation",
    "fold": "conversion", "metrics": "metrics", "report": "adopt", "restore": "adopt", "tune": "tuning",
}  # fmt: skip
"""What is imported when it is first used -> the module that holds it, or is it."""


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


if TYPE_CHECKING:  # editors and type checkers see the same at once
    from . import metrics
    from .adopt.accelerate import accelerate, restore
    from .adopt.report import report
    from .conversion.convert import convert
    from .conversion.fold import fold
    from .conversion.inputs import AddInverse
    from .explanation.explain import explain
    from .tuning import tune
else:

    def __getattr__(name: str):
        """Imports the module of a public name when the name is first used."""
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = importlib.import_module(f".{_LATER[name]}", __name__)
        return globals().setdefault(name, module if name == _LATER[name] else getattr(module, name))
