"""``python -m bcos_kernels``: see :mod:`bcos_kernels.cli`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
