"""Builds what lets torch's CUDA build run without a GPU, by the interpreter that has that torch: ``build.py FOLDER``.

Into FOLDER go the stand-ins for the CUDA runtime and for torch's operators, and into the package of this checkout an
extension whose CUDA kernels run in the emulation of a thread block.
"""

from __future__ import annotations

import shutil
import sys
import sysconfig
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from emulated import ALIGNED, FAST, GXX, HEADERS, KERNELS, ROOT, SOURCES, STAND_INS, compiled, cudnn, gpu_driver, linked  # noqa: E402
from torch.utils.cpp_extension import include_paths, library_paths  # noqa: E402

PYTHON = [path for option in include_paths() for path in ("-isystem", option)]
OF_TORCH = (
    "-std=c++20", "-O1", "-fPIC", "-fopenmp", "-march=native", "-DBCOS_WITH_CUDA", "-DBCOS_NO_CLONES",
    *PYTHON, "-isystem", sysconfig.get_paths()["include"],
)  # fmt: skip
LIBRARIES = ("torch", "torch_cpu", "torch_cuda", "c10_cuda", "torch_python", "c10", "dl")


def main(folder: Path) -> None:
    if GXX is None or HEADERS is None:
        sys.exit("g++ and the headers of a CUDA toolkit are needed: CUDA_HOME names the toolkit's folder")
    folder.mkdir(parents=True, exist_ok=True)
    (torch,) = library_paths()
    link = ("-shared", "-fopenmp", "-L", torch, f"-Wl,-rpath,{torch}", *(f"-l{name}" for name in LIBRARIES))
    runtime = compiled(("-std=c++20", "-O1", "-fPIC"), sorted(HERE.glob("libcudart*.cpp")), HERE)
    operators = compiled((*OF_TORCH, "-DTORCH_EXTENSION_NAME=gpu_stand_in_operators"), [HERE / "operators.cpp"], HERE)
    glue = [*sorted(SOURCES.rglob("*.cpp")), STAND_INS]
    extension = compiled((*OF_TORCH, "-DTORCH_EXTENSION_NAME=_C"), glue, HERE) | compiled((*FAST, *ALIGNED), KERNELS)
    built = {
        "libcudart.so": linked("libcudart.so", "-shared", *runtime.values()),
        "gpu_stand_in_operators.so": linked("operators.so", *operators.values(), *link),
        "libcuda.so.1": gpu_driver(HEADERS),
        "cudnn/libcudnn.so.9": cudnn(),
    }
    for name, file in built.items():
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(file, folder / name)
    shutil.copy(HERE / "gpu_stand_in.py", folder)
    (folder / "sitecustomize.py").write_text("import gpu_stand_in\n", encoding="utf-8")
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    shutil.copy(linked("_C.so", "-Wl,--wrap=dlopen", *extension.values(), *link), ROOT / "bcos_kernels" / f"_C{suffix}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
