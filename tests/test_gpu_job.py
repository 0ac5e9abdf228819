"""A call of the GPU's command, part by part, without a GPU."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from bcos_kernels.cli.bench import stored
from benchmarks import decisions, gpu


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A call on no GPU, with half a minute."""
    for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_COMPILE_THREADS", "BCOS_KERNELS_REQUIRE_C", "MAX_JOBS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(gpu.os, "environ", dict(os.environ))
    arguments = {
        "seconds": 40.0,
        "out": tmp_path / "out",
        "call": "right",
        "processes": 1,
        "commit": None,
        "command": "",
    }
    return gpu.Job(SimpleNamespace(**arguments), {"device": "a stand-in"})


def test_a_build_that_fails_is_a_failure_with_its_log(job, tmp_path, monkeypatch):
    (tmp_path / "setup.py").write_text("import sys; print('nvcc: no such option'); sys.exit(3)")
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    assert not gpu.build(job, True)
    assert job.failed == [f"build: it ended with 3; all of it is in {job.log}"]
    assert "nvcc: no such option" in job.page.read_text() and "nvcc: no such option" in job.log.read_text()


def test_an_extension_that_cannot_be_imported_is_a_failure(job, tmp_path, monkeypatch):
    (tmp_path / "bcos_kernels").mkdir()
    (tmp_path / "bcos_kernels" / "__init__.py").write_text("")
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    monkeypatch.setitem(job.environment, "PYTHONPATH", str(tmp_path))
    assert not gpu.build(job, False) and "cannot import name '_C'" in job.page.read_text()


def test_without_the_extension_the_first_call_asks_what_tritons_kernels_do(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "Gpu", lambda: SimpleNamespace(describe=lambda: {"device": "a stand-in"}))
    monkeypatch.setattr(gpu.os, "environ", dict(os.environ))
    monkeypatch.setattr(gpu, "build", lambda job, wanted: job.fail("build"))
    monkeypatch.setattr(gpu, "small", lambda job, backend, seconds: asked.append(backend) or (0, ""))
    monkeypatch.setattr(gpu, "tests", lambda job, seconds, chosen, name: asked.append((chosen, name)))
    for call, expected in {"right": ["triton", (f"triton and not ({gpu.LATE})", "gpu_tests")], "fast": []}.items():
        assert gpu.main([call, f"--out={tmp_path}"]) == 1
        assert asked == expected
        asked.clear()


SMALL = """
import os, pathlib
backend = os.environ["BCOS_KERNELS_BACKEND"]
pathlib.Path(backend).touch()
print(f"{backend} is right")
"""
WAITING = """
import os, sys, time
end = time.monotonic() + 30
while not os.path.exists("triton"):
    assert time.monotonic() < end, "the small calls of Triton wait for the build"
    time.sleep(0.05)
"""


@pytest.mark.parametrize("built", [True, False])
def test_small_calls_of_triton_run_beside_the_build(built, job, tmp_path, monkeypatch):
    """Each backend is told with what it printed itself, which lies in a log of its own; without the extension there are
    those of Triton alone."""
    (tmp_path / "tests" / "gpu").mkdir(parents=True)
    (tmp_path / "tests" / "gpu" / "small_calls.py").write_text(SMALL)
    (tmp_path / "setup.py").write_text(f"{WAITING}sys.exit({0 if built else 3})")
    (tmp_path / "bcos_kernels").mkdir()
    (tmp_path / "bcos_kernels" / "__init__.py").write_text("")
    (tmp_path / "bcos_kernels" / "_C.py").write_text("def build_info(): return {'cuda': True}")
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    monkeypatch.setitem(job.environment, "PYTHONPATH", str(tmp_path))
    assert gpu.build_with_small(job, True) is built
    backends = ("cuda", "triton") if built else ("triton",)
    assert job.parts[-len(backends) :] == [f"small calls of {b}: {b} is right" for b in backends]
    assert job.failed == ([] if built else [f"build: it ended with 3; all of it is in {job.log}"])
    assert (tmp_path / "cuda").exists() == built
    assert all(f"{b} is right" in (job.out / f"gpu_right_{b}.log").read_text() for b in backends)


@pytest.mark.slow
def test_time_that_is_used_up_in_a_benchmark_is_no_failure(job, monkeypatch):
    monkeypatch.setattr(gpu, "BENCH", ("--device=cpu", "--seconds=0", "--models", "vit_s", "--no-models"))
    gpu.bench(job, 3.0, "gpu_layers")
    assert job.failed == [] and "bench, gpu_layers: no row in 3 s" in job.page.read_text()


