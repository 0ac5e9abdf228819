"""The house rule as a test: data travels one way, nothing imports upward, and no file is long."""

import ast
from pathlib import Path

import bcos_kernels

ROOT = Path(bcos_kernels.__file__).parent
FLOORS = [
    {"__main__"},
    {"cli"},
    {"tuning"},
    {"adopt"},
    {"modules", "compat"},
    {"functional"},
    {"transform"},
    {"gpu"},
    {"core"},
    {"_C", "tally", "text"},
]


def floor(module: str) -> int:
    return next(i for i, names in enumerate(FLOORS) if module in names)


def imported(path: Path):
    """Names of this package's top-level modules that ``path`` imports."""
    package = ("bcos_kernels", *path.relative_to(ROOT).with_suffix("").parts)[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            stem = ".".join(filter(None, (base, node.module)))
            names = [f"{stem}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "bcos_kernels" and len(parts) > 1:
                yield parts[1]


def test_nothing_imports_upward():
    for path in ROOT.rglob("*.py"):
        here = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if here == "__init__":
            continue
        for name in imported(path):
            if name != here and any(name in names for names in FLOORS):
                assert floor(name) > floor(here), f"{path.name} imports {name}, which stands above or beside it"


def test_every_module_that_is_imported_exists():
    """An import within a function is only met when that function runs, on a GPU for one."""
    for path in ROOT.rglob("*.py"):
        package = ("bcos_kernels", *path.relative_to(ROOT).with_suffix("").parts)[:-1]
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                parts = [*package[: len(package) - node.level + 1], *filter(None, (node.module or "").split("."))]
                found = ROOT.parent.joinpath(*parts)
                exists = parts[-1] == "_C" or found.is_dir() or found.with_suffix(".py").exists()
                assert exists, f"{path.name}: {'.'.join(parts)}"


def test_every_file_has_a_floor_and_fits_a_screenful_or_ten():
    for path in ROOT.rglob("*.py"):
        here = path.relative_to(ROOT).parts[0].removesuffix(".py")
        assert here == "__init__" or floor(here) >= 0
    repository = ROOT.parent
    for folder in ("bcos_kernels", "csrc", "tests", "benchmarks"):
        for path in (repository / folder).rglob("*"):
            if path.suffix in (".py", ".cpp", ".h", ".cu", ".cuh"):
                assert len(path.read_text().splitlines()) <= 410, f"{path} is too long"
