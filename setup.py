"""Builds bcos_kernels._C: C++ for CPUs always, CUDA where torch has it. Metadata is in pyproject.toml.

The version stands in ``bcos_kernels/__init__.py``. That of a wheel for others (``make wheel``) also names the torch
that its extension was compiled against, as in ``0.1.0+pt2.13cu130`` or ``0.1.0+pt2.13cpu``; it requires that torch.
"""

import os
import re
import sys
from pathlib import Path

import setuptools
from setuptools import setup

OLDEST = 77  # of setuptools, as pyproject.toml requires; pip does not look at that without build isolation
if int(setuptools.__version__.partition(".")[0]) < OLDEST:
    sys.exit(
        f"bcos_kernels is built by setuptools {OLDEST} or newer, and {setuptools.__version__} is installed here: "
        f"`pip install 'setuptools>={OLDEST}'` first, then `pip install --no-build-isolation .`"
    )

try:
    import torch
    from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension
except ImportError:
    sys.exit(
        "bcos_kernels builds against the torch that will run it, and torch cannot be imported here: "
        "install torch first, then `pip install --no-build-isolation .`"
    )

ROOT = Path(__file__).parent
OLDER = ("Kepler", "Maxwell", "Pascal", "Volta", "Turing")
"""The names in TORCH_CUDA_ARCH_LIST of what is older than sm_80."""


def architectures() -> str | None:
    """For which GPUs to compile, as TORCH_CUDA_ARCH_LIST names them; "" for none, None for all that torch sees.

    The kernels do not compile for a GPU older than sm_80, and where that fails, there is no extension for the CPU. A
    build for GPUs that are not here is for Ampere, Hopper and Blackwell, which compilers know since CUDA 12.8, and of
    what a driver compiles for any later one.
    """
    if named := os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return ";".join(each for each in re.split(r"[ ;]+", named) if not is_older(each))
    if os.environ.get("BCOS_KERNELS_EVERY_GPU") == "1" or not torch.cuda.is_available():
        compiler = tuple(map(int, (torch.version.cuda or "0").split(".")))
        return "8.0+PTX;8.6;9.0a" + ";10.0a" * (compiler >= (12, 8))
    here = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
    served = sorted(capability for capability in here if capability >= (8, 0))
    return None if len(served) == len(here) else ";".join(f"{major}.{minor}" for major, minor in served)


def is_older(named: str) -> bool:
    """Whether an entry of TORCH_CUDA_ARCH_LIST, such as ``7.5+PTX`` or ``Volta``, is older than sm_80."""
    number = re.match(r"(\d+)\.", named)
    return int(number[1]) < 8 if number else named.startswith(OLDER)


WITH_CUDA = (
    sys.platform == "linux"  # cuDNN is found, and its plans are stored, by functions of POSIX
    and bool(torch.version.cuda and CUDA_HOME)
    and os.environ.get("BCOS_KERNELS_CUDA") != "0"
    and architectures() != ""
)
GIB_PER_JOB = 2.0  # a translation unit that includes torch's binding headers needs about this much memory


def sources(suffix: str) -> list[str]:
    return sorted(str(p.relative_to(ROOT)) for p in ROOT.glob(f"csrc/**/*{suffix}"))


def free_memory() -> int:
    """Bytes, with those that Linux uses for files and gives up when they are needed."""
    try:
        facts = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        facts = ""
    found = re.search(r"^MemAvailable: +(\d+) kB$", facts, re.MULTILINE)
    return int(found[1]) * 1024 if found else os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def cap_jobs() -> None:
    """Set MAX_JOBS so that parallel compilers fit into the free memory, unless the user set it."""
    try:
        free = free_memory() / 2**30
    except (AttributeError, OSError, ValueError):
        return
    jobs = max(1, min(os.cpu_count() or 1, int(free / GIB_PER_JOB)))
    os.environ.setdefault("MAX_JOBS", str(jobs))


def release() -> dict:
    """The version, and the torch that is required."""
    text = (ROOT / "bcos_kernels" / "__init__.py").read_text(encoding="utf-8")
    version = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)[1]
    if os.environ.get("BCOS_KERNELS_TAG") != "1":
        return {"version": version, "install_requires": ["torch>=2.11"]}
    minor = ".".join(torch.__version__.split(".")[:2])
    device = f"cu{torch.version.cuda.replace('.', '')}" if WITH_CUDA else "cpu"
    return {"version": f"{version}+pt{minor}{device}", "install_requires": [f"torch=={minor}.*"]}


def extension():
    cpp = [path for path in sources(".cpp") if WITH_CUDA or "cuda" not in Path(path).parts]
    if sys.platform == "win32":
        compile_args, link_args = ["/O2", "/openmp:experimental"], []
    else:
        openmp = [] if sys.platform == "darwin" else ["-fopenmp"]  # Apple's compiler ships without OpenMP
        compile_args = ["-O3", "-g0", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", *openmp]
        link_args = list(openmp)
        if os.environ.get("BCOS_KERNELS_SANITIZE") == "1":
            sanitize = ["-fsanitize=address,undefined", "-fno-omit-frame-pointer"]
            # for this CPU alone: clones for others would take three times as long to compile
            compile_args += ["-O1", "-g", "-march=native", "-DBCOS_NO_CLONES", *sanitize]
            link_args += sanitize
    if WITH_CUDA:
        compile_args.append("-DBCOS_WITH_CUDA")
        if chosen := architectures():
            os.environ["TORCH_CUDA_ARCH_LIST"] = chosen
    return (CUDAExtension if WITH_CUDA else CppExtension)(
        name="bcos_kernels._C",
        sources=cpp + (sources(".cu") if WITH_CUDA else []),
        include_dirs=[str(ROOT / "csrc")],
        depends=sources(".h") + sources(".cuh"),
        extra_compile_args={"cxx": compile_args, "nvcc": ["-O3"]} if WITH_CUDA else compile_args,
        extra_link_args=link_args,
    )


class OptionalBuild(BuildExtension):
    """A machine without a working compiler still gets the package, on its slower backends.

    The extension of an earlier build is removed first: whatever happens to this one, no other sources' is imported
    afterwards. Why a build failed is left in its place, for ``doctor``.
    """

    def run(self) -> None:
        (extension,) = self.extensions
        places = [Path(self.build_lib), *([ROOT] if self.inplace else [])]
        built = [place / self.get_ext_filename(extension.name) for place in places]
        notes = [path.with_name("_C.failed.txt") for path in built]
        for path in (*built, *notes):
            path.unlink(missing_ok=True)
        try:
            super().run()
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            for note in notes:
                note.parent.mkdir(parents=True, exist_ok=True)
                note.write_text(f"{reason}\n", encoding="utf-8")
            if os.environ.get("BCOS_KERNELS_REQUIRE_C") == "1":
                raise
            print(f"bcos_kernels: built without the compiled extension, its backend is off: {reason}", flush=True)
            self.extensions = []


cap_jobs()
setup(**release(), ext_modules=[extension()], cmdclass={"build_ext": OptionalBuild})