def test_decisions_that_are_stopped_tell_what_they_found(capsys):
    """A compiler may take all the time of a row; the rows before it are told all the same."""

    def rows():
        yield {
            "layer": "tiny", "direction": "forward", "plain": 2e-6, "ways": {"vendor": 3e-6}, "fastest": "vendor",
            "predicted": "graph", "refused": {},
        }  # fmt: skip
        raise KeyboardInterrupt

    assert decisions.report({}, rows(), 24, None) == 0
    printed = capsys.readouterr().out
    assert "tiny" in printed and "1.50" in printed and printed.endswith("1 of 24 in time\n")


def test_the_processes_share_one_cache_and_do_not_crowd_the_cores(job):
    assert job.environment["TRITON_CACHE_DIR"] == str(gpu.CACHES / "triton")
    assert job.environment["TORCHINDUCTOR_COMPILE_THREADS"] == "1" and job.environment["BCOS_KERNELS_REQUIRE_C"] == "1"


def test_the_build_has_a_compiler_for_each_core_and_the_interpreters_ninja(job):
    """Whatever memory is free at its start: a virtual machine's grows."""
    assert job.environment["MAX_JOBS"] == str(job.processes)
    assert gpu.sysconfig.get_path("scripts") in job.environment["PATH"].split(os.pathsep)


def test_a_cuda_toolkit_is_found_and_shown(job, tmp_path, monkeypatch):
    """A folder with a compiler alone, as a wrapper in /usr/local/bin makes /usr/local look, is none."""
    assert "CUDA_HOME: " in job.page.read_text()
    for place, whole in (("local", False), ("toolkit", True)):
        (tmp_path / place / "bin").mkdir(parents=True)
        (tmp_path / place / "bin" / "nvcc").write_text("#!/bin/sh\n")
        (tmp_path / place / "bin" / "nvcc").chmod(0o755)
        if whole:
            (tmp_path / place / "include").mkdir()
            (tmp_path / place / "include" / "cuda_runtime.h").write_text("")
    monkeypatch.setattr(gpu.os, "environ", {"CUDA_PATH": str(tmp_path / "toolkit"), "PATH": ""})
    monkeypatch.setattr(gpu.shutil, "which", lambda name: str(tmp_path / "local" / "bin" / name))
    assert gpu.cuda_home() == tmp_path / "toolkit"
    monkeypatch.setattr(gpu.os, "environ", {"CUDA_HOME": str(tmp_path / "nowhere"), "PATH": ""})
    monkeypatch.setattr(gpu.shutil, "which", lambda name: str(tmp_path / "toolkit" / "bin" / name))
    assert gpu.cuda_home() == tmp_path / "toolkit"


def test_the_commit_of_a_copy_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "ROOT", tmp_path)
    monkeypatch.delenv("BCOS_KERNELS_COMMIT", raising=False)
    assert stored.commit() is None
    monkeypatch.setenv("BCOS_KERNELS_COMMIT", "0123abc")
    assert stored.commit() == "0123abc"


@pytest.mark.parametrize("options", [["--seconds=0"], ["--processes=-1"], ["quick"]])
def test_bad_options_are_refused(options, capsys):
    with pytest.raises(SystemExit, match="2"):
        gpu.main(options)
    error = capsys.readouterr().err
    assert "must be at least 1" in error or "invalid choice: 'quick'" in error


def test_a_package_that_is_missing_is_told_before_anything_starts(monkeypatch, capsys):
    def missing():
        raise ImportError("No module named 'bcos'")

    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "import_reference", missing)
    with pytest.raises(SystemExit, match="2"):
        gpu.main(["right"])
    assert "the packages bcos and pytest: No module named 'bcos'" in capsys.readouterr().err


@pytest.mark.slow
def test_without_a_gpu_there_is_one_clear_line():
    """``pytest -m gpu`` and ``make gpu``."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "gpu",
        "tests/gpu",
        "tests/gpu_kernels/test_kernels_bad_input.py",
    ]
    run = subprocess.run(command, cwd=stored.ROOT, capture_output=True, text=True)
    assert run.returncode == 4 and "torch.cuda.is_available() is False" in run.stdout
    assert "Error" not in run.stdout.replace("Exit", "")
    with pytest.raises(SystemExit):
        gpu.main([])
