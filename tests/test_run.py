"""``run``: a script in plain Python's own process."""

import ast
import os
import signal
import sys
import venv
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from programs import ROOT, RUN, outcome, run, start, summary

from bcos_kernels import run as run_module
from bcos_kernels.__main__ import main

FACTS = """
    import sys
    early = {name.partition(".")[0] for name in sys.modules}
    import os, pickle
    class Mine:
        pass
    if __name__ == "__main__":
        assert not early & {"torch", "torchvision", "bcos", "bcos_kernels", "json", "numpy"}, early
        print(__file__, sys.argv, sys.path[0], __spec__ and __spec__.name, type(__builtins__), sorted(globals()))
        print(type(pickle.loads(pickle.dumps(Mine()))) is Mine, sys.modules["__main__"].Mine is Mine, __package__)
        print(sys.flags, sys.warnoptions, sys.stdout.write_through, os.environ["MINE"])
        sys.exit(7)
"""


def test_main_module_is_plain_pythons(folder):
    """As a file, a folder, an archive and a module: its globals, arguments, path, flags, and nothing imported."""
    work = folder(**{"facts": FACTS, "program:__main__": FACTS})
    with zipfile.ZipFile(work / "program.zip", "w") as archive:
        archive.write(work / "program" / "__main__.py", "__main__.py")
    ways = [("facts.py",), ("program",), ("program.zip",), ("-m", "facts")]
    options = ("-u", "-O", "-W", "error::FutureWarning")
    pairs = [
        (
            start(*options, *way, "--lr", "1", cwd=work, MINE="a"),
            start(*options, *RUN, *way, "--lr", "1", cwd=work, MINE="a"),
        )
        for way in ways
    ]
    for way, (plain, ours) in zip(ways, pairs, strict=True):
        code, out, err = outcome(ours)
        assert (code, out) == outcome(plain)[:2], (way, err)
        assert code == 7 and out.startswith("/"), (way, out)
        assert err == "bcos_kernels: no B-cos layer was accelerated\n"


ENDINGS = {
    "text": "import sys; sys.exit('stop here')",
    "error": "def f():\n    raise KeyError('mine')\nf()",
    "SIGINT": "import time; print('ready', flush=True); time.sleep(60)",
    "SIGTERM": "import time; print('ready', flush=True); time.sleep(60)",
}


def test_exit_status_and_signals_are_plain_pythons(folder):
    """What is killed prints no summary, for it cannot; everything else of plain Python comes before it."""
    work = folder(**ENDINGS)
    pairs = {name: [start(f"{name}.py", cwd=work), start(*RUN, f"{name}.py", cwd=work)] for name in ENDINGS}
    for name, pair in pairs.items():
        if name.startswith("SIG"):
            for process in pair:
                assert process.stdout.readline() == "ready\n"
                process.send_signal(getattr(signal, name))
        (code, _, plain), (ours, _, err) = map(outcome, pair)
        expected = {"text": 1, "error": 1, "SIGINT": -signal.SIGINT, "SIGTERM": -signal.SIGTERM}[name]
        assert code == ours == expected, (name, err)
        end = "" if name == "SIGTERM" else "bcos_kernels: no B-cos layer was accelerated\n"
        assert err == plain + end, name
    for left in work.glob("bcos_kernels-run-*"):  # of the process that was killed
        left.rmdir()


CHILDREN = """
    import os, subprocess, sys
    SHOW = "import os, sys; print(*({'bcos_kernels_startup', 'json'} & {*sys.modules}), os.getenv('PYTHONPATH'))"
    def child(*args, **environment):
        subprocess.run([sys.executable, *args, "-c", SHOW], env={**os.environ, **environment})
    child()
    child("-I")
    child("-E")
    child("-S")
    child(PYTHONPATH="mine")
    environment = {**os.environ, "PYTHONPATH": sys.argv[2]}
    subprocess.run([sys.argv[1], "-c", "import torch; print(torch.PLAIN)"], env=environment)
"""


def test_other_interpreters_are_left_in_peace(folder):
    """Those that read no environment or one of their own, and those of an environment without this package."""
    work = folder(
        **{
            "children": CHILDREN,
            "theirs:sitecustomize": "import sys; sys.path.append('/added'); print('theirs', flush=True)",
            "other:torch": "PLAIN = 'another torch'",
        }
    )
    venv.create(work / "env", symlinks=True)
    theirs = work / "theirs"
    environment = f"{run_module.STARTUP}{os.pathsep}{ROOT}{os.pathsep}{theirs}"
    code, out, err = run(
        "children.py", work / "env" / "bin" / "python", f"{run_module.STARTUP}{os.pathsep}{work / 'other'}",
        cwd=work, PYTHONPATH=f"{ROOT}{os.pathsep}{theirs}",
    )  # fmt: skip
    assert code == 0, err
    lines = out.splitlines()
    assert lines.count("theirs") == 3  # read by the command, the script and the first child, as without the job
    assert [line for line in lines if line != "theirs"] == [
        f"bcos_kernels_startup {environment}",
        *[environment] * 3,
        "mine",
        "another torch",
    ]
    assert summary(err) == ["bcos_kernels: no B-cos layer was accelerated"]


def test_startup_is_read_by_any_python():
    """A job may start Python 2: its interpreter must not complain."""
    ast.parse((Path(run_module.STARTUP) / "sitecustomize.py").read_text(), feature_version=(3, 4))


VISION = """
    import os, sys
    import torch
    if os.fork() == 0:  # declares them itself
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision
        print("its own", torchvision.FAKE, flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
    assert "torchvision" not in sys.modules and not hasattr(torch.ops.torchvision, "nms")
    import torchvision
    print("ours", torchvision.FAKE)
"""


def test_torchvision_of_another_torch_is_mended_when_it_is_imported(folder):
    """No sooner, and beside a script that does the same."""
    work = folder(
        **{
            "vision": VISION,
            "torchvision:__init__": "from ._meta_registrations import FAKE",
            "torchvision:_meta_registrations": """
                import torch
                FAKE = torch.library.register_fake("torchvision::nms")(lambda *args: None) is not None
            """,
        }
    )
    code, out, err = run("vision.py", cwd=work)
    assert (code, out) == (0, "its own True\nours True\n"), err


@pytest.mark.parametrize(
    "args, message",
    [
        (["run", "nowhere.py", "--lr", "1"], "bcos_kernels run: no such script: nowhere.py\n"),
        (["run", "-m", "nowhere.at.all"], "bcos_kernels run: no module named 'nowhere.at.all'\n"),
    ],
)
def test_missing_script(args, message, capsys):
    assert main(args) == 2
    assert capsys.readouterr() == ("", message)


def test_isolated_interpreters_are_refused(tmp_path, monkeypatch, capsys):
    """Their children would not read what makes them members of the job."""
    (tmp_path / "script.py").touch()
    flags = SimpleNamespace(ignore_environment=1, no_site=0)
    monkeypatch.setattr(run_module, "sys", SimpleNamespace(flags=flags, stderr=sys.stderr))
    assert main(["run", str(tmp_path / "script.py")]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("bcos_kernels run: python's options -E, -I and -S") and err.count("\n") == 1
