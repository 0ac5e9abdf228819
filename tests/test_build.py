"""``setup.py``: what is imported after a build that failed, and what ``doctor`` then says."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest
import torch

import bcos_kernels
from bcos_kernels.cli import doctor
from bcos_kernels.core import extension

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
NAME = f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
BROKEN = '#error "no compiler takes this"\n'


@pytest.fixture
def sources(tmp_path):
    """A copy of the package with one source that does not compile, and the extension of an earlier build."""
    left_out = shutil.ignore_patterns("__pycache__", "*.so", "_C.failed.txt")
    shutil.copytree(ROOT / "bcos_kernels", tmp_path / "bcos_kernels", ignore=left_out)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "csrc").mkdir()
    (tmp_path / "bcos_kernels" / NAME).write_text("of an earlier build")
    (tmp_path / "csrc" / "broken.cpp").write_text(BROKEN)
    return tmp_path


def python(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    variables = {**os.environ, "PYTHONPATH": str(folder), "CUDA_HOME": "/nowhere", "MAX_JOBS": "1", **environment}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=variables, capture_output=True, text=True)


BUILD = ("setup.py", "--quiet", "build_ext", "--inplace")


def test_a_failed_build_leaves_no_earlier_extension_and_doctor_tells_why(sources):
    done = python(sources, *BUILD, BCOS_KERNELS_REQUIRE_C="0")
    assert done.returncode == 0
    assert "no compiler takes this" in done.stdout + done.stderr
    assert not (sources / "bcos_kernels" / NAME).exists(), "an earlier extension would stay in use"
    told = python(sources, "-m", "bcos_kernels", "doctor")
    text = told.stdout.replace("\n    ", " ")
    line = next(line for line in text.splitlines() if line.startswith("compiled extension"))
    assert "the C++ kernels" in text.splitlines()[0]
    assert "not there (its build failed: " in line and "rror" in line


def test_a_failed_build_fails_where_the_extension_is_required(sources):
    done = python(sources, *BUILD, BCOS_KERNELS_REQUIRE_C="1")
    assert done.returncode != 0
    assert "no compiler takes this" in done.stdout + done.stderr
    assert not (sources / "bcos_kernels" / NAME).exists(), "an earlier extension would stay in use"


def test_without_ninja_a_failed_build_fails_too(sources):
    """setuptools' own compiler reports a failure by another error."""
    done = python(sources, *BUILD, BCOS_KERNELS_REQUIRE_C="1", PATH=f"{sources}/none:/usr/bin:/bin")
    assert done.returncode != 0 and not (sources / "bcos_kernels" / NAME).exists()


JOBS = """
import os, pathlib, runpy, setuptools
usual = pathlib.Path.read_text
def read_text(path, **options):
    return "MemFree: 100 kB\\nMemAvailable: 14680064 kB\\n" if str(path) == "/proc/meminfo" else usual(path, **options)
pathlib.Path.read_text, setuptools.setup, os.cpu_count = read_text, lambda **_: None, lambda: 64
del os.environ["MAX_JOBS"]
runpy.run_path("setup.py")
print(os.environ["MAX_JOBS"])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems tell it otherwise")
def test_memory_that_holds_files_counts_as_free(sources):
    """On a machine that has read many files, little other memory is free: only one compiler would run at a time."""
    assert python(sources, "-c", JOBS).stdout.split()[-1:] == ["7"]


TARGETS = """
import os, runpy, setuptools, sys, torch
from torch.utils import cpp_extension

for here, named, compiler in eval(sys.argv[1]):
    if os.fork() == 0:
        os.environ["TORCH_CUDA_ARCH_LIST"], torch.version.cuda, cpp_extension.CUDA_HOME = named, compiler, "/nowhere"
        torch.cuda.is_available, torch.cuda.device_count = lambda: len(here) > 0, lambda: len(here)
        torch.cuda.get_device_capability = lambda index: here[index]
        setuptools.setup = lambda ext_modules, **_: print("BCOS_WITH_CUDA" in str(vars(ext_modules[0])), end=" ")
        runpy.run_path("setup.py")
        print(os.environ["TORCH_CUDA_ARCH_LIST"], flush=True)
        os._exit(0)
    os.wait()
