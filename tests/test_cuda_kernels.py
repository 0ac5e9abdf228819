"""The CUDA kernels without a GPU: their own sources run on the CPU against float64, and compiled for Hopper.

``make thorough`` compiles them for Ampere and Blackwell as well. The programs need g++ and the headers of the CUDA
toolkit (``emulated.py``), the compilation nvcc: found by CUDA_HOME or on the PATH. Where one is missing its tests are
not collected.
"""

from __future__ import annotations

import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest
from emulated import BUILD, EMULATION, GXX, HEADERS, KERNELS, NVCC, PROGRAMS, WORKERS, digest, execute, programs
from sass import disassembled, loops

pytestmark = pytest.mark.slow

AMPERE, BLACKWELL = (pytest.param(arch, marks=pytest.mark.thorough) for arch in ("80", "100a"))
STRICT = [
    "-std=c++17", "-O3", "-Xcompiler", "-Wall,-fPIC", "-Werror", "all-warnings",
    "-Xptxas", "-v,--warn-on-spills,--warn-on-local-memory-usage",
]  # fmt: skip
# what torch's extensions are compiled with
STRICT += [
    "-D__CUDA_NO_HALF_OPERATORS__", "-D__CUDA_NO_HALF_CONVERSIONS__", "-D__CUDA_NO_HALF2_OPERATORS__",
    "-D__CUDA_NO_BFLOAT16_CONVERSIONS__",
]  # fmt: skip

PLANTS = {
    1: ("missing barrier", "another thread"),
    2: ("wait off by one", "another thread"),
    3: ("missing row guard", "null pointer|FAILED"),
    4: ("missing column guard", "heap-buffer-overflow"),
    5: ("wrong stage", "another thread"),
    6: ("unreduced lane", "FAILED"),
    7: ("transposed fragment", "FAILED"),
    8: ("whole chunk", "misaligned"),
    9: ("missing block", "FAILED"),
}
"""Number of a bug in ``cuda_emulation/common/cuda/intrinsics.cuh``: what it is, and a pattern of how it shows."""

MOST_INSTRUCTIONS = {"fwd": (3.0, 4.3, 8.3), "dgrad": (3.7, 4.4, 11.0), "wgrad": (4.1, 6.5, 17.5)}
"""Product: the most instructions that a round of its main loop takes for each product on a tensor core, in tiles of
128 × 128 and of 64 × 64 of half types, and of 64 × 64 in tf32. Before a round took 64 values of k, and its coordinates
were carried on, there were 6.5, 6.0 and 10.2 in the large tiles for sm_90a."""

if GXX and HEADERS:

    def run(name: str, plant: int = 0) -> subprocess.CompletedProcess:
        environment = {**os.environ, "BCOS_PLANT": str(plant), "ASAN_OPTIONS": "detect_leaks=0"}
        return execute(programs()[name], env=environment, timeout=300)

    @pytest.mark.parametrize("name", [path.stem for path in PROGRAMS])
    def test_against_float64(name):
        done = run(name)
        assert done.returncode == 0, done.stdout[-4000:]
        assert done.stdout.count("\nok ") >= 14
        assert done.stdout.endswith("\n0 failed\n")

    @pytest.mark.parametrize("plant", PLANTS, ids=lambda n: PLANTS[n][0].replace(" ", "_"))
    def test_a_planted_bug_is_found(plant):
        """By the program of the implicit product's backward, which uses everything that can be broken."""
        done = run("implicit_gemm_bwd", plant)
        assert done.returncode != 0, f"{PLANTS[plant][0]} went unnoticed"
        assert re.search(PLANTS[plant][1], done.stdout), done.stdout[-4000:]

    USED = [(name, plant) for name in ("norm", "both_norms") for plant in (1, 4, 6, 9)]
    USED += [("alignment", plant) for plant in (1, 2, 3, 5, 9)]

    @pytest.mark.parametrize(
        "name, plant", USED, ids=lambda v: v if isinstance(v, str) else PLANTS[v][0].replace(" ", "_")
    )
    def test_a_planted_bug_is_found_in(name, plant):
        """Those of what it uses: of norms barriers, guards, sums over lanes and grids; of units a ring of copies."""
        done = run(name, plant)
        assert done.returncode != 0, f"{PLANTS[plant][0]} went unnoticed"
        assert re.search(PLANTS[plant][1], done.stdout), done.stdout[-4000:]

    def test_every_planted_bug_is_tried():
        listed = re.search(
            r"enum Plant \{\s*kNone,(.*?)\}", (EMULATION / "common" / "cuda" / "intrinsics.cuh").read_text(), re.S
        )
        assert len(re.findall(r"^\s*k\w+,", listed[1], re.M)) == len(PLANTS)


