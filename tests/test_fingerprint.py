"""The fingerprint of a class: what counts, what does not, and what cannot be told."""

import inspect
import linecache
import math
import re
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bcos_kernels as bk
from bcos_kernels.adopt import fingerprint, published
from bcos_kernels.compat import import_reference
from benchmarks import fingerprints

M = import_reference().modules


def fingerprint_of(source, **names):
    """The fingerprint of the class ``Layer`` in a source text that is kept where ``inspect`` finds it."""
    name = f"<layer {hash(source)}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    scope = {"__name__": "somewhere", "nn": nn, "F": F, "torch": torch, **names}
    exec(compile(source, name, "exec"), scope)
    return fingerprint.of(scope["Layer"].__mro__)


SOURCE = """
class Layer(nn.Module):
    def forward(self, x):
        return self.norms(x) * F.relu(x)
    def norms(self, x):
        return x * self.gain
"""


def test_comments_docstrings_annotations_and_formatting_do_not_count():
    other = '''
class Layer(nn.Module):
    """A layer."""

    def norms(
        self, x: "Tensor"
    ) -> "Tensor":  # formed twice
        """Norms."""
        return x * self.gain

    def forward(self, x: "torch.Tensor") -> "torch.Tensor":

        return (self.norms(x)
                * F.relu(x))
'''
    assert fingerprint_of(SOURCE).digest == fingerprint_of(other).digest
    assert fingerprint_of(SOURCE).reads == {"gain"}


@pytest.mark.parametrize(
    "old, new",
    [("* F.relu(x)", "* F.relu(x) * 1"), ("x * self.gain", "x + self.gain"), ("relu", "gelu"), ("gain", "loss")],
)
def test_the_code_counts(old, new):
    assert fingerprint_of(SOURCE).digest != fingerprint_of(SOURCE.replace(old, new)).digest


def test_what_a_global_name_stands_for_counts():
    assert fingerprint_of(SOURCE, F=math).digest != fingerprint_of(SOURCE).digest
    with pytest.raises(fingerprint.Unreadable, match="F, which is not the imported module my_functional"):
        fingerprint_of(SOURCE, F=types.ModuleType("my_functional"))
    helped = SOURCE.replace("F.relu(x)", "helper(x)")
    one = fingerprint_of("def helper(x):\n    return x + 1\n" + helped)
    assert one.digest != fingerprint_of("def helper(x):\n    return x + 2\n" + helped).digest


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda s: s.replace("    def norms", "    norms = lambda self, x: x\n    def unused"),
            "norms is not a plain function",
        ),
        (
            lambda s: "import functools\n" + s.replace("    def norms", "    @functools.cache\n    def norms"),
            "norms is of type _lru",
        ),
        (lambda s: s.replace("F.relu(x)", "missing(x)"), "uses missing, which is not defined"),
    ],
)
def test_code_that_cannot_be_told_is_refused(change, message):
    with pytest.raises(fingerprint.Unreadable, match=message):
        fingerprint_of(change(SOURCE))


def test_a_decorated_method_is_its_wrapper():
    wrapped = """
import functools
def twice(f):
    @functools.wraps(f)
    def wrapper(self, x):
        return 2 * f(self, x)
    return wrapper
""" + SOURCE.replace("    def norms", "    @twice\n    def norms")
    with pytest.raises(fingerprint.Unreadable, match="uses f from an enclosing function"):
        fingerprint_of(wrapped)


def test_code_without_its_source_is_refused():
    scope = {"__name__": "somewhere", "nn": nn, "F": F}
    exec(SOURCE, scope)
    with pytest.raises(fingerprint.Unreadable, match="cannot be read"):
        fingerprint.of(scope["Layer"].__mro__)


def test_a_file_edited_after_its_import_is_not_believed(tmp_path, monkeypatch):
    """The file holds published code by now; what runs is what it held before."""
    source = inspect.getsource(inspect.getmodule(M.BcosLinear)).replace("from .common", "from bcos.modules.common")
    path = tmp_path / "edited_layer.py"
    path.write_text(source.replace("/ norm", "/ norm / 2"))
    monkeypatch.syspath_prepend(tmp_path)
    import edited_layer

    path.write_text(source)
    assert "runs other code than its source file holds" in bk.report(edited_layer.BcosLinear(6, 4)).rows[0].reason


@pytest.mark.parametrize("value", [torch.tensor(1.0), nn.Linear(1, 1), types.SimpleNamespace])
def test_a_global_value_that_has_no_text_is_refused(value):
    """A tensor's class is torch's, but its value is somebody's; of a class only its use by autograd is read."""
    with pytest.raises(fingerprint.Unreadable, match=r"uses the global helper|uses the class"):
        fingerprint_of(SOURCE.replace("F.relu(x)", "x + helper"), helper=value)


class Named(M.BcosLinear):
    def forward(self, in_tensor):
        return 2 * super(Named, self).forward(in_tensor)  # noqa: UP008


def test_code_that_names_itself_has_an_end():
    """The old form of ``super()`` names the class within its own code, and a function may call itself."""
    with pytest.warns(UserWarning, match="Named.forward names Named, of which it is itself a part"):
        layer = bk.accelerate(Named(6, 4))
    x = torch.randn(3, 6)
    assert torch.equal(layer(x), 2 * M.BcosLinear.forward(layer, x))
    with pytest.raises(fingerprint.Unreadable, match="helper names helper"):
        fingerprint_of("def helper(x):\n    return helper(x[1:])\n" + SOURCE.replace("F.relu(x)", "helper(x)"))
    one, other = (f"def {a}(x):\n    return {b}(x[1:])\n" for a, b in (("one", "other"), ("other", "one")))
    with pytest.raises(fingerprint.Unreadable, match="other names one"):
        fingerprint_of(one + other + SOURCE.replace("F.relu(x)", "one(x)"))


def test_super_looks_behind_the_class_within_which_a_method_was_written():
    borrowed = """
class Base(nn.Module):
    def forward(self, x):
        return x
class Other(Base):
    def forward(self, x):
        return super().forward(x)
class Layer(Base):
    forward = Other.forward
"""
    with pytest.raises(fingerprint.Unreadable, match="belongs to another class"):
        fingerprint_of(borrowed)


LAYERS = """
from torch import nn
from bcos.modules import BcosConv2d as Known

class BcosConv2d(Known):
    pass

class BcosLinear(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)

class BcosConv3d(nn.Module):
    def forward(self, x):
        return missing(x)
"""


def test_a_look_at_a_folder_tells_what_is_known_of_it(tmp_path, capfd):
    (tmp_path / "layers.py").write_text(LAYERS)
    (tmp_path / "broken.py").write_text("class BcosLinear(:")
    before = published.TABLE.read_text()
    assert fingerprints.main(["--look", str(tmp_path)]) == 0
    told = capfd.readouterr()
    assert re.fullmatch(rf"{tmp_path.name}: 2 of 3 are known, BcosLinear [0-9a-f]{{16}}", told.out.strip())
    assert "broken.py: SyntaxError" in told.err and "BcosConv3d.forward uses missing" in told.err
    assert published.TABLE.read_text() == before
