"""What all ops on a GPU share: predicting costs, timing, starting kernels, and compiling them ahead of time."""
