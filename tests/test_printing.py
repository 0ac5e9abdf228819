"""What the commands print: under any locale, and into a pipe whose reader ends."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from made_results import result, stored

from bcos_kernels.cli import main

ROOT = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, "-m", "bcos_kernels"]
POSIX = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


def environment(**others: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **others}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return stored(tmp_path_factory.mktemp("made") / "made.json", result())


def spelt(text: str) -> bool:
    """Whether the signs of the goals stand there in ASCII, where a question mark would hide them."""
    head = "| forward, ours / plain: ResNet-50 convolutions |"
    return all(part in text for part in (head, "| <= 1.08 |", "| >= 2.0 |")) and "?" not in text


@pytest.mark.slow
def test_report_prints_under_a_posix_locale(file):
    run = subprocess.run([*COMMAND, "bench", "report", file], env=environment(**POSIX), capture_output=True)
    assert run.returncode == 0, run.stderr.decode()
    assert spelt(run.stdout.decode("ascii"))


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_report_prints_in_any_encoding(encoding, file, monkeypatch):
    """What the encoding has is left as it is."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))
    assert main(["bench", "report", file]) == 0
    text = written.getvalue().decode(encoding)
    assert spelt(text) if encoding == "ascii" else "ours ÷ plain" in text


@pytest.mark.slow
@pytest.mark.parametrize("argv", [["doctor"], ["bench", "--list"]])
def test_a_command_ends_quietly_where_its_reader_does(argv):
    """``doctor | head -1``: the reader is gone before anything is printed."""
    reader, writer = os.pipe()
    process = subprocess.Popen([*COMMAND, *argv], env=environment(), stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    os.close(reader)
    _, error = process.communicate()
    assert process.returncode == 141 and error == b""


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_report_needs_no_streams(stream, file, monkeypatch):
    """``bench report FILE >&-``: Python has None in the place of a stream that was closed before it started."""
    monkeypatch.setattr(sys, stream, None)
    assert main(["bench", "report", file]) == 0
