from ..core import extension

_C, _ = extension.load()


def flat(spec):
    g = () if spec.is_linear else (spec.stride, spec.padding, spec.dilation, spec.groups)
    return (*g, spec.max_out, spec.b or 0.0, spec.unit, *spec.norm_eps, spec.cos_eps, spec.exact_two)


def forward(x, w, bias, b, spec):
    return (_C.linear if spec.is_linear else _C.conv2d)(x, w, bias, b, *flat(spec), spec.out_dtype)


def backward(grad, x, w, b, y, n, l, win, spec, frozen, needs):
    return (_C.linear_backward if spec.is_linear else _C.conv2d_backward)(
        grad, x, w, b, y, n, l, win, *flat(spec), frozen, needs
    )
