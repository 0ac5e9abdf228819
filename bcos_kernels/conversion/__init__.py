"""Networks made of networks: ``convert`` makes a B-cos network of a plain one, ``fold`` one for evaluation alone."""

from .convert import convert
from .fold import fold
from .inputs import AddInverse
from .network import BcosNetwork
from .report import Report, Row

__all__ = ["AddInverse", "BcosNetwork", "Report", "Row", "convert", "fold"]
