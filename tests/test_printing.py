"""What the commands print: under any locale, and into a pipe whose reader ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from made_results import result, stored

ROOT = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, "-m", "bcos_kernels"]
LOCALES = {"an encoding": {"PYTHONIOENCODING": "ascii"}, "POSIX": {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0"}}
LOCALES["POSIX"] |= {"PYTHONUTF8": "0"}


def environment(**others: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **others}


@pytest.mark.parametrize("locale", LOCALES)
def test_report_prints_under_any_locale(locale, tmp_path):
    """Also the signs of the goals, which a question mark would hide."""
    file = stored(tmp_path / "made.json", result())
    run = subprocess.run(
        [*COMMAND, "bench", "report", file], env=environment(**LOCALES[locale]), capture_output=True, cwd=tmp_path
    )
    assert run.returncode == 0, run.stderr.decode()
    text = run.stdout.decode("ascii")
    assert (
        "| forward, ours / plain: ResNet-50 convolutions |" in text and "| <= 1.08 |" in text and "| >= 2.0 |" in text
    )
    assert "?" not in text


def test_a_readable_encoding_is_left_alone(tmp_path):
    file = stored(tmp_path / "made.json", result())
    utf8 = environment(PYTHONIOENCODING="utf-8")
    run = subprocess.run([*COMMAND, "bench", "report", file], env=utf8, capture_output=True, cwd=tmp_path)
    assert "ours ÷ plain" in run.stdout.decode("utf-8")


def test_doctor_ends_quietly_where_its_reader_does():
    """``doctor | head -1``: the reader is gone before anything is printed."""
    reader, writer = os.pipe()
    process = subprocess.Popen([*COMMAND, "doctor"], env=environment(), stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    os.close(reader)
    _, error = process.communicate()
    assert process.returncode == 141 and error == b""
