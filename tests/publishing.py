"""Makes the stand-ins of a test published code, beside that which the table has, and compares what modules compute."""

from functools import cache

import pytest
import torch

from bcos_kernels.adopt import fingerprint, published

MODES = {"off": (False, False), "early": (True, True), "late": (False, True), "entered, then left": (True, False)}
"""Whether the explanation mode is on in the forward and in the backward."""


@cache
def digest(kind, roots=("forward",)):
    """What the code of a class is published as, before a test changes any of it."""
    return fingerprint.of(kind.__mro__, roots).digest


def publish(monkeypatch, rows):
    """``rows`` are the section, the class and the formula, and the methods that are read, where forward is not all."""
    table = {section: dict(known) for section, known in published._table().items()}
    for section, kind, formula, *roots in rows:
        table[section][digest(kind, *roots)] = {"formula": formula}
    monkeypatch.setattr(published, "_table", lambda: table)
    monkeypatch.setattr(published, "CODES", {})


def explain(module, on):
    """Turns the explanation mode of a module and of its parts on or off, in whichever form they have it."""
    for part in module.modules():
        if hasattr(part, "set_explanation_mode"):
            part.set_explanation_mode(on)
        elif "detach" in vars(part):
            part.detach = on


def outcome(module, x, early=False, late=False, second=True):
    """Output, gradients of two orders, buffers; the mode is ``early`` in the forward and ``late`` in the backward."""
    x, parameters = x.clone().requires_grad_(), list(module.parameters())
    explain(module, early)
    y = module(x)
    explain(module, late)
    cotangent = torch.cos(torch.arange(y.numel(), dtype=torch.float64)).view(y.shape).to(y.dtype)
    first = torch.autograd.grad(y, [x, *parameters], cotangent, create_graph=second)
    explain(module, False)
    found = {"y": y, "dx": first[0], **{f"d{i}": g for i, g in enumerate(first[1:])}}
    if second:
        loss = y.square().sum() + sum(g.square().sum() for g in first if g.requires_grad)
        both = torch.autograd.grad(loss, [x, *parameters], allow_unused=True)
        found |= {f"second {i}": g for i, g in enumerate(both) if g is not None}
    return {k: v.detach() for k, v in found.items()} | {k: v.clone() for k, v in module.named_buffers()}


def guided(module, x, weight):
    """Model guidance: forward outside of the mode, gradient inside, and a loss on it differentiated outside."""
    x = x.clone().requires_grad_()
    y = module(x)
    explain(module, True)
    (explanation,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    explain(module, False)
    (y.sum() + explanation.square().sum()).backward()
    return {"explanation": explanation.detach(), "dw": weight.grad, "dx": x.grad}


def same(ours, theirs, tolerance):
    """Two outcomes agree, up to a share of each tensor's length."""
    assert ours.keys() == theirs.keys()
    for name, truth in theirs.items():
        assert ours[name].shape == truth.shape and ours[name].dtype == truth.dtype, name
        assert (ours[name].double() - truth.double()).norm() <= tolerance * (1 + truth.double().norm()), name


def agree(ours, theirs):
    """Whether two outcomes are the same, apart from rounding."""
    return ours.keys() == theirs.keys() and all(
        ours[key].dtype == truth.dtype and torch.allclose(ours[key], truth, rtol=1e-10, atol=1e-12, equal_nan=True)
        for key, truth in theirs.items()
    )


def same_or_raised(ours, theirs, agree=agree):
    """The results of two functions ``agree``, or both raise an error of the same class."""
    try:
        expected = theirs()
    except Exception as error:
        with pytest.raises(type(error)):
            ours()
    else:
        assert agree(ours(), expected)
