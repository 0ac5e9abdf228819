"""A second op, declared in a few lines, has all that the transform has; a wrong declaration fails by its name."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.autograd import grad, gradcheck, gradgradcheck

from bcos_kernels.core import autograd, call
from bcos_kernels.core.candidate import Backend, Candidate
from bcos_kernels.core.op import Op


class Inputs(NamedTuple):
    x: Tensor
    gain: Tensor | None


class Outputs(NamedTuple):
    y: Tensor
    norm: Tensor


@call.hash_kept
@dataclass(frozen=True)
class Spec(call.Spec):
    """y = gain · x · (‖x‖² + eps) for each row x."""

    eps: float = 0.0
    detach: bool = False

    saves_output = False


@dataclass(frozen=True)
class Call(call.Call):
    rows: int = 0


def reference(inputs: Inputs, spec: Spec, late=None) -> tuple[Tensor]:
    norm = inputs.x.square().sum(-1, keepdim=True) + spec.eps
    frozen = spec.detach or (late is not None and late["fixed_weights"])
    y = inputs.x * (norm.detach() if frozen else norm)
    return (y if inputs.gain is None else y * inputs.gain,)


def fake(inputs: Inputs, spec: Spec) -> Outputs:
    return Outputs(torch.empty_like(inputs.x), inputs.x.new_empty(inputs.x.shape[0], 1))


def forward(inputs: Inputs, call: Call, tile: None) -> tuple[Tensor, Tensor]:
    norm = inputs.x.square().sum(-1, keepdim=True) + call.spec.eps
    y = inputs.x * norm
    return (y if inputs.gain is None else y * inputs.gain), norm


def backward(g: Tensor, inputs: Inputs, saved: Outputs, call: Call, tile: None, frozen: bool, needs) -> tuple:
    x, gain = inputs
    scaled = g if gain is None else g * gain
    dx = scaled * saved.norm
    if not frozen:
        dx = dx + 2 * x * (scaled * x).sum(-1, keepdim=True)
    dgain = (g * x * saved.norm).sum(0) if needs[1] else None
    return dx if needs[0] else None, dgain


def declared(name: str) -> Op:
    return Op(
        name, spec=Spec, inputs=Inputs, outputs=Outputs, reference=reference, fake=fake, batches=True,
        call=lambda inputs, spec: Call(spec=spec, device=inputs.x.device.type, rows=inputs.x.shape[0]),
    )  # fmt: skip


TOY = declared("toy")
autograd.register(TOY)
TOY.add_backend(Backend("cpu", lambda call: [] if call.device == "cpu" else ["only the CPU is served"]))
TOY.add_backend(Backend("reference", lambda call: []))
TOY.add_candidate(Candidate("cpu", "kernels", forward, backward))


def toy(x: Tensor, gain: Tensor | None = None, late=None, **options) -> Tensor:
    inputs = Inputs(x, gain)
    described = TOY.call(inputs, Spec(**options))
    return autograd.apply(TOY, inputs, described, late, TOY.choose(described))[0]


@pytest.fixture
def inputs():
    return tuple(torch.randn(*shape, dtype=torch.float64).requires_grad_() for shape in ((4, 3), (3,)))


def test_the_schemas_are_made_of_the_declaration():
    schema = str(torch.ops.bcos_kernels.toy.default._schema)
    assert schema == (
        "bcos_kernels::toy(Tensor x, Tensor? gain, float eps, bool detach, str backend) -> (Tensor y, Tensor norm)"
    )
    assert "bool frozen, bool[2] needs" in str(torch.ops.bcos_kernels.toy_backward.default._schema)


def test_derivatives_of_the_first_and_second_order(inputs):
    def function(x, gain):
        return toy(x, gain, eps=0.5)

    assert gradcheck(function, inputs) and gradgradcheck(function, inputs)


@pytest.mark.parametrize("late", [False, True])
def test_both_explanation_modes(inputs, late):
    x, gain = inputs
    frozen = toy(x, gain, {"fixed_weights": True}) if late else toy(x, gain, detach=True)
    expected = gain * x.square().sum(-1, keepdim=True)
    torch.testing.assert_close(grad(frozen.sum(), x)[0], expected.expand_as(x))


def test_transforms_and_compilers_see_the_operator(inputs):
    x, gain = inputs
    many = torch.stack([x, 2 * x])
    expected = torch.stack([toy(x, gain), toy(2 * x, gain)])
    for place in (0, 1):
        torch.testing.assert_close(torch.vmap(toy, (place, None))(many.movedim(0, place), gain), expected)
    torch.testing.assert_close(torch.func.grad(lambda x: toy(x, gain).sum())(x), grad(toy(x, gain).sum(), x)[0])
    torch._dynamo.reset()
    compiled = torch.compile(toy, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(grad(compiled(x, gain).sum(), inputs), grad(toy(x, gain).sum(), inputs))
    spec = Spec().flat()
    torch.library.opcheck(torch.ops.bcos_kernels.toy.default, (x, gain, *spec, "cpu"))


def test_the_choice_explains_itself():
    elsewhere = Call(Spec(), "meta", 3)
    assert TOY.choose(elsewhere) == "reference"
    assert TOY.reasons(elsewhere) == {"cpu": ["only the CPU is served"], "reference": []}
    with pytest.raises(ValueError, match="backend='cpu' cannot serve this call: only the CPU is served"):
        TOY.choose(elsewhere, "cpu")


@pytest.mark.parametrize(
    "register, error, words",
    [
        (lambda: declared("toy"), ValueError, "op 'toy' is declared twice"),
        (lambda: TOY.add_backend(Backend("cpu", lambda call: [])), ValueError, "backend 'cpu' of op 'toy' .* twice"),
        (lambda: TOY.add_backend(Backend("tpu", None)), TypeError, "backend 'tpu' of op 'toy' has no why_not"),
        (
            lambda: TOY.add_candidate(Candidate("cpu", "kernels", forward, backward)),
            ValueError,
            "candidate cpu kernels of op 'toy' is registered twice",
        ),
        (
            lambda: TOY.add_candidate(Candidate("tpu", "kernels", forward, backward)),
            ValueError,
            "candidate tpu kernels of op 'toy': backend 'tpu' is not registered",
        ),
    ],
)
def test_wrong_registrations_fail_at_once(register, error, words):
    with pytest.raises(error, match=words):
        register()


def test_a_candidate_that_is_added_later_is_known_at_once():
    """Also to calls that were made before: what served them must not serve those that now have a choice."""
    op = declared("growing")
    op.add_backend(Backend("cpu", lambda call: []))
    assert op.candidates_of("cpu") == () and op.without_choice("cpu") is None
    call, served = SimpleNamespace(spec=Spec(), dtype=torch.float32), []
    for name in ("first", "second"):
        op.add_candidate(Candidate("cpu", name, forward, backward))
        assert op.candidates_of("cpu") == tuple(op.candidates)
        assert op.without_choice("cpu") is (op.candidates[0] if name == "first" else None)
        served.append(autograd.kernels_of(op, call, "cpu"))
    assert served[0] is not served[1]


def test_copies_and_pickles_hold_the_options_alone():
    """Another process has other hashes."""
    spec = Spec(0.25)
    hash(spec)
    for other in (copy.copy(spec), pickle.loads(pickle.dumps(spec))):
        assert other == spec and vars(other) == {"eps": 0.25, "detach": False}


def test_an_option_that_no_schema_holds_is_named():
    @dataclass(frozen=True)
    class Odd(call.Spec):
        names: dict[str, int] | None = None

    with pytest.raises(TypeError, match=r"Odd has options that no schema can hold: names: dict\[str, int\]"):
        Odd.schema()
