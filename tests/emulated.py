"""What runs the CUDA kernels on the CPU: their sources compiled against the emulation of a thread block.

``tests/cuda_emulation`` stands in for the few functions that only a GPU has; everything else is what nvcc compiles. It
needs g++ and the headers of the CUDA toolkit, found by CUDA_HOME or by nvcc on the PATH.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths, library_paths

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "csrc"
OPS = ("dynamic_alignment", "norm", "transform")
KERNELS = sorted(path for op in OPS for path in (SOURCES / op / "cuda").glob("*.cu"))
GLUE = [
    *sorted((SOURCES / "common").glob("*.cpp")), *sorted((SOURCES / "common" / "cuda").rglob("*.cpp")),
    *sorted(path for op in OPS for folder in (op, f"{op}/cuda") for path in (SOURCES / folder).glob("*.cpp")),
    *(SOURCES / op / "glue" / "arguments.cpp" for op in OPS),
    *sorted(path for op in OPS for path in (SOURCES / op / "glue" / "cuda").rglob("*.cpp")),
]  # fmt: skip
EMULATION = ROOT / "tests" / "cuda_emulation"
PROGRAMS = sorted(EMULATION.glob("*.cpp"))
CUDNN = ROOT / "tests" / "cudnn"
DRIVER = ROOT / "tests" / "driver"
MODULE = EMULATION / "module" / "module.cpp"
STAND_INS = EMULATION / "module" / "stand_ins.cpp"
OPERATORS = EMULATION / "module" / "operators.h"
INTRINSICS = EMULATION / "common" / "cuda" / "intrinsics.cuh"
BUILD = ROOT / "build" / "cuda_kernels"
WORKERS = 2

SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
STRICT = ("-std=c++20", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")
PLAIN = (*STRICT, "-O1", "-g1")
CHECKED = (*STRICT, "-Og", "-g1", *SANITIZERS)
"""With -O1 the kernels would take nearly twice as long to compile, and their programs would not make up for it: those
of the products would run in a quarter less time, the others in the same."""
CALLED = ("--param=asan-instrumentation-with-call-threshold=0", "-fira-algorithm=priority", "-fira-region=one")
"""The same checks as calls, and a quick allocation of registers: a quarter less time to compile. What computes much, as
the kernels do, would lose more than that when it runs."""
FAST = (*STRICT, "-O1", "-Wno-maybe-uninitialized", "-fPIC", "-DTORCH_EXTENSION_NAME=emulated")
ALIGNED = ("-fsanitize=alignment", "-fsanitize-undefined-trap-on-error")
"""Kernels that read or write several values at once, at an address that is no multiple of their size, end the process:
a GPU would end them, too."""


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc", path=str(Path(home, "bin"))) if home else shutil.which("nvcc")


def find_headers(nvcc: str | None) -> Path | None:
    """The toolkit's folder of headers; nvcc on the PATH may be a wrapper, and says itself where its toolkit is."""
    home = os.environ.get("CUDA_HOME")
    if not home and nvcc:
        told = subprocess.run([nvcc, "--dryrun", "-c", "-x", "cu", os.devnull], capture_output=True, text=True)
        top = re.search(r"^#\$ TOP=(.+)$", told.stderr, re.M)
        home = top and top[1]
    headers = Path(home, "include") if home else None
    return headers if headers and (headers / "cuda_bf16.h").exists() else None


NVCC = find_nvcc()
HEADERS = find_headers(NVCC)
GXX = shutil.which("g++")


@cache
def included(path: Path, *places: Path) -> frozenset[Path]:
    """A source, and what it includes of ``places`` or from its own folder: itself, by another, or under a condition."""
    found, waiting = set(), [path]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            for name in re.findall(r'^\s*#\s*include\s*[<"](.+?)[">]', path.read_text(encoding="utf-8"), re.M):
                waiting += [place / name for place in (path.parent, *places) if (place / name).is_file()]
    return frozenset(found)


@cache
def version(compiler: str) -> bytes:
    return subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout


def digest(compiler: str, *flags: str, of: Iterable[Path], places: tuple[Path, ...] = (SOURCES,)) -> str:
    """Of sources, what they include, the compiler and how it is called: what was built of the same is built once."""
    found = hashlib.sha256(version(compiler) + " ".join(flags).encode())
    for path in sorted({part.resolve() for source in of for part in included(source, *places)}):
        found.update(os.path.relpath(path, ROOT).encode() + path.read_bytes())
    return found.hexdigest()[:16]


def execute(*command, **options) -> subprocess.CompletedProcess:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.run(list(map(str, command)), cwd=ROOT, **pipes, **options)


