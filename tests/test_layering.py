"""The house rule of the Python code: imports lead down the floors, also by strings; no cycle, and no long file."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from graphs import cycles

import bcos_kernels

ROOT = Path(bcos_kernels.__file__).parent
FLOORS = [
    "__main__", "cli", "metrics", "conversion", "explanation", "tuning", "adopt", "coda", "modules", "functional", "op",
    "gpu", "core",
    "compat", "text", "tally",
]  # fmt: skip
"""From the attic down: a module imports from lower floors and from its own."""

OPS = ("transform", "norm", "dynamic_alignment")
"""The folders on the floor ``op``; none knows another."""

CORE = [
    "autograd", "pairs", "kernels", "plans", "op", "choice", "tuned", "call", "extension", "dispatch", "half",
    "candidate", "device", "checks",
]  # fmt: skip
"""Within ``core``, as above; below them ``_torch``, ``env`` and ``formats``."""


def modules() -> dict[str, Path]:
    """Module -> its file; a package is called by its own name."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(module: str, source: str) -> set[str]:
    """The modules of this package that a module imports anywhere, also within functions and by strings."""
    package = module if MODULES.get(module, Path()).name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            stem = ".".join(filter(None, (base, node.module)))
            # a name that is not a module stands in one
            names = [name if (name := f"{stem}.{a.name}") in MODULES or name == C else stem for a in node.names]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "import_module":
            names = [a.value for a in node.args[:1] if isinstance(a, ast.Constant)]
            names = [f"{package}{name}" if name.startswith(".") else name for name in names]
        else:
            continue
        found.update(name for name in names if name.partition(".")[0] == "bcos_kernels")
    return found - {module, C}


C = "bcos_kernels._C"
"""The compiled extension."""


def floor(module: str) -> tuple[int, int]:
    """The floor of a module, and that within ``core``; higher numbers are lower floors."""
    _, top, *rest = (*module.split("."), "")
    inner = CORE.index(rest[0]) if top == "core" and rest[0] in CORE else len(CORE)
    return FLOORS.index("op" if top in OPS else top), inner


def violations(graph: dict[str, set[str]]) -> list[str]:
    """What in the graph of imports breaks the rule, one sentence each."""
    found = []
    for module, names in graph.items():
        for name in sorted(names):
            if name not in MODULES:
                found.append(f"{module} imports {name}, which is not there")
            elif name == "bcos_kernels":
                continue  # its version alone; the package imports the public face
            elif module != "bcos_kernels" and floor(name) < floor(module):
                found.append(f"{module} imports {name}, which stands above it")
            elif len(tops := {f"{part}.".split(".")[1] for part in (module, name)} & set(OPS)) > 1:
                found.append(f"{module} imports {name}, but {' and '.join(sorted(tops))} are ops of their own")
    within = {module: sorted(names - {"bcos_kernels"}) for module, names in graph.items()}
    return found + [f"these import each other: {' -> '.join(cycle)}" for cycle in cycles(within)]


def graph() -> dict[str, set[str]]:
    return {module: imports(module, path.read_text(encoding="utf-8")) for module, path in MODULES.items()}


def test_imports_lead_down_and_form_no_cycle():
    found = graph()
    assert len(found) > 60 and sum(map(len, found.values())) > 150  # the files are found and parsed
    assert violations(found) == []


@pytest.mark.parametrize(
    "module, statement, complaint",
    [
        ("core.op", "from ..transform import call", "imports bcos_kernels.transform.call, which stands above"),
        ("core.call", "from . import op", "imports bcos_kernels.core.op, which stands above"),
        ("gpu.cost", "from bcos_kernels.adopt import report", "which stands above"),
        ("core.op", "importlib.import_module('bcos_kernels.gpu.timing')", "imports bcos_kernels.gpu.timing, which"),
        ("transform.spec", "def f():\n    from .. import modules", "imports bcos_kernels.modules, which stands above"),
        ("transform.spec", "from .functional import transform", "these import each other"),
        ("norm.spec", "from ..transform import Spec", "but norm and transform are ops of their own"),
        ("transform.spec", "from ..core import nowhere_at_all, call\nfrom ..nowhere import x", "which is not there"),
    ],
)
def test_a_wrong_import_is_found(module, statement, complaint):
    found, module = graph(), f"bcos_kernels.{module}"
    found[module] = found[module] | imports(module, statement)
    assert any(complaint in sentence for sentence in violations(found)), violations(found)


def test_bench_names_its_modules_in_the_order_of_their_imports():
    package, found = "bcos_kernels.cli.bench", graph()
    listed = ast.get_docstring(ast.parse(MODULES[package].read_text(encoding="utf-8"))).partition("The modules")[2]
    named = [f"{package}.{name}" for name in re.findall(r"``(\w+)``", listed)]
    assert sorted(named) == sorted(module for module in found if module.startswith(f"{package}."))
    for place, module in enumerate(named):
        assert found[module] & set(named) <= set(named[:place]), module


def private(source: str) -> set[str]:
    """The private names of torch in a module's source, as they are written there."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            names = [ast.unparse(node)] if isinstance(node, ast.Attribute) else []
        found |= {name for name in names if re.match(r"(torch|nn|F)\.([\w.]*\.)?_[a-z]\w*$", name, re.IGNORECASE)}
    return found


def test_private_torch_stands_in_one_module():
    """A new version of torch may change it: then one file tells what is to be looked at."""
    found = {module: private(path.read_text(encoding="utf-8")) for module, path in MODULES.items()}
    assert len(found.pop("bcos_kernels.core._torch")) > 10
    assert {module: names for module, names in found.items() if names} == {}


def test_an_import_makes_no_tensor():
    """It would lie on the default device of whoever imports first, and the values of a parameter are drawn."""
    code = (
        "import sys, torch, bcos_kernels as bk; before = torch.get_rng_state()\n"
        "with torch.device('meta'): [getattr(bk, name) for name in bk.__all__]\n"
        "own = {name: vars(module) for name, module in sys.modules.items() if name.startswith('bcos_kernels.')}\n"
        "kinds = torch.Tensor, torch.nn.Module\n"
        "held = [(name, key) for name, of in own.items() for key, value in of.items() if isinstance(value, kinds)]\n"
        "print(len(own) > 60, held, torch.equal(torch.get_rng_state(), before))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["True", "[]", "True"]


def test_the_public_face_shows_public_names_alone():
    assert dir(bcos_kernels) == sorted([*bcos_kernels.__all__, "__version__"])
    assert dir(bcos_kernels.functional) == bcos_kernels.functional.__all__


def test_type_checkers_see_what_is_imported_later():
    source = ast.parse(Path(bcos_kernels.__file__).read_text(encoding="utf-8"))
    (shown,) = (node for node in source.body if isinstance(node, ast.If))
    found = {(alias.name, (line.module or alias.name).partition(".")[0]) for line in shown.body for alias in line.names}
    assert found == set(bcos_kernels._LATER.items())


def test_no_file_is_longer_than_four_hundred_lines_or_so():
    for folder in ("bcos_kernels", "csrc", "tests", "benchmarks"):
        for path in (ROOT.parent / folder).rglob("*"):
            if path.suffix in (".py", ".cpp", ".h", ".cu", ".cuh"):
                assert len(path.read_text(encoding="utf-8").splitlines()) <= 410, f"{path} is too long"
