"""Where the Triton kernels run in these tests."""

from bcos_kernels.backends.triton import INTERPRETED

DEVICE = "cpu" if INTERPRETED else "cuda"
