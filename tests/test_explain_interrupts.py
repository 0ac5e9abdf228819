"""The explanation modes are brought back after an interrupt (Ctrl+C), wherever it comes."""

import gc
import sys

import pytest
from test_explain import made

from bcos_kernels.explanation import explanation_mode


def modes(model):
    own = [vars(module) for module in model.modules()]
    return [(values.get("detach"), dict(values.get("state", {}))) for values in own]


def entered(model, interrupt_at=None):
    """Enters and leaves the mode; the number of calls on the way, at one of which an interrupt is raised.

    Python looks for signals where a function starts and where one has returned.
    """
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        if event in ("call", "c_return"):
            calls += 1
            if calls == interrupt_at:
                raise KeyboardInterrupt

    sys.setprofile(count)
    try:
        with explanation_mode(model):
            pass
    except KeyboardInterrupt:
        pass
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize("name", ["bcos", "ours", "first version", "model guidance"])
def test_the_modes_come_back_wherever_an_interrupt_comes(name):
    model = made(name)
    before = modes(model)
    for call in range(1, entered(model) + 1):
        entered(model, call)
        gc.collect(0)  # an interrupt between a generator and its caller ends it when it is freed
        assert modes(model) == before, f"call {call}"
    with explanation_mode(model):
        assert modes(model) != before
    assert modes(model) == before
