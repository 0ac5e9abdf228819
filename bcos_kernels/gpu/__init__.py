"""What every op on a GPU shares: costs, timing, starting kernels, and compiling them ahead of time."""
