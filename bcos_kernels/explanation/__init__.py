"""Explanations of B-cos networks: rows of the dynamic linear map, of many images and classes at a time."""

from .explain import explain
from .modes import explanation_mode
from .result import Explanation

__all__ = ["Explanation", "explain", "explanation_mode"]
