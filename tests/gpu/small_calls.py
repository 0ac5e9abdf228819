"""A small set of calls for compute-sanitizer: every own kernel, on partial tiles and several steps of each loop.

``BCOS_KERNELS_BACKEND`` says whose.
"""

import torch

from bcos_kernels.backends.gpu.choice import forced
from bcos_kernels.functional import bcos_conv2d, bcos_linear

CALLS = [
    (bcos_conv2d, (2, 80, 9, 7), (72, 80, 3, 3), {"padding": 1}),
    (bcos_conv2d, (2, 200, 7, 7), (72, 200, 1, 1), {}),
    (bcos_conv2d, (1, 6, 23, 23), (24, 6, 7, 7), {"stride": 2, "padding": 3}),
    (bcos_conv2d, (1, 32, 9, 9), (32, 4, 3, 3), {"padding": 1, "groups": 8, "b": 1.5}),
    (bcos_conv2d, (1, 40, 9, 9), (40, 1, 7, 7), {"padding": 3, "groups": 40}),
    (bcos_conv2d, (1, 40, 9, 9), (48, 40, 3, 3), {"padding": 1, "max_out": 2, "stride": 2}),
    (bcos_linear, (70, 200), (72, 200), {}),
]


def main() -> None:
    for candidate in ("one-pass", "semi"):
        for dtype in (torch.bfloat16, torch.float32):
            for layer, shape, filters, options in CALLS:
                x = torch.randn(shape).to("cuda", dtype)
                x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
                x, weight = x.requires_grad_(), torch.randn(filters).to("cuda", dtype).requires_grad_()
                with forced(candidate):
                    y = layer(x, weight, **options)
                    results = (y, *torch.autograd.grad(y, (x, weight), torch.ones_like(y)))
                assert all(t.isfinite().all().item() for t in results), (candidate, dtype, shape)


if __name__ == "__main__":
    main()