"""
IMAGE = "6.1 7.0 7.5+PTX Volta 8.0 Ampere 12.0+PTX"  # as images of containers have it
BUILDS = {
    (((8, 0), (9, 0)), "", "12.8"): "True",  # torch looks which GPUs are there
    (((7, 5),), "", "12.8"): "False",  # a T4: the kernels do not compile for it, and those of the CPU would be lost
    (((7, 0), (9, 0), (8, 6)), "", "12.8"): "True 8.6;9.0",
    (((7, 5),), "8.0", "12.8"): "True 8.0",
    ((), IMAGE, "12.8"): "True 8.0;Ampere;12.0+PTX",
    ((), "7.0;7.5", "12.8"): "False 7.0;7.5",
    ((), "", "12.8"): "True 8.0+PTX;8.6;9.0a;10.0a",
    ((), "", "12.6"): "True 8.0+PTX;8.6;9.0a",  # a compiler that knows no Blackwell
}
"""The GPUs of a machine, TORCH_CUDA_ARCH_LIST and CUDA -> whether CUDA kernels are compiled, and for which GPUs."""


def test_gpus_that_are_too_old_are_left_out(sources):
    done = python(sources, "-c", TARGETS, str(list(BUILDS)))
    assert dict(zip(BUILDS, map(str.strip, done.stdout.splitlines()), strict=True)) == BUILDS, done.stderr


WINDOWS = """
import runpy, setuptools, sys, torch
from torch.utils import cpp_extension

cpp_extension.BuildExtension  # its import asks for the settings of the Python that is here
torch.version.cuda, cpp_extension.CUDA_HOME, sys.platform = "12.8", "/nowhere", "win32"
setuptools.setup = lambda ext_modules, **_: print("BCOS_WITH_CUDA" in str(vars(ext_modules[0])))
runpy.run_path("setup.py")
"""


def test_windows_gets_the_kernels_of_the_cpu_alone(sources):
    """The sources around the CUDA kernels use POSIX: compiled there, they would fail, and the CPU's with them."""
    done = python(sources, "-c", WINDOWS)
    assert done.stdout.split() == ["False"], done.stderr


def test_an_older_setuptools_is_refused_in_a_sentence(sources):
    """New environments of Python 3.10 and 3.11 have one, which torch 2.11 and 2.12 leave as it is."""
    old = "import runpy, setuptools; setuptools.__version__ = '65.5.0'; runpy.run_path('setup.py')"
    done = python(sources, "-c", old)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "65.5.0 is installed here" in done.stderr
    needed = re.search(r"`pip install '(.+?)'`", done.stderr)[1]
    assert f'requires = ["{needed}", ' in (sources / "pyproject.toml").read_text()


def test_a_wheel_for_others_names_its_torch_and_nothing_else_does(sources):
    minor = ".".join(torch.__version__.split(".")[:2])
    version = bcos_kernels.__version__
    for tag, named, needed in (("0", version, "torch>=2.11"), ("1", f"{version}+pt{minor}cpu", f"torch=={minor}.*")):
        assert python(sources, "setup.py", "--quiet", "egg_info", BCOS_KERNELS_TAG=tag).returncode == 0
        told = (sources / "bcos_kernels.egg-info" / "PKG-INFO").read_text().splitlines()
        assert f"Version: {named}" in told and f"Requires-Dist: {needed}" in told


def test_build_info():
    from bcos_kernels import _C

    info = _C.build_info()
    assert info["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert set(info) == {"torch", "compiler", "isa_clones", "openmp", "cuda"}


def test_the_reason_without_the_extension(monkeypatch, tmp_path):
    """Not that of an import within a package that is being imported, which would name a circle that is none."""
    monkeypatch.delitem(sys.modules, "bcos_kernels._C", raising=False)
    monkeypatch.delattr(bcos_kernels, "_C", raising=False)
    monkeypatch.setattr(bcos_kernels, "__path__", [])
    monkeypatch.setattr(extension, "FAILED", tmp_path / "failed.txt")
    monkeypatch.setattr(extension, "FOLDER", tmp_path)
    message = "the compiled extension bcos_kernels._C cannot be imported"
    assert extension.load() == (None, f"{message} (No module named 'bcos_kernels._C')")
    (tmp_path / "setup.py").touch()
    _, reason = extension.load()
    assert f"the sources in {tmp_path} are imported" in reason and "any other working directory" in reason
    (tmp_path / "failed.txt").write_text("no compiler\n")
    assert extension.load() == (None, f"{message} (its build failed: no compiler)")
    assert doctor._build() == "not there (its build failed: no compiler); slower backends serve its calls"


def test_a_source_archive_holds_no_part_of_the_tests(sources):
    """setuptools takes ``tests/test*.py`` unasked, which cannot run without the files beside them."""
    shutil.copy(ROOT / "MANIFEST.in", sources)
    (sources / "tests").mkdir()
    (sources / "tests" / "test_nothing.py").touch()
    assert python(sources, "setup.py", "--quiet", "sdist").returncode == 0
    (archive,) = (sources / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert {"setup.py", "csrc/broken.cpp", "bcos_kernels/adopt/published.json"} <= names
    assert not any(name.startswith("tests") for name in names)
