"""The environment variables that the library reads, each once."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["BACKEND", "CACHE", "INTERPRETED"]

BACKEND: str | None = os.environ.get("BCOS_KERNELS_BACKEND") or None
"""The backend that serves every call that names none; None leaves the choice to each call."""

CACHE = Path(
    os.path.expanduser(
        os.environ.get("BCOS_KERNELS_CACHE")
        or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "bcos_kernels", "choices.json")
    )
)
"""The file of the choices that tuning measured."""

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")
"""Whether Triton's interpreter runs its kernels on CPU tensors."""
