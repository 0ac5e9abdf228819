"""``python -m benchmarks.fingerprints FOLDER...``: which code is published, as hashes, from checkouts and releases.

Each folder is a checkout of a repository, of which every commit that changed a layer, norm or attention is read, or a
release. Classes are imported from a copy in a process of their own and hashed as ``accelerate`` hashes a user's; none
of their code is kept. The table holds, beside each hash, where it was found, and the formula, which a person enters: a
new hash is written with ``"formula": null`` and is not accelerated until then.

With ``--look`` the table stays as it is. Of each folder as it lies there it is told how many classes, and methods for
the norm of dilated patches, the table knows, and which it does not know.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import json
import multiprocessing
import re
import subprocess
import sys
import tarfile
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from bcos_kernels.adopt import fingerprint
from bcos_kernels.adopt.attention import MODE
from bcos_kernels.adopt.gate import METHOD
from bcos_kernels.adopt.layer_code import SLOW_NORM
from bcos_kernels.adopt.published import TABLE
from bcos_kernels.compat import import_reference

from .command import Parser

__all__ = ["main"]

CLASS = (
    r"^class (_?[Nn]orm(ed)?(Conv[123]d|Linear)|B[Cc]os[A-Za-z]*(Conv[123]d|Linear)(WithScale|_v2|_unnormed)?"
    r"|DynamicMultiplication|Attention|MyGELU|_SiLU|Bcos(GELU|NewGELU|SILU)Activation|Detachable(GELU(Approx)?|SiLU)"
    r"|CoDAConv2d|DAUWeights|Squashing|LpNorm|L2Norm"
    r"|Detachable[A-Za-z]*Norm[A-Za-z0-9]*|[A-Za-z0-9]*NormUncentered[A-Za-z0-9]*|[A-Za-z0-9]*Norm2dUncentered[A-Za-z]*)\b"
)
"""The names of layers, of their parts, of norms, attentions and gates, as git and Python both read it."""
UNITS = {
    "CoDAConv2d": ("alignments", ("forward",)),
    "DAUWeights": ("dynamic_weights", ("forward", "unfold")),
    "Squashing": ("weight_norms", ("forward",)),
    "LpNorm": ("weight_norms", ("forward",)),
    "L2Norm": ("weight_norms", ("forward",)),
}
"""Classes of CoDA-Nets -> their section of the table, and the methods that are called on them."""
KINDS = (
    "alignments", "attentions", "dynamic_weights", "gates", "layers", "linears", "modes", "norms", "slow_norms",
    "weight_norms",
)  # fmt: skip
NORMS = (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)


def main(argv: list[str] | None = None) -> int:
    """Adds to the table what is new and prints what needs a formula."""
    parser = Parser(__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="a checkout, or a release bcos-0.1.3")
    parser.add_argument("--look", action="store_true", help="only print which classes of each folder are known")
    options = parser.parse_args(argv)
    for folder in options.folders:
        if not folder.is_dir():
            parser.error(f"{folder}: no such folder")
    import_reference()  # torchvision, as far as it loads here
    table = {kind: {} for kind in KINDS} | (json.loads(TABLE.read_text()) if TABLE.exists() else {})
    if options.look:
        return look(options.folders, table)
    found: dict[tuple[str, str], dict] = {}
    for folder in options.folders:
        for name, tree in trees(folder):
            for kind, digest, of_class, reads in apart(classes, tree):
                entry = found.setdefault(
                    (kind, digest), {"class": of_class, "reads": reads, "where": defaultdict(list)}
                )
                entry["where"][title(folder)].append(name)
    for (kind, digest), entry in found.items():
        row = table[kind].setdefault(digest, {"class": entry["class"], "formula": None, "where": []})
        known = {where.partition(" ")[0] for where in row["where"]}
        row["where"] += [span(name, names) for name, names in entry["where"].items() if name not in known]
        if row["formula"] is None:
            print(f"{kind} {digest} {entry['class']} needs a formula; it reads {', '.join(entry['reads'])}")
    TABLE.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
    print(", ".join(f"{len(table[kind])} {kind}" for kind in KINDS), f"in {TABLE.name}")
    return 0


def look(folders: list[Path], table: dict[str, dict]) -> int:
    """Prints how many pieces of code of each folder the table knows, and those that it does not know."""
    for folder in folders:
        found = apart(classes, folder)
        unknown = [
            f"{name} {digest}" for kind, digest, name, _ in found if not table[kind].get(digest, {}).get("formula")
        ]
        print(", ".join([f"{title(folder)}: {len(found) - len(unknown)} of {len(found)} are known", *unknown]))
    return 0


def title(folder: Path) -> str:
    """``owner/name`` of a checkout, which lies in a folder named after its owner; the name of a release."""
    return "/".join(folder.resolve().parts[-2:]) if (folder / ".git").exists() else folder.name


def span(name: str, commits: list[str]) -> str:
    """``bcos-0.1.3``, or a repository with the first and the last commit that held the code."""
    return " ".join([name, "..".join(dict.fromkeys((commits[0], commits[-1])))]).rstrip()


def trees(folder: Path) -> Iterator[tuple[str, Path]]:
    """``(commit, copy)`` of each state of the layers in a checkout, oldest first; ``("", folder)`` of a release."""
    if not (folder / ".git").exists():
        yield "", folder
        return
    seen: set[tuple[str, ...]] = set()
    for commit in git(folder, "log", "--format=%h", "--reverse", "--all").split():
        sources = [line for line in git(folder, "ls-tree", "-r", commit).splitlines() if line.endswith(".py")]
        holders = {
            line.split(":", 1)[1] for line in git(folder, "grep", "-lE", CLASS, commit, "--", "*.py").splitlines()
        }
        layers = tuple(line for line in sources if line.split("\t", 1)[1] in holders)
        if layers and layers not in seen:
            seen.add(layers)
            names = [line.split("\t", 1)[1] for line in sources]
            with tempfile.TemporaryDirectory() as copy:
                packed = subprocess.run(
                    ("git", "-C", str(folder), "archive", commit, *names), capture_output=True, check=True
                )
                with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
                    archive.extractall(copy, filter="data")
                yield commit, Path(copy)


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(("git", "-C", str(folder), *arguments), capture_output=True, text=True)
    if done.returncode and done.stderr:  # a search without a match fails silently
        raise RuntimeError(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def apart(call: Callable, *arguments) -> Any:
    """What a call gives in a copy of this process, which ends with it: a stranger's modules stay out of this one."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(call, arguments)


