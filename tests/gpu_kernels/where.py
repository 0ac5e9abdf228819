"""Where the GPU kernels run in these tests, and which: on a GPU all; without one a stand-in runs those of one backend.

``TRITON_INTERPRET=1``: Triton's kernels in its interpreter. ``BCOS_TEST_EMULATED=FILE``: the CUDA kernels and their
glue to torch, compiled against the emulation of a thread block (``tests/emulated.py``). ``BCOS_TEST_CUDNN=FILE``: the
stand-in for cuDNN that runs the candidate graph there (``tests/cudnn``).
"""

import ctypes
import os
from importlib.util import module_from_spec, spec_from_file_location

import torch

from bcos_kernels.core.env import INTERPRETED
from bcos_kernels.gpu import cuda
from bcos_kernels.transform import TRANSFORM

EMULATED = os.environ.get("BCOS_TEST_EMULATED")
STANDS_IN = bool(EMULATED) or INTERPRETED
DEVICE = "cpu" if STANDS_IN else "cuda"
BACKENDS = (
    ("cuda",) if EMULATED else ("triton",) if INTERPRETED else ("cuda", "triton") if torch.cuda.is_available() else ()
)
_NAMES = tuple(dict.fromkeys(c.name for c in TRANSFORM.candidates_of(",".join(BACKENDS or ("cuda", "triton")))))
SAMPLED = tuple(name for name in _NAMES if name.startswith("sampled-"))
"""The candidates that serve 1×1 convolutions with a stride alone."""
CANDIDATES = tuple(name for name in _NAMES if name not in SAMPLED)
OF_EVERY_KIND = tuple(name for name in CANDIDATES if not (name.startswith("tma") and STANDS_IN))
"""Without tma in a stand-in: it serves none of the shapes that the others share, so that one of these would serve them
once more. Its own are in ``test_kernels_tma.py``."""
if INTERPRETED:
    import interpreter  # noqa: F401


def load_cudnn() -> ctypes.CDLL:
    """The stand-in for cuDNN; ``mock_set`` and ``mock_calls`` are its own functions."""
    library = ctypes.CDLL(os.environ["BCOS_TEST_CUDNN"])
    library.mock_set.argtypes, library.mock_calls.restype = (ctypes.c_char_p, ctypes.c_int64), ctypes.c_int64
    return library


def load_emulated() -> None:
    """Makes the kernels of BCOS_TEST_EMULATED the CUDA backend's, where it is set."""
    if EMULATED:
        load_cudnn()  # found by its name afterwards, as that which torch has loaded
        spec = spec_from_file_location("emulated", EMULATED)
        cuda.kernels, cuda.device = module_from_spec(spec), DEVICE
        spec.loader.exec_module(cuda.kernels)
