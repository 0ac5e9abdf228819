"""B-cosification: a pretrained network becomes a B-cos network that can be fine-tuned."""

from .convert import convert
from .fold import fold
from .inputs import AddInverse
from .network import BcosNetwork
from .report import Report, Row

__all__ = ["AddInverse", "BcosNetwork", "Report", "Row", "convert", "fold"]