if NVCC:

    def strictly_compiled(source: Path, arch: str, folder: Path = BUILD) -> str:
        """What the compilers say; raises AssertionError for a warning, a spill or local memory."""
        binary = binary_of(source, arch, folder)
        log = binary.with_suffix(".log")
        if not log.exists():
            binary.parent.mkdir(parents=True, exist_ok=True)
            target = f"-gencode=arch=compute_{arch},code=sm_{arch}"
            done = execute(NVCC, *STRICT, "-I", "csrc", target, "-fatbin", source, "-o", binary)
            assert done.returncode == 0, done.stdout
            log.write_text(done.stdout)
        said = log.read_text()
        stacks = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", said)
        assert stacks and all(set(numbers) == {"0"} for numbers in stacks), said
        return said

    def binary_of(source: Path, arch: str, folder: Path = BUILD) -> Path:
        return folder / digest(NVCC, *STRICT, arch, of=(source,)) / f"{source.stem}.fatbin"

    @cache
    def compiled(arch: str) -> dict[str, str | AssertionError]:
        def attempt(source: Path) -> str | AssertionError:
            try:
                return strictly_compiled(source, arch)
            except AssertionError as error:
                return error

        longest_first = sorted(KERNELS, key=lambda path: -path.stat().st_size)
        with ThreadPoolExecutor(WORKERS) as pool:
            found = pool.map(attempt, longest_first)
        return {source.stem: said for source, said in zip(longest_first, found, strict=True)}

    @pytest.mark.parametrize("arch", ["90a", AMPERE, BLACKWELL])
    @pytest.mark.parametrize("name", [path.stem for path in KERNELS])
    def test_compiles_without_a_warning_or_a_spill(name, arch):
        said = compiled(arch)[name]
        if isinstance(said, AssertionError):
            raise said
        assert f"for 'sm_{arch}'" in said
        assert max(int(n) for n in re.findall(r"Used (\d+) registers", said)) <= 168

    @pytest.mark.parametrize("arch", ["90a", AMPERE])
    @pytest.mark.parametrize("name", MOST_INSTRUCTIONS)
    def test_main_loops_are_short(name, arch):
        """A multiprocessor that issues as many instructions has no time for its tensor cores."""
        if isinstance(said := compiled(arch)[f"implicit_gemm_{name}"], AssertionError):
            raise said
        found: dict[tuple[str, str], float] = {}
        (source,) = (path for path in KERNELS if path.stem == f"implicit_gemm_{name}")
        for kernel, code in disassembled(binary_of(source, arch), arch).items():
            kind = re.search(r"Tile\w*?Lb([01])ELi(\d+)E\w*DiagonalE0EEELb1E", kernel)  # operands copied, no packs
            if kind and (rounds := loops(code)):  # fp32 without tf32 takes no tensor core
                # of two loops the longer one has the sums of a row in it
                found[kind[2], kind[1]] = max(found.get((kind[2], kind[1]), 0), min(each.each for each in rounds))
        most = dict(zip((("128", "0"), ("64", "0"), ("64", "1")), MOST_INSTRUCTIONS[name], strict=True))
        assert found.keys() == most.keys()
        assert all(found[tile] <= most[tile] for tile in most), found

    def test_local_memory_is_refused(tmp_path):
        source = tmp_path / "indexing.cu"
        source.write_text(
            "__global__ void kernel(float* p, int n) {\n"
            "  float values[64];\n"
            "  for (int i = 0; i < 64; ++i) values[i * n % 64] = p[i];\n"
            "  for (int i = 0; i < n; ++i) p[i] = values[i % 64];\n"
            "}\n"
        )
        with pytest.raises(AssertionError, match="Local memory used"):
            strictly_compiled(source, "90a", tmp_path)
