"""The positions of a window's taps, and the sum over all windows that contain a pixel."""

import triton
import triton.language as tl


@triton.jit
def output_site(image, h, w, i, j, OH, OW, SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
                DH: tl.constexpr, DW: tl.constexpr):  # fmt: skip
    """The output pixel that reads input pixel (h, w) through tap (i, j), and whether there is one."""
    top = h + PH - i * DH
    left = w + PW - j * DW
    oh = top // SH
    ow = left // SW
    reads = (top >= 0) & (left >= 0) & (top == oh * SH) & (left == ow * SW) & (oh < OH) & (ow < OW)
    return (image * OH + oh) * OW + ow, reads


@triton.jit
def pooled_norm_gradient(
    t_ptr, image, h, w, group, inside, OH, OW, G: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
):  # fmt: skip
    """poolᵀ(t) at input pixels (h, w): the sum of t [N, OH, OW, G] over the outputs that read them."""
    pooled = tl.zeros(inside.shape, t_ptr.dtype.element_ty)
    for tap in range(KH * KW):
        site, reads = output_site(image, h, w, tap // KW, tap % KW, OH, OW, SH, SW, PH, PW, DH, DW)
        pooled += tl.load(t_ptr + site * G + group, mask=inside & reads, other=0.0)
    return pooled