def compiled(flags: tuple, sources: list[Path], instead: Path = EMULATION) -> dict[Path, Path]:
    """Source -> object file, compiled as C++ where that was not done before; headers of ``instead`` come first."""
    folder = BUILD / digest(GXX, *map(str, flags), str(HEADERS), of=())
    folder.mkdir(parents=True, exist_ok=True)

    def key(path: Path) -> str:
        return digest(GXX, *map(str, flags), of=(path,), places=(instead, SOURCES))

    places = {path: folder / f"{'-'.join(path.relative_to(ROOT).parts)}-{key(path)}.o" for path in sources}

    def compile_as(language: str, path: Path, target: Path, *options) -> None:
        if not target.exists():
            draft = target.with_suffix(f".{os.getpid()}")
            include = ("-I", instead, "-I", "csrc", "-isystem", HEADERS)
            done = execute(GXX, *flags, *options, *include, "-x", language, "-c", path, "-o", draft)
            assert done.returncode == 0, done.stdout
            draft.replace(target)

    def prepare(start: Path) -> Path:
        """What a file that begins with ``start`` includes first: the same header, compiled once."""
        header = folder / f"{start.stem}-{key(start)}{start.suffix}"
        header.write_text(f'#include "{start}"\n')
        compile_as("c++-header", header, header.with_name(f"{header.name}.gch"))
        return header

    def compile_one(path: Path) -> None:
        start = beginning(path)
        compile_as("c++", path, places[path], *(("-include", headers[start]) if start else ()))

    with open(folder / "lock", "w") as lock, ThreadPoolExecutor(WORKERS) as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)  # who needs the same in another process waits for it
        missing = [path for path, place in places.items() if not place.exists()]
        headers = {start: prepare(start) for start in {*map(beginning, missing)} - {None}}
        list(pool.map(compile_one, missing))
    return places


@cache
def beginning(path: Path) -> Path | None:
    """What a file includes anyway, itself or by another, and may begin with: OPERATORS, as every header of ATen/ops
    includes it, INTRINSICS or nothing.

    Any other file may begin with neither, for the compiler would no longer miss what it forgets to include.
    """
    parts = included(path, EMULATION, SOURCES)
    if any("#include <ATen/ops/" in part.read_text(encoding="utf-8") for part in parts):
        return OPERATORS
    return INTRINSICS if INTRINSICS in parts else None


def link(target: Path, *arguments) -> Path:
    """What g++ makes of these arguments, where that was not done before."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_suffix(f".{os.getpid()}")
        done = execute(GXX, *arguments, "-o", draft)
        assert done.returncode == 0, done.stdout
        draft.replace(target)
    return target


def linked(name: str, *arguments) -> Path:
    """A program or a library of objects, whose own names tell what they were compiled of."""
    key = hashlib.sha256(version(GXX) + " ".join(map(str, arguments)).encode()).hexdigest()[:16]
    return link(BUILD / key / name, *arguments)


@cache
def programs() -> dict[str, Path]:
    """Every program of ``tests/cuda_emulation``, linked with every kernel.

    The kernels and the emulator are under sanitizers, what the programs compute in float64 is not. The kernels come
    first, so that of functions which both have compiled the linker takes the checked one.
    """
    kernels, places = compiled(CHECKED, KERNELS), compiled(PLAIN, PROGRAMS)
    return {path.stem: linked(path.stem, *SANITIZERS, *kernels.values(), places[path]) for path in PROGRAMS}


@cache
def module() -> Path:
    """The CUDA submodule of the extension for CPU tensors: its glue to torch, and the kernels on the emulator."""
    python = [path for option in include_paths() for path in ("-isystem", option)]
    flags = (*FAST, *python, "-isystem", sysconfig.get_paths()["include"], f"-DTORCH={torch.__version__}")
    places = compiled(flags, [MODULE, STAND_INS, *GLUE]) | compiled((*flags, *ALIGNED), KERNELS)
    libraries = ("-ltorch", "-ltorch_cpu", "-ltorch_python", "-lc10", "-ldl")
    return linked(
        "emulated.so", "-shared", "-Wl,--wrap=dlopen", *places.values(), "-L", library_paths()[0], *libraries
    )  # fmt: skip


@cache
def cudnn(*flags: str) -> Path:
    """The stand-in for cuDNN, a library of its name: whoever looks for one in a process that has loaded it finds it."""
    options, source = (*STRICT, "-O2", "-g1", "-fPIC", *flags), CUDNN / "libcudnn.cpp"
    target = BUILD / f"cudnn-{digest(GXX, *options, of=(source,))}" / "libcudnn.so.9"
    return link(target, *options, "-shared", f"-Wl,-soname,{target.name}", "-I", "csrc", source)


@cache
def cudnn_program() -> Path:
    """The program of ``tests/cudnn``: the layer that speaks to cuDNN, with the stand-in, under sanitizers."""
    # -Og as all that is under sanitizers, for the same reason
    library = cudnn("-Og", *SANITIZERS, *CALLED)
    sources = (CUDNN / "program.cpp", *sorted((SOURCES / "common" / "cuda" / "cudnn").glob("*.cpp")))
    libraries = (library, f"-Wl,-rpath,{library.parent}", "-ldl", "-pthread")
    flags = (*CHECKED, *CALLED)
    target = library.parent / digest(GXX, *flags, of=sources) / "program"
    return link(target, *flags, "-I", "csrc", *sources, *libraries)


@cache
def gpu_driver(headers: Path) -> Path:
    """The stand-in for a GPU's driver, a library of its name, compiled against a folder that has ``cuda.h``."""
    options, source = (*STRICT, "-O1", "-g1", "-fPIC", "-isystem", str(headers)), DRIVER / "libcuda.cpp"
    target = BUILD / f"driver-{digest(GXX, *options, of=(source,))}" / "libcuda.so.1"
    return link(target, *options, "-shared", f"-Wl,-soname,{target.name}", source)
