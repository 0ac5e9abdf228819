"""``python -m benchmarks.gpu right | fast | tune``: tests and times on one GPU, in calls of at most nine minutes.

``right``, the default: is it right? Small calls of each backend, the graphs of cuDNN beside torch's own products, the
tests, a first table. ``fast``: how fast? Every layer beside the plain one and the reference. ``tune``: the choice of
kernels measured, whole models, and races last.
Each call builds the extension first, beside which ``right`` makes Triton's small calls, and ends in time; it names what
it had no time for, which is no failure. Where the build fails, ``right`` asks what Triton's kernels do. Its files are
complete and readable at any moment: ``gpu_CALL.txt``, ``gpu_CALL.log`` and a file of figures for each part.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

import torch

from bcos_kernels.cli.bench import report, stored
from bcos_kernels.cli.bench.devices import Gpu
from bcos_kernels.cli.bench.settings import QUICK_LAYERS
from bcos_kernels.cli.bench.stored import ROOT
from bcos_kernels.cli.terminal import at_least, draft_of
from bcos_kernels.compat import import_reference

from . import shares
from .command import Parser

__all__ = ["CALLS", "Job", "cuda_home", "main"]

RESULTS = ROOT / "benchmarks" / "results"
CACHES = ROOT / "build" / "gpu"
SUITE = ("tests/gpu", "tests/gpu_kernels")
LATE = "accelerated_network or compute_sanitizer"
"""Tests that take a minute each: whole models, and races under compute-sanitizer. They are part of the last call."""
BENCH = ("--device=cuda",)
TUNED = "bcos.models.pretrained:resnet50", '{"pretrained": false}', "256,6,224,224"
SECONDS = 525.0
BUILD, SMALL, SMALL_OF_TRITON, DECISIONS, TESTS, TABLE = 240.0, 60.0, 150.0, 90.0, 220.0, 80.0
TUNE, MODELS, NETWORKS = 110.0, 160.0, 80.0
"""The most seconds of each part; the last part of a call takes all the time that is left."""
CLOSING = 10.0  # seconds for writing the last files
SHOWN = 60  # lines of a log, and kinds of failures, on the page; the files hold all


# ------------------------------------------------------------------------------------------------ surroundings


def cuda_home() -> Path | None:
    """The folder of a complete CUDA toolkit: as the environment names it, nvcc's own, a usual one, or one of wheels."""
    named = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    nvcc = shutil.which("nvcc")
    wheels = Path(sysconfig.get_path("purelib"), "nvidia")
    places = [
        *(Path(place) for place in named if place),
        *([Path(nvcc).resolve().parent.parent] if nvcc else []),
        Path("/usr/local/cuda"),
        *sorted(Path("/usr/local").glob("cuda-*"), reverse=True),
        *sorted(wheels.glob("cu[0-9]*"), reverse=True),
        wheels / "cuda_nvcc",
    ]
    whole = (place for place in places if (place / "bin/nvcc").exists() and (place / "include/cuda_runtime.h").exists())
    return next(whole, None)