def classes(tree: Path) -> list[tuple[str, str, str, list[str]]]:
    """``(kind, digest, class, what it reads)`` of each such class in a folder; what cannot be imported is named."""
    found: dict[str, tuple[str, str, str, list[str]]] = {}
    for path in sorted(tree.rglob("*.py")):
        names = [line[1] for line in re.finditer(CLASS, path.read_text(errors="replace"), re.M)]
        if not names:
            continue
        try:
            module = imported(tree, path)
        except Exception as error:  # anything that a stranger's module can raise
            print(f"{path.relative_to(tree)}: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        for name in names:
            try:
                for row in rows(name, inspect.unwrap(getattr(module, name))):  # NoBias is also used as a decorator
                    found.setdefault(row[1], row)
            except fingerprint.Unreadable as error:
                print(f"{path.relative_to(tree)}: {name}: {error}", file=sys.stderr)
    return list(found.values())


def rows(name: str, kind: type) -> Iterator[tuple[str, str, str, list[str]]]:
    """``(kind, digest, class, what it reads)`` of each piece of code that decides what one class computes."""

    def row(section: str, mark: fingerprint.Fingerprint) -> tuple[str, str, str, list[str]]:
        return section, mark.digest, name, sorted(mark.reads)

    if name == "Attention":
        yield from attention(kind)
    elif name in UNITS:
        section, roots = UNITS[name]
        yield row(section, fingerprint.of(kind.__mro__, roots))
    elif re.search("GELU|SILU", name.upper()):
        for root in ("forward", METHOD)[: 1 + hasattr(kind, METHOD)]:
            yield row("gates", fingerprint.of(kind.__mro__, (root,)))
    else:
        mark = fingerprint.of(kind.__mro__)
        group = "modes" if name == "DynamicMultiplication" else "layers" if "b" in mark.reads else "linears"
        if issubclass(kind, nn.Module) and mark.digest != "torch":
            yield row("norms" if issubclass(kind, NORMS) else group, mark)
        if hasattr(kind, SLOW_NORM):
            yield row("slow_norms", fingerprint.of(kind.__mro__, (SLOW_NORM,)))


def attention(kind: type) -> Iterator[tuple[str, str, str, list[str]]]:
    """The row of an attention; nothing for the many classes of that name without an explanation mode."""
    with contextlib.suppress(fingerprint.Unreadable):
        mark = fingerprint.of(kind.__mro__)
        if {"to_qkv", "attend"} <= mark.reads and mark.reads & {"detach", MODE}:
            yield "attentions", mark.digest, kind.__name__, sorted(mark.reads)


def imported(tree: Path, path: Path) -> ModuleType:
    """The module of one file. The packages above it are empty, so that nothing else of them has to load."""
    *packages, _ = parts = path.relative_to(tree).with_suffix("").parts
    root = tree
    while packages and not (root / packages[0] / "__init__.py").exists():  # folders between the root and a package
        root, packages, parts = root / packages[0], packages[1:], parts[1:]
    for name in [m for m in sys.modules if packages and m.partition(".")[0] == packages[0]]:
        del sys.modules[name]
    for i in range(1, len(packages) + 1):
        package = ModuleType(".".join(packages[:i]))
        package.__path__ = [str(root.joinpath(*packages[:i]))]
        sys.modules[package.__name__] = package
    places = [str(root)] if root == tree else [str(root), str(tree)]
    sys.path[:0] = places
    try:
        sys.modules.pop(".".join(parts), None)
        return importlib.import_module(".".join(parts))
    finally:
        for place in places:
            sys.path.remove(place)


if __name__ == "__main__":
    raise SystemExit(main())
