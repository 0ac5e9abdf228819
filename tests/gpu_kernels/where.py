"""Where the GPU kernels run in these tests, and which: on a GPU all; without one a stand-in runs those of one backend.

``TRITON_INTERPRET=1``: Triton's kernels in its interpreter. ``BCOS_TEST_EMULATED=FILE``: the CUDA kernels and their
glue to torch, compiled against the emulation of a thread block (``tests/emulated.py``).
"""

import os
from importlib.util import module_from_spec, spec_from_file_location

import torch

from bcos_kernels.core.env import INTERPRETED
from bcos_kernels.transform import cuda

EMULATED = os.environ.get("BCOS_TEST_EMULATED")
STANDS_IN = bool(EMULATED) or INTERPRETED
DEVICE = "cpu" if STANDS_IN else "cuda"
BACKENDS = (
    ("cuda",) if EMULATED else ("triton",) if INTERPRETED else ("cuda", "triton") if torch.cuda.is_available() else ()
)
if EMULATED:
    spec = spec_from_file_location("emulated", EMULATED)
    cuda.kernels, cuda._device = module_from_spec(spec), DEVICE
    spec.loader.exec_module(cuda.kernels)
