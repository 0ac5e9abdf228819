"""What the fused layers cost beside plain ones and beside the reference: see :mod:`bcos_kernels.cli.bench`."""
