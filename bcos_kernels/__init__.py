"""B-cos layers at the price of plain ones: fused kernels of the B-cos transform (Böhle et al., CVPR 2022)."""

from . import functional
from .modules import BcosConv2d, BcosConv2dWithScale, BcosLinear

__version__ = "0.1.0"
__all__ = ["BcosConv2d", "BcosConv2dWithScale", "BcosLinear", "accelerate", "functional", "report", "restore", "tune"]


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def __getattr__(name: str):
    """What reads people's models, and what tunes, is imported when it is first used."""
    if name not in ("accelerate", "report", "restore", "tune"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import adopt, tuning

    return globals().setdefault(name, getattr(tuning if name == "tune" else adopt, name))
