"""The processes of a job that ``run`` starts: all accelerated, and one summary that is true."""

import importlib.util
from array import array
from collections import Counter

import pytest
import torch
from programs import outcome, run, start, summary

import bcos_kernels as bk
from bcos_kernels import tally

OWN_BCOS = f"__path__ = {list(importlib.util.find_spec('bcos').submodule_search_locations)}\n"
"""A package ``bcos`` of the script's own folder, with the reference's modules and nothing that needs torchvision."""
LAYERS = """
    import os
    import torch
    from bcos.modules import BcosConv2d, BcosLinear

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = BcosConv2d(6, 4, 3)
            self.head = BcosLinear(4, 2)

        def forward(self, x):
            return self.head(self.conv(x).mean((2, 3)))

    def train(name):
        net = Net()
        net(torch.ones(2, 6, 5, 5)).sum().backward()
        accelerated = type(net.conv) is not BcosConv2d and type(net.head) is not BcosLinear
        os.write(1, f"{name}: {accelerated}\\n".encode())
"""


OWN = {"layers": LAYERS, "bcos:__init__": OWN_BCOS}


LAUNCHER = """
    import pickle, subprocess, sys
    assert "torch" not in sys.modules
    with open("task.pickle", "wb") as file:
        file.write(b"clayers\\ntrain\\n.")  # by reference: layers.train
    torchrun = "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "rank.py"
    inner = "-m", "bcos_kernels", "run", "--backend", "reference", "apart/real.py"
    commands = torchrun, ["lightning.py", "task.pickle"], ["pools.py"], inner
    children = [subprocess.Popen([sys.executable, *command]) for command in commands]
    sys.exit(sum(child.wait() != 0 for child in children))
"""
LIGHTNING = """
    import os, subprocess, sys
    import layers

    # as Lightning's launcher of subprocesses does, but the other rank is started as submitit does
    command = [sys.executable, "-u", "-m", "submitted", *sys.argv[1:]]
    child = subprocess.Popen(command, env={**os.environ, "LOCAL_RANK": "1"})
    layers.train("lightning 0")
    sys.exit(child.wait())
"""
POOLS = """
    import layers
    import torch

    def train(index, name):
        layers.train(name)

    class Numbers(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return torch.tensor(index)

    if __name__ == "__main__":
        for method in ("fork", "forkserver", "spawn"):
            torch.multiprocessing.start_processes(train, (method,), nprocs=1, start_method=method)
        for method in ("fork", "spawn"):
            loader = torch.utils.data.DataLoader(Numbers(), num_workers=1, multiprocessing_context=method)
            print(f"workers by {method}: {sum(loader).item()}", flush=True)
"""
SUBMITTED = """
    import os, pickle, sys
    if __name__ == "__main__":
        assert os.environ["LOCAL_RANK"] == "1"
        with open(sys.argv[1], "rb") as file:
            pickle.load(file)("submitted")
"""
REAL = """
    import torch
    from bcos.modules import BcosConv2d
    with torch.no_grad():
        torch.nn.Sequential(BcosConv2d(6, 4, 3))(torch.ones(1, 6, 5, 5))
"""


@pytest.mark.slow
def test_processes_that_a_script_starts_are_accelerated(folder):
    """Those of a launcher that never imports torch, started in every way that people use; workers are not counted.

    One of them is ``run`` again, which belongs to the same job, with the real ``bcos``, which imports torchvision.
    """
    rank = "import os, layers; layers.train('rank ' + os.environ['RANK'])"
    programs = {"launch": LAUNCHER, "rank": rank, "lightning": LIGHTNING, "pools": POOLS, "submitted": SUBMITTED}
    work = folder(**OWN, **programs, **{"apart:real": REAL})
    code, out, err = run("-m", "launch", cwd=work, COLUMNS="200")
    assert code == 0, err
    names = ("fork", "forkserver", "lightning 0", "rank 0", "rank 1", "spawn", "submitted")
    trained = [f"{name}: True" for name in names]
    assert sorted(out.splitlines()) == [*trained, "workers by fork: 6", "workers by spawn: 6"]
    assert summary(err) == [
        "bcos_kernels: 15 B-cos layers accelerated in 8 processes, 14 fused calls",
        "  processes × layers: 1 × 1, 7 × 2",
        "  1 of the 8 processes made no fused call",
        "  ran plain: 1 call of bcos_conv2d: the backend 'reference' serves it",
    ]


ENDS = """
    import os, signal, sys
    import bcos_kernels  # before torch
    import layers, torch

    class Odd(layers.BcosLinear):
        def forward(self, in_tensor):
            return super().forward(in_tensor)

    class Hooked(layers.Net):
        def __init__(self):
            super().__init__()
            self.conv.linear.register_forward_hook(lambda *args: None)
            self.odd = self.same = Odd(2, 2)

    for end in (lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: os._exit(0), lambda: sys.exit()):
        if (child := os.fork()) == 0:
            layers.train("child")
            end()
        os.waitpid(child, 0)
    hooked = Hooked()
    if os.fork() == 0:
        hooked(torch.ones(1, 6, 5, 5))
        os._exit(0)
    os.wait()
    layers.Net()
"""


