"""B-cos layers at the price of plain ones: fused kernels for the B-cos transform (Böhle et al., CVPR 2022)."""

import importlib

from . import functional
from .modules import BcosConv2d, BcosConv2dWithScale, BcosLinear

__version__ = "0.1.0"
__all__ = [
    "AddInverse", "BcosConv2d", "BcosConv2dWithScale", "BcosLinear", "accelerate", "convert", "functional", "report",
    "restore", "tune",
]  # fmt: skip

_LATER = {"accelerate": "adopt", "report": "adopt", "restore": "adopt", "tune": "tuning"}
_LATER |= {"AddInverse": "conversion", "convert": "conversion"}
"""Where the functions are that are imported when they are first used."""


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def __getattr__(name: str):
    """Imports the part of the package in which a function is, when it is first used."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    part = importlib.import_module(f".{_LATER[name]}", __name__)
    return globals().setdefault(name, getattr(part, name))
