"""B-cos layers at the price of plain ones: fused kernels of the B-cos transform (Böhle et al., CVPR 2022)."""

from . import functional
from .modules import BcosConv2d, BcosConv2dWithScale, BcosLinear
from .tune import tune

__version__ = "0.1.0"
__all__ = ["BcosConv2d", "BcosConv2dWithScale", "BcosLinear", "accelerate", "functional", "report", "restore", "tune"]


def __getattr__(name: str):
    """``accelerate``, ``report`` and ``restore``: what reads people's models is imported when it is first used."""
    if name not in ("accelerate", "report", "restore"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import adopt

    return globals().setdefault(name, getattr(adopt, name))
