"""Which products of fp32 may be rounded to tf32: what the settings of torch and the variable of NVIDIA say."""

import os
import subprocess
import sys
from pathlib import Path

CODE = """
import os, sys, torch
from torch import backends
from bcos_kernels import dynamic_alignment
from bcos_kernels.transform.call import of_shapes

options = {"device": "cuda", "dtype": torch.float32}
calls = [of_shapes((2, 8, 5, 5), (4, 8, 3, 3), **options), of_shapes((5, 8), (4, 8), **options)]
calls.append(dynamic_alignment.Call(dynamic_alignment.Spec((3, 3)), "cuda", (2, 3, 5, 5), 4, 2))
forwards = [call.now() for call in calls]
for settings in sys.argv[1:]:
    if os.fork() == 0:
        exec(settings)
        found = [call.now().tf32 for call in calls]
        # what a forward saw says nothing of the backward
        assert found == [made.of_backward((True,) * 4).tf32 for made in forwards]
        print(*map(int, found), flush=True)
        os._exit(0)
    os.wait()
"""
SETTINGS = {
    "": (1, 0),  # as torch has them unless told otherwise
    "backends.cudnn.allow_tf32 = False": (0, 0),
    "backends.cuda.matmul.allow_tf32 = True": (1, 1),
    "torch.set_float32_matmul_precision('high')": (1, 1),
    "backends.cudnn.conv.fp32_precision = 'ieee'": (0, 0),
    "backends.cuda.matmul.fp32_precision = 'tf32'": (1, 1),
    "backends.fp32_precision = 'tf32'": (1, 1),
    "backends.fp32_precision = 'tf32'; backends.cuda.matmul.fp32_precision = 'ieee'": (1, 0),
    "backends.cudnn.enabled = False": (0, 0),  # convolutions are products of matrices then
    "backends.cudnn.enabled = False; backends.cuda.matmul.allow_tf32 = True": (1, 1),
}
"""What a program sets -> whether convolutions, and linear layers, may be rounded."""


def test_settings_of_torch():
    assert dict(zip(SETTINGS, asked(*SETTINGS), strict=True)) == SETTINGS


def test_the_variable_of_nvidia():
    """It rules NVIDIA's libraries, and with them the reference, whatever torch allows."""
    forbidden = asked("", "backends.fp32_precision = 'tf32'", NVIDIA_TF32_OVERRIDE="0")
    assert forbidden == [(0, 0), (0, 0)]


def asked(*settings: str, **environment: str) -> list[tuple[int, int]]:
    """Whether a convolution and a linear layer may be rounded; a dynamic alignment layer is as a convolution."""
    command = [sys.executable, "-c", CODE, *settings]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(rows) == len(settings), done.stderr
    assert all(convolution == alignment for convolution, _, alignment in rows)
    return [row[:2] for row in rows]


def test_no_test_patches_the_setting_of_cublas():
    """pytest 9.2 takes such a patch back by deleting the setting, which fails and leaves tf32 on for later tests."""
    files = {file.name: file.read_text(encoding="utf-8") for file in Path(__file__).parent.rglob("*.py")}
    patch = "setattr(torch.backends.cuda." + "matmul"
    assert [name for name, text in files.items() if patch in text] == []
