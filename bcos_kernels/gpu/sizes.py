"""Whole numbers that grids and tiles are made of."""

from __future__ import annotations

__all__ = ["cdiv", "power_of_two"]


def cdiv(a: int, b: int) -> int:
    """a ÷ b, rounded up."""
    return -(-a // b)


def power_of_two(n: int, least: int = 1) -> int:
    """The smallest power of two that is at least ``n`` and at least ``least``."""
    return 1 << max(n - 1, least - 1, 0).bit_length()
