"""README and documentation: their Python runs, their commands exist, and the API pages show every public name."""

from __future__ import annotations

import importlib
import inspect
import re
import shlex
from pathlib import Path
from unittest import SkipTest

import pytest
from sybil.document import Document
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

import bcos_kernels as bk
from bcos_kernels.cli import COMMANDS, main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in PAGES}
FENCES = {name: re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL) for name, text in TEXTS.items()}
WITH_PYTHON = [name for name, fences in FENCES.items() if any(kind == "python" for kind, _ in fences)]


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_PYTHON)
def test_python_runs(name, tmp_path, monkeypatch):
    """Block after block of a page in one namespace, as a reader would; ``skip`` in its source says why one does not."""
    monkeypatch.chdir(tmp_path)
    ran = skipped = 0
    for example in Document.parse(str(ROOT / name), PythonCodeBlockParser(), SkipParser()).examples():
        try:
            example.evaluate()
            ran += 1
        except SkipTest as reason:
            assert str(reason), f"{name}, line {example.line}: skipped without a reason"
            skipped += 1
    assert ran + skipped >= sum(kind == "python" for kind, _ in FENCES[name])


def commands(name: str) -> list[list[str]]:
    """The words of every ``python -m bcos_kernels`` of a page, and of commands that begin the rows of a table."""
    lines = [line for kind, text in FENCES[name] if not kind for line in text.replace("\\\n", "").splitlines()]
    found = [line.partition("-m bcos_kernels ")[2] for line in lines if "-m bcos_kernels " in line]
    found += re.findall(rf"^\| `((?:{'|'.join(COMMANDS)})\b[^`]*)`", TEXTS[name], re.MULTILINE)
    return [shlex.split(line, comments=True) for line in found]


@pytest.mark.parametrize("name", [name for name in TEXTS if commands(name)])
def test_commands_and_their_options_exist(name, capsys):
    helps: dict[str, str] = {}
    for command, *words in commands(name):
        if command.isupper():  # stands for any of them
            continue
        assert command in COMMANDS, f"{name}: {command}"
        parts = [command, *(words[:1] if command in ("bench", "evaluate") and words[0].isalpha() else [])]
        if command == "run":  # what follows the script is the script's
            continue
        if parts[-1] not in helps:
            with pytest.raises(SystemExit):
                main([*parts, "--help"])
            helps[parts[-1]] = capsys.readouterr().out
        for option in (word for word in words if word.startswith("--")):
            assert option in helps[parts[-1]].split() or f"{option}," in helps[parts[-1]], f"{name}: {command} {option}"


@pytest.mark.parametrize("name", TEXTS)
def test_targets_of_make_and_files_exist(name):
    targets = re.findall(r"^([a-z]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"(?:^|`)make ([a-z]+)", TEXTS[name], re.MULTILINE)) <= set(targets)
    for file in re.findall(r"\]\((?!https:)([\w./-]+)", TEXTS[name]):
        assert ((ROOT / name).parent / file).exists(), f"{name} links to {file}"
    for file in re.findall(r"`((?:examples|tests|docs|bcos_kernels|csrc|benchmarks)/(?!\w*NAME)[\w./]+)`", TEXTS[name]):
        assert (ROOT / file).exists(), f"{name} names {file}"


def test_the_readme_is_short():
    assert len(TEXTS["README.md"].splitlines()) <= 200


# ------------------------------------------------------------------------------------------------ the API

ROOMS = ("functional", "modules", "metrics", "explanation", "conversion", "compat")
"""The modules whose ``__all__`` is public, beside that of the package."""
SHOWN = re.findall(r"^::: ([\w.]+)", "\n".join(text for name, text in TEXTS.items() if "/api/" in name), re.MULTILINE)
SOURCE = r"CVPR|ICCV|ECCV|NeurIPS|TPAMI|arXiv|``bcos``|B-cosification"

UNCHECKED = ("clamped", "explanation_mode")
"""Functions that check nothing."""


def public() -> dict[str, object]:
    """Every public function and class, by its name for a user."""
    found = {f"bcos_kernels.{name}": getattr(bk, name) for name in bk.__all__}
    for room in ROOMS:
        module = importlib.import_module(f"bcos_kernels.{room}")
        found |= {f"bcos_kernels.{room}.{name}": getattr(module, name) for name in module.__all__}
    return {name: thing for name, thing in found.items() if not inspect.ismodule(thing)}


def resolved(path: str) -> object:
    """What a page of the API shows under a path."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def documents(thing) -> str:
    """The docstring, and that of the class or function to which it refers for other arguments."""
    texts = [inspect.getdoc(thing) or ""]
    referred = re.search(r"(?:those of|as in)\s+:(?:class|func):`(?:\w+\.)*(\w+)`", texts[0])
    if referred:
        texts += [inspect.getdoc(other) or "" for name, other in public().items() if name.endswith(f".{referred[1]}")]
    return "\n".join(texts)


def test_every_public_name_is_on_a_page_of_the_api():
    shown = [resolved(path) for path in SHOWN]
    assert [name for name, thing in public().items() if not any(thing is other for other in shown)] == []


@pytest.mark.parametrize("path", SHOWN)
def test_what_a_docstring_holds(path):
    """Every argument by name, shapes where tensors come or go, errors where it checks, a source where it computes."""
    thing = resolved(path)
    text = documents(thing)
    assert len(text.split()) > 5
    arguments = [
        name
        for name, parameter in inspect.signature(thing).parameters.items()
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    ]
    fields = getattr(thing, "__dataclass_fields__", {})
    for name in arguments:
        known = name in fields or "arguments are those of ``nn." in text
        assert known or re.search(rf"\b{name}\b", text), f"{path}: {name} is not described"
    hints = str(inspect.signature(thing))
    if "Tensor" in hints and not fields:
        assert re.search(r"``\[|one value", text), f"{path}: no shape"
    if arguments and not inspect.isclass(thing) and thing.__name__ not in UNCHECKED:
        assert "Raises:" in text or "the errors are those of" in text, f"{path}: no errors"
    module = importlib.import_module(thing.__module__)
    if re.search(r"functional|modules|metrics|explanation\.explain|conversion\.convert", thing.__module__):
        assert re.search(SOURCE, text + (module.__doc__ or "")), f"{path}: no source"
