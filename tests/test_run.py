"""``run``: a script in plain Python's own process."""

import ast
import os
import signal
import sys
import time
import venv
from pathlib import Path
from types import SimpleNamespace

import pytest
from programs import ROOT, RUN, outcome, run, start, summary

from bcos_kernels.__main__ import main
from bcos_kernels.cli import run as run_module

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
    """Its globals, arguments, path, flags, exit status, and nothing imported."""
    work, args = folder(facts=FACTS), ("facts.py", "--lr", "1", "--", "--help")
    options = ("-u", "-O", "-W", "error::FutureWarning")
    plain = start(*options, *args, cwd=work, MINE="a")
    code, out, err = outcome(start(*options, *RUN, *args, cwd=work, MINE="a"))
    assert (code, out) == outcome(plain)[:2], err
    assert code == 7 and out.startswith("/"), out
    assert err == "bcos_kernels: no B-cos layer was accelerated\n"


@pytest.fixture
def started(tmp_path, monkeypatch):
    """A function that runs ``python <options> -m bcos_kernels run <args>`` in a folder with ``script.py`` and the
    folder ``program``, and returns the command and the environment that the process would become."""

    class Started(Exception):
        pass

    def become(path: str, command: list[str], environment: dict[str, str]) -> None:
        assert path == sys.executable == command[0]
        raise Started(command[1:], environment)

    def run(*args: str, options: tuple[str, ...] = ("-m",)) -> tuple[list[str], dict[str, str]]:
        monkeypatch.setattr(sys, "orig_argv", [sys.executable, *options, "bcos_kernels", "run", *args])
        monkeypatch.setattr(sys, "argv", ["__main__.py", "run", *args])
        with pytest.raises(Started) as stopped:
            main(["run", *args])
        return stopped.value.args

    monkeypatch.setattr(run_module.os, "execve", become)
    monkeypatch.setattr(run_module.tempfile, "mkdtemp", lambda prefix: str(tmp_path))
    monkeypatch.delenv("BCOS_KERNELS_RUN", raising=False)
    monkeypatch.delenv("BCOS_KERNELS_BACKEND", raising=False)
    (tmp_path / "script.py").touch()
    (tmp_path / "program").mkdir()
    monkeypatch.chdir(tmp_path)
    return run


@pytest.mark.parametrize(
    "target",
    [
        "script.py",
        "script.py --lr 0.1 --help -h",
        "script.py --backend cpu -m module --no-such-option",
        "script.py -- --lr -- x",
        "script.py run -- doctor --he",
        "program --backend",
        "-m torch.distributed.run --nproc-per-node 2 script.py -m x -- --backend",
        "-m json -- -m",
    ],
)
def test_what_follows_the_script_is_passed_on_untouched(target, started):
    for backend in ([], ["--backend", "reference"], ["--backend=cpu"]):
        command, environment = started(*backend, *target.split())
        assert command == target.split()
        assert environment.get("BCOS_KERNELS_BACKEND") == ((backend and backend[-1].rpartition("=")[2]) or None)
    assert started("script.py", "", "a b", "*")[0] == ["script.py", "", "a b", "*"]


@pytest.mark.parametrize("options", [(), ("-u",), ("-O", "-W", "error::FutureWarning"), ("-X", "dev")], ids=str)
def test_options_of_the_interpreter_are_kept(options, started):
    assert started("script.py", options=(*options, "-m"))[0] == [*options, "script.py"]
    if options == ("-u",):
        assert started("script.py", options=("-um",))[0] == ["-u", "script.py"]


ENDINGS = ("SIGINT", "SIGTERM")


def test_signals_end_it_as_in_plain_python(folder):
    """What is killed prints no summary, for it cannot; everything else of plain Python comes before it."""
    work = folder(wait="import time; print('ready', flush=True); time.sleep(60)")
    pairs = {name: [start("wait.py", cwd=work), start(*RUN, "wait.py", cwd=work)] for name in ENDINGS}
    for name, pair in pairs.items():
        for process in pair:
            assert process.stdout.readline() == "ready\n"
        time.sleep(0.5)  # both sleep now: a traceback names what was interrupted
        for process in pair:
            process.send_signal(getattr(signal, name))
        (code, _, plain), (ours, _, err) = map(outcome, pair)
        assert code == ours == -getattr(signal, name), (name, err)
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
    print("ours", torchvision.FAKE, flush=True)
    raise KeyError("mine")
"""


def test_torchvision_of_another_torch_is_mended_when_it_is_imported(folder):
    """No sooner, and beside a script that does the same. The summary stands behind the traceback of an error."""
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
    assert (code, out) == (1, "its own True\nours True\n"), err
    assert err.endswith("KeyError: 'mine'\nbcos_kernels: no B-cos layer was accelerated\n")


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