def test_summary_tells_what_was_done_and_no_more(folder):
    """Killed and hurried processes keep their counts; hooked calls, layers left alone, no calls."""
    work = folder(**OWN, ends=ENDS)
    code, out, err = run("ends.py", cwd=work)
    assert (code, out) == (0, "child: True\n" * 3), err
    assert summary(err) == [
        "bcos_kernels: 12 B-cos layers accelerated in 5 processes, 7 fused calls",
        "  processes × layers: 4 × 2, 1 × 4",
        "  1 of the 5 processes made no fused call",
        "  left alone: 2 layers of Odd: the code of Odd.forward is not among the",
        "    published layers",
        "  ran plain: 1 call of BcosConv2d: its .linear has a hook",
    ]


def test_compiled_calls_are_told_and_not_counted():
    """What torch.compile has compiled runs without the counter, so the summary must not claim a number."""
    before = tally.current()
    torch._dynamo.reset()
    layer = torch.compile(bk.BcosLinear(4, 2), backend="eager", fullgraph=True)
    for _ in range(3):
        layer(torch.ones(1, 4))
    assert tally.current() - before == Counter({("compiled", "", ""): 1})
    words = tally.words([many(layers=1, calls=7, compiled=1)]).splitlines()
    assert "  calls inside code that torch.compile compiled are not counted" in words


def many(**counts) -> Counter:
    keys = {"layers": ("accelerated", "", ""), "calls": ("fused", "", ""), "compiled": ("compiled", "", "")}
    return Counter({keys[name]: count for name, count in counts.items()})


@pytest.mark.parametrize(
    "tallies, words",
    [
        ([], "no B-cos layer was accelerated"),
        ([many(layers=1, calls=1)], "1 B-cos layer accelerated, 1 fused call"),
        ([many(layers=21)], "21 B-cos layers accelerated, but no fused call was made"),
        ([many(layers=2, compiled=1)], "2 B-cos layers accelerated, but no fused call was counted"),
        ([many(calls=3)], "no B-cos layer was accelerated, 3 fused calls"),
        ([many(layers=2, calls=3)] * 8, "8 processes × 2 B-cos layers accelerated, 24 fused calls"),
    ],
)
def test_words_of_the_summary(tallies, words):
    assert tally.words(tallies).splitlines()[0] == f"bcos_kernels: {words}"


KEEPER = """
    import importlib.util, os, sys
    spec = importlib.util.spec_from_file_location("tally", sys.argv[1])
    tally = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tally)
    job = sys.argv[2]
    if sys.argv[3] != "away":
        os.mkdir(job)
    tally.keep(job)
    for i in range(600):
        tally.plain("Layer", f"reason {i}")
        tally.fused()
    assert sum(n for (what, *_), n in tally.current().items() if what == "ran plain") == 600
    if sys.argv[3] == "running":
        ready, told = os.pipe(), os.pipe()
        if os.fork() == 0:
            tally.fused()
            os.write(ready[1], b"1")
            os.read(told[0], 1)
            tally.plain("Layer", "after the end of the job")
            os._exit(0)
        os.read(ready[0], 1)
        tally.tell(job, str(os.getpid()))
        os.write(told[1], b"1")
        assert os.wait()[1] == 0
        assert not os.path.exists(job)
"""


def test_damaged_files_of_a_job_are_not_counted(tmp_path, capsys):
    """Of a process that was killed, or that found the disk full, while it wrote."""
    counts = array("q", [3, 2, 7] + [0] * 509).tobytes()
    (tmp_path / "1-whole").write_bytes(counts + b'\n[0, "fused", "", ""]\n\n[1, "accelerated", "", ""]\n\n[2, "ran pl')
    (tmp_path / "2-cut").write_bytes(counts[:11])
    tally.tell(str(tmp_path), "1")
    assert capsys.readouterr().err == "bcos_kernels: 2 B-cos layers accelerated, 3 fused calls\n"
    tally.tell(str(tmp_path), "1")
    assert capsys.readouterr().err.startswith("bcos_kernels: the summary of this job cannot be read: ")


@pytest.mark.parametrize("job", ["running", "away"])
def test_tally_of_a_process_that_outlives_its_job_or_is_out_of_its_reach(job, folder):
    """What is not known is not claimed, a process that nobody can read tells itself, and reasons have a limit."""
    work = folder(keeper=KEEPER)
    code, _, err = outcome(start("keeper.py", tally.__file__, work / "job", job, cwd=work))
    assert code == 0, err
    first, *reasons = summary(err)
    calls = 601 if job == "running" else 600
    assert first.removeprefix("bcos_kernels: ") == f"no B-cos layer was accelerated, {calls} fused calls"
    assert reasons[:2] == [
        "  ran plain: 92 calls of other classes: too many different reasons to list",
        "  ran plain: 1 call of Layer: reason 0",
    ]
    assert reasons[8] == "  ran plain: 501 calls for 501 further reasons"
    assert ("  1 process had not ended: only what was done until then is counted" in reasons) == (job == "running")
