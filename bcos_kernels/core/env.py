"""The environment variables that the library reads; each is read once, at import."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["BACKEND", "CACHE", "INTERPRETED", "NO_TF32", "PLANS"]

BACKEND: str | None = os.environ.get("BCOS_KERNELS_BACKEND") or None
"""The backend of every call whose ``backend`` is None; None lets each call choose."""

CACHE = Path(
    os.path.expanduser(
        os.environ.get("BCOS_KERNELS_CACHE")
        or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "bcos_kernels", "choices.json")
    )
)
"""The file in which ``tune`` stores its choices."""

PLANS = CACHE.with_name("plans")
"""The folder in which the plans that cuDNN compiled are kept, beside that file."""

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")
"""Whether Triton's interpreter runs the Triton kernels, on CPU tensors."""

NO_TF32 = os.environ.get("NVIDIA_TF32_OVERRIDE") == "0"
"""Whether NVIDIA's libraries are told to use no tf32, whatever torch allows; our kernels then use none either."""
