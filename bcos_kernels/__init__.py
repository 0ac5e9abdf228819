"""B-cos layers at the price of plain ones: fused kernels of the B-cos transform (Böhle et al., CVPR 2022)."""

from . import functional
from .adopt import accelerate, report, restore
from .modules import BcosConv2d, BcosConv2dWithScale, BcosLinear
from .tune import tune

__version__ = "0.1.0"
__all__ = ["BcosConv2d", "BcosConv2dWithScale", "BcosLinear", "accelerate", "functional", "report", "restore", "tune"]