def surroundings(commit: str | None, jobs: int) -> dict[str, str]:
    """The environment of every process: they share caches and start no compilers of their own.

    The build has ``jobs`` compilers: its own choice follows from the free memory, which a virtual machine may show too
    small because it grows with what is used. It finds the ninja that is installed beside the interpreter.
    """
    found = {
        "BCOS_KERNELS_REQUIRE_C": "1",
        "MAX_JOBS": str(jobs),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "TRITON_CACHE_DIR": str(CACHES / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(CACHES / "inductor"),
        "BCOS_KERNELS_CACHE": str(CACHES / "choices.json"),
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
    }
    if commit:
        found["BCOS_KERNELS_COMMIT"] = commit
    home, folders = cuda_home(), [sysconfig.get_path("scripts"), os.environ.get("PATH", "")]
    if home is not None:
        found["CUDA_HOME"] = str(home)
        folders.insert(0, str(home / "bin"))
    return found | {"PATH": os.pathsep.join(folders)}


# ------------------------------------------------------------------------------------------------ a call


class Job:
    """One call: its clock, the environment of its processes, its page, and what failed."""

    def __init__(self, arguments: argparse.Namespace, machine: dict) -> None:
        self.end = time.monotonic() + arguments.seconds - CLOSING
        self.out, self.call, self.processes = arguments.out, arguments.call, arguments.processes
        self.out.mkdir(parents=True, exist_ok=True)
        self.environment = surroundings(arguments.commit, self.processes)
        os.environ.update(self.environment)
        self.log, self.page = (self.out / f"gpu_{self.call}.{suffix}" for suffix in ("log", "txt"))
        for old in (self.log, self.page, *self.out.glob(f"{self.log.stem}_*.log")):
            old.unlink(missing_ok=True)  # else the files of a killed call would stand beside those of an earlier one
        self.parts: list[str] = []
        self.failed: list[str] = []
        packages = ("triton", "bcos", "pytest")
        self.header = stored.header(arguments.command, machine, {"processes": self.processes}, packages)
        commit = self.header["commit"] or "unknown (--commit or BCOS_KERNELS_COMMIT names it)"
        self.tell(f"{machine['device']}, {self.header['versions']}, commit {commit}")
        self.tell(f"CUDA_HOME: {self.environment.get('CUDA_HOME', 'no CUDA toolkit was found')}")

    def left(self, most: float = float("inf")) -> float:
        return max(0.0, min(most, self.end - time.monotonic()))

    def tell(self, text: str) -> None:
        """Prints a part of the page and stores the whole of it."""
        print(text, flush=True)
        self.parts.append(text)
        self.write()

    def write(self, unfinished: str = "") -> None:
        with draft_of(self.page) as draft:
            draft.write_text("\n\n".join(filter(None, [*self.parts, unfinished])) + "\n", encoding="utf-8")

    def fail(self, text: str) -> None:
        self.failed.append(text.partition("\n")[0])
        self.tell(f"FAILED {text}")

    def run(self, command: list[str], seconds: float, log_of: str = "", **environment: str) -> tuple[int | None, str]:
        """``(exit status, output)`` of a program whose output goes to the log; None if it was stopped at its limit.

        With ``log_of`` it goes to a log of its own, ``gpu_CALL_NAME.log``, as programs that run at the same time need.
        """
        path = self.log.with_stem(f"{self.log.stem}_{log_of}") if log_of else self.log
        with open(path, "a", encoding="utf-8") as log:
            log.write(f"\n$ {shlex.join(command)}\n")
            log.flush()
            begin = log.tell()
            process = subprocess.Popen(
                command, cwd=ROOT, env={**self.environment, **environment}, stdout=log, stderr=subprocess.STDOUT
            )
            try:
                late = shares.stopped(process, time.monotonic() + seconds)
            finally:
                process.kill()
                process.wait()
        printed = path.read_bytes()[begin:].decode("utf-8", errors="replace").strip()
        return None if late else process.returncode, printed


def last_lines(text: str, count: int = SHOWN) -> str:
    return "\n".join(text.splitlines()[-count:])


# ------------------------------------------------------------------------------------------------ parts


def build(job: Job, wanted: bool) -> bool:
    """Compiles the extension in place, or keeps the one that is there; returns whether it can be imported."""
    start = time.monotonic()
    if wanted:
        code, printed = job.run([sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"], job.left(BUILD))
        if code != 0:
            how = f"was stopped after {BUILD:.0f} s" if code is None else f"ended with {code}"
            job.fail(f"build: it {how}; all of it is in {job.log}\n{last_lines(printed)}")
            return False
    ask = "import json; from bcos_kernels import _C; print(json.dumps(_C.build_info()))"
    code, printed = job.run([sys.executable, "-c", ask], 60.0)
    if code != 0:
        job.fail(f"build: the extension cannot be imported\n{last_lines(printed, 5)}")
        return False
    info = json.loads(printed.splitlines()[-1])
    job.tell(f"extension: {f'built in {time.monotonic() - start:.0f} s' if wanted else 'as it was found'}: {info}")
    if not info["cuda"]:
        job.fail("build: the extension has no CUDA kernels: torch has no CUDA, or there was no toolkit to build with")
    return True


def small(job: Job, backend: str, seconds: float) -> tuple[int | None, str]:
    """Makes a small call of every kind on a backend, which shows first whether its kernels run at all; see ``run``."""
    command = [sys.executable, "tests/gpu/small_calls.py"]
    return job.run(command, job.left(seconds), log_of=backend, BCOS_KERNELS_BACKEND=backend)


def tell_small(job: Job, backend: str, code: int | None, printed: str) -> None:
    if code is None:
        job.tell(f"small calls of {backend}: stopped by the clock after: {last_lines(printed, 1)}")
    elif code != 0:
        job.fail(f"small calls of {backend}: ended with {code}\n{last_lines(printed, 20)}")
    else:
        job.tell(f"small calls of {backend}: {last_lines(printed, 1)}")


def build_with_small(job: Job, wanted: bool) -> bool:
    """As :func:`build`, with the small calls of both backends.

    Triton's run beside the build, because its kernels need no extension and Triton compiles them one after the other,
    for minutes.
    """
    with ThreadPoolExecutor(1) as pool:
        of_triton = pool.submit(small, job, "triton", SMALL_OF_TRITON)
        built = build(job, wanted)
        if built:
            tell_small(job, "cuda", *small(job, "cuda", SMALL))
        tell_small(job, "triton", *of_triton.result())
    return built


def tests(job: Job, seconds: float, chosen: str, name: str) -> None:
    """The GPU tests that ``-k chosen`` selects, in shares; their outcomes are stored in ``name.json`` as they come."""
    start, arguments = time.monotonic(), ("-m", "gpu", "-k", chosen, *SUITE)

    def store(found: dict) -> None:
        result = job.header | found | {"seconds": time.monotonic() - start}
        result["complete"] = all(test["outcome"] != "not run" for test in found["tests"].values())
        stored.store(result, job.out / f"{name}.json")
        job.write(page_of(found))

    found = shares.run(seconds, job.processes, arguments, job.environment, store)
    job.tell(page_of(found))
    job.failed += [f"{_and_others(names)}: {error}" for error, names in shares.failures(found)] + found["crashed"]
    if not found["tests"] and not found["crashed"]:
        in_time = time.monotonic() - start < seconds
        (job.fail if in_time else job.tell)(f"{name}: no test was collected within {seconds:.0f} s")


def page_of(found: dict) -> str:
    """The tests in words: the summary, a failure of each kind with its text, and what was not run."""
    told = found["tests"]
    parts = [shares.summary(found), *found["crashed"]]
    for _, names in shares.failures(found)[:SHOWN]:
        test = told[names[0]]
        output = (f"{heading}:\n{written}" for heading, written in test["output"])
        parts.append("\n".join([f"FAILED {_and_others(names)}", test["text"], *output]))
    left = [name for name, test in told.items() if test["outcome"] == "not run"]
    if len(left) > SHOWN:
        parts.append(f"not run: {len(left)} tests, which the file of the tests names")
    elif left:
        parts.append("\n".join(f"not run: {name}" for name in left))
    return "\n\n".join(parts)


def _and_others(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def bench(job: Job, seconds: float, name: str, *options: str) -> None:
    """``bench`` with a time limit; it stores ``name.json`` after each row."""
    out = job.out / f"{name}.json"
    out.unlink(missing_ok=True)
    given = (*BENCH, f"--limit={max(1.0, seconds - shares.GRACE) / 60:.2f}", f"--processes={job.processes}")
    code, printed = job.run([sys.executable, "-m", "bcos_kernels", "bench", *given, f"--out={out}", *options], seconds)
    if code not in (0, None):
        job.fail(f"bench, {name}: ended with {code}\n{last_lines(printed, 20)}")
    if out.exists() and (result := json.loads(out.read_text(encoding="utf-8")))["rows"]:
        job.tell(report.table(result, layers=False))
    else:
        job.tell(f"bench, {name}: no row in {seconds:.0f} s")


def decisions(job: Job) -> None:
    """The ways of the backend cuda beside the plain layer, which says whether cuDNN's graphs are worth having."""
    out = job.out / "gpu_decisions.json"
    out.unlink(missing_ok=True)
    seconds = job.left(DECISIONS)
    command = [sys.executable, "-m", "benchmarks.decisions", f"--seconds={max(1.0, seconds - CLOSING)}", f"--out={out}"]
    code, printed = job.run(command, seconds)
    if code not in (0, None):
        job.fail(f"decisions: ended with {code}\n{last_lines(printed)}")
    else:
        job.tell(f"decisions: {'stopped by the clock' if code is None else 'done'}\n{last_lines(printed)}")


def choices(job: Job) -> None:
    """Tunes every layer of ResNet-50; later parts and calls on this machine are served as it measured."""
    model, options, shape = TUNED
    command = [sys.executable, "-m", "bcos_kernels", "tune", "--model", model, "--factory-args", options]
    out = job.out / "gpu_choices.json"
    code, printed = job.run([*command, "--input", shape, "--dtype", "bf16"], job.left(TUNE))
    stored_at = Path(job.environment["BCOS_KERNELS_CACHE"])
    if stored_at.exists():
        shutil.copyfile(stored_at, out)  # without the plans beside it, which hold machine code
    if code not in (0, None, 130):
        job.fail(f"tune: ended with {code}\n{last_lines(printed, 20)}")
    else:
        job.tell(f"tune: {'stopped by the clock' if code is None else 'done'}\n{last_lines(printed)}")


# ------------------------------------------------------------------------------------------------ the calls


def right(job: Job) -> None:
    decisions(job)
    tests(job, min(TESTS, max(0.0, job.left() - TABLE)), f"not ({LATE})", "gpu_tests")
    bench(job, job.left(), "gpu_first", "--no-models", f"--layers={QUICK_LAYERS}")


def fast(job: Job) -> None:
    bench(job, job.left(), "gpu_layers", "--no-models")


def tune(job: Job) -> None:
    choices(job)
    bench(job, job.left(MODELS), "gpu_models", "--no-layers")
    tests(job, job.left(NETWORKS), "accelerated_network", "gpu_networks")
    tests(job, job.left(), "compute_sanitizer", "gpu_races")


def right_without_extension(job: Job) -> None:
    """What ``right`` can still ask where the build failed: whether Triton's kernels are right."""
    tests(job, job.left(), f"triton and not ({LATE})", "gpu_tests")


CALLS = {"right": right, "fast": fast, "tune": tune}
WITHOUT_EXTENSION = {"right": right_without_extension}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("call", nargs="?", choices=CALLS, default="right", help="(default right)")
    parser.add_argument("--seconds", type=at_least(1, float), metavar="S", default=SECONDS, help="of all (default 525)")
    parser.add_argument("--processes", type=at_least(1), metavar="N", default=os.cpu_count(), help="(default: cores)")
    parser.add_argument("--no-build", action="store_true", help="use the extension that is in bcos_kernels/")
    parser.add_argument("--commit", metavar="HASH", help="of a copy without .git (default BCOS_KERNELS_COMMIT)")
    out = Path(os.environ.get("OUT") or RESULTS)
    parser.add_argument("--out", type=Path, metavar="FOLDER", default=out, help="(default $OUT or %(default)s)")
    arguments = parser.parsed(argv)
    if not torch.cuda.is_available():
        parser.error(
            f"no GPU here: torch {torch.__version__} of {sys.executable} sees none; BCOS_PYTHON=/path/to/python "
            "makes make use another interpreter"
        )
    try:
        import_reference()
        import_module("pytest")
    except ImportError as missing:
        parser.error(f"the layers and the tests need the packages bcos and pytest: {missing}")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Returns 0 if nothing that ran failed, else 1; running out of time is no failure."""
    arguments = parse(argv)
    job = Job(arguments, Gpu().describe())
    begin = build_with_small if arguments.call == "right" else build
    calls = CALLS if begin(job, not arguments.no_build) else WITHOUT_EXTENSION
    if arguments.call in calls:
        calls[arguments.call](job)
    shown = "\n".join(f"- {text}" for text in job.failed[:SHOWN])
    job.tell(f"what failed:\n{shown}" if job.failed else "nothing failed")
    return int(bool(job.failed))


if __name__ == "__main__":
    sys.exit(main())
