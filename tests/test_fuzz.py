"""Hypothesis draws what nn.Conv2d and nn.Linear accept: every backend agrees with the naive formula."""

import pytest
import torch
from cases import BACKENDS, Case, error
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.autograd import grad

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("several_threads")]

size, pair = st.integers(1, 9), st.tuples(st.integers(1, 3), st.integers(1, 3))
exponents = st.sampled_from([1, 1.1, 1.25, 1.5, 2, 2.5, 3])


@st.composite
def convolutions(draw):
    kernel, stride, dilation = draw(st.tuples(st.integers(1, 4), st.integers(1, 4))), draw(pair), draw(pair)
    padding = draw(st.tuples(st.integers(0, 4), st.integers(0, 4)))
    image = [
        draw(st.integers(max(1, d * (k - 1) + 1 - 2 * p), 11 + d * (k - 1)))
        for k, d, p in zip(kernel, dilation, padding, strict=True)
    ]
    groups, max_out = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    per_group, outputs = draw(st.integers(1, 18)), draw(st.integers(1, 9))
    options = {
        "stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "b": draw(exponents),
        "max_out": max_out, "normalize_weights": draw(st.booleans()), "detach": draw(st.booleans()),
    }  # fmt: skip
    x = (draw(st.integers(1, 3)), groups * per_group, *image)
    return Case("drawn", x, (groups * outputs * max_out, per_group, *kernel), options, draw(st.booleans()))


@st.composite
def linears(draw):
    max_out = draw(st.integers(1, 3))
    features, outputs = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    shape = (*draw(st.lists(size, max_size=3)), features)
    options = {
        "b": draw(exponents),
        "max_out": max_out,
        "normalize_weights": draw(st.booleans()),
        "detach": draw(st.booleans()),
    }
    return Case("drawn", shape, (outputs * max_out, features), options, draw(st.booleans()))


OF_ONE_VALUE = {"b": 3, "max_out": 1, "normalize_weights": True, "detach": True}


@settings(max_examples=300, deadline=None)
@example(Case("drawn", (6, 6, 9, 1), (18, 1), OF_ONE_VALUE, True), True, 6)
@given(case=st.one_of(convolutions(), linears()), channels_last=st.booleans(), seed=st.integers(0, 10**6))
def test_drawn_layers(case, channels_last, seed):
    inputs = case.inputs(torch.float64, seed, channels_last)
    tensors = [t for t in inputs if t is not None]
    exact = case.naive(*inputs)
    upward = torch.randn_like(exact)
    exact_grads = grad(exact, tensors, upward)
    if any(not torch.isfinite(g).all() for g in exact_grads):
        return  # a patch of padding alone: the naive formula divides by zero there
    x, weight = (t.detach() for t in tensors[:2])
    # the gradient of a filter of one entry is 0 by cancellation of terms of this size
    terms = float((exact_grads[0] * x).abs().sum() / weight.abs().min()) if weight[0].numel() == 1 else 0.0
    floors = [max(1e-3, terms) if i == 1 else 1e-3 for i in range(len(tensors))]
    for backend in BACKENDS:
        y = case(*inputs, backend=backend)
        assert error(y, exact) < 1e-12
        for mine, yours, floor in zip(grad(y, tensors, upward), exact_grads, floors, strict=True):
            assert error(mine, yours, floor) < 1e-9
