"""What a release and a set-up rest on: one version, one list of linters, extras that hold what they are for."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

import bcos_kernels
from bcos_kernels import cli

ROOT = Path(__file__).resolve().parent.parent
LINTERS = {
    "ruff": "ruff-pre-commit",
    "clang-format": "mirrors-clang-format",
    "codespell": "codespell-project/codespell",
}
"""Linter -> its repository in .pre-commit-config.yaml."""


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.fixture
def environment():
    """The module that prepares environments."""
    spec = importlib.util.spec_from_file_location("environment", ROOT / ".ci" / "environment.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_version_is_the_same_everywhere():
    assert re.search(r"^version: (.+)$", read("CITATION.cff"), re.MULTILINE)[1] == bcos_kernels.__version__
    assert re.search(r"^## \[(.+?)\]", read("CHANGELOG.md"), re.MULTILINE)[1] == bcos_kernels.__version__
    assert f'"{bcos_kernels.__version__}"' not in read("pyproject.toml") + read("setup.py")


def test_the_console_script_is_the_command_line():
    module, function = re.search(r'^bcos-kernels = "(.+):(.+)"$', read("pyproject.toml"), re.MULTILINE).groups()
    assert getattr(importlib.import_module(module), function) is cli.main and cli.SCRIPT == "bcos-kernels"


def test_pre_commit_has_the_linters_of_make_lint_in_their_versions(environment):
    pinned = dict(requirement.split("==") for requirement in environment.requirements("lint"))
    pinned = {name.partition("[")[0]: version for name, version in pinned.items()}
    assert set(pinned) == {*LINTERS, "mypy"}
    hooks = read(".pre-commit-config.yaml")
    for linter, repository in LINTERS.items():
        assert re.search(rf"{repository}\n +rev: v(.+)\n", hooks)[1] == pinned[linter]
    lint = read("Makefile").partition("\nlint:")[2].partition("\n\n")[0]
    assert all(command in lint for command in ("ruff check", "ruff format", "mypy", "codespell_lib", "clang-format"))


def test_extras_hold_what_they_are_for(environment):
    extras = {extra: environment.requirements(extra) for extra in ("demo", "explain", "bench", "test", "lint")}
    names = {extra: {re.match(r"[\w-]+", line)[0] for line in found} for extra, found in extras.items()}
    assert names["explain"] < names["demo"] < names["test"] and names["explain"] < names["bench"] < names["test"]
    linters = {"ruff", "mypy", "clang-format", "codespell"}
    assert names["lint"] == linters and not linters & (names["test"] | names["demo"])
    assert not any("bcos_kernels" in line for found in extras.values() for line in found)


@pytest.mark.parametrize("uv", ["/somewhere/uv", None])
def test_requirements_are_installed_beside_the_torch_that_is_there(uv, environment, monkeypatch):
    """By uv where there is one, and by pip where there is none; the installed torch is a constraint."""
    commands, constraints = [], []

    def run(*command, **options):
        if command[1] == "-c":
            return subprocess.run(command, check=True, **options)
        commands.append(command)
        constraints.append(Path(command[command.index("--constraint") + 1]).read_text())

    monkeypatch.setattr(environment, "run", run)
    monkeypatch.setattr(environment.shutil, "which", lambda name: uv)
    monkeypatch.setattr(environment, "step", lambda what: nullcontext())
    environment.complete(sys.executable, "bench", "triton==3.7.1")
    (command,) = commands
    assert command[:2] == ((uv, "pip") if uv else (sys.executable, "-m"))
    assert command[-6:] == tuple(environment.requirements("bench"))
    assert constraints == [f"torch=={environment.installed(sys.executable, 'torch')}\ntriton==3.7.1"]


def test_a_set_up_says_what_it_does_and_how_long_it_took(environment, capfd):
    with environment.step("something"):
        pass
    assert capfd.readouterr().out == "something ... 0 s\n"
    with pytest.raises(SystemExit, match="BCOS_PYTHON=/no/such/python: must be an interpreter"):
        environment.main("/no/such/python", "test")


def test_ci_tests_the_promised_pythons_and_torches():
    workflow = read(".github/workflows/ci.yml")
    assert re.search(r'requires-python = ">=3\.10"', read("pyproject.toml")) and '"3.10", ' in workflow
    torches = re.search(r"torch: \[(.+)\]", workflow)[1]
    assert re.search(r'"torch>=(.+?)"', read("setup.py"))[1] in torches
    assert re.search(r'TORCH = "torch==(.+?)"|"torch==(.+?)"', read(".ci/environment.py"))[2] in torches
    targets = set(re.findall(r"^([a-z]+):", read("Makefile"), re.MULTILINE))
    assert set(re.findall(r"run: make ([a-z]+)", workflow)) <= targets


def test_make_help_tells_every_target_in_80_columns():
    command = ["make", "--no-print-directory", "help"]  # below another make it would print its folder
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert max(map(len, lines)) <= 80
    named = [line.split()[0] for line in lines if not line.startswith(" ")]
    assert named == re.findall(r"^([a-z]+):.*##", read("Makefile"), re.MULTILINE)


def test_make_triton_runs_every_test_of_tritons_kernels():
    """Those that are compiled as well as those that run, which are in one folder."""
    commands = read("Makefile").partition("\ntriton:")[2].partition("\n\n")[0]
    (pattern,) = re.findall(r"tests/gpu_kernels \$\(wildcard (.+?)\)", commands)
    assert {*ROOT.glob(pattern)} == {*ROOT.glob("tests/test_*triton*.py")} and len(list(ROOT.glob(pattern))) > 3


@pytest.mark.skipif(not shutil.which("make"), reason="make is not here")
def test_what_make_starts_keeps_its_bytecode():
    """Where a container forbids it, every process that a test starts would compile the package anew."""
    rule = '--eval=told: ; @echo "<$$PYTHONDONTWRITEBYTECODE>"'
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    told = subprocess.run(["make", "-s", rule, "told"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert told.stdout == "<>\n", told
