"""The demo at its smallest: it runs, measures, draws, and says in one line what is missing."""

import copy
import gc
import sys
import weakref

import pytest
import torch
from matplotlib.image import imread

import bcos_kernels as bk
from bcos_kernels.cli import main, measure
from bcos_kernels.cli.demo import explaining, run
from bcos_kernels.compat import import_reference

pytestmark = pytest.mark.slow

import_reference()


def test_quick_demo_draws_and_prints(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "QUICK_ZOO", dict.fromkeys(("one", "another"), "simple_vit_ti_patch16_224"))
    for name, small in (("QUICK_STEPS", run.WARM_UP + 1), ("QUICK_BATCH", 4), ("QUICK_TEST", 30)):
        monkeypatch.setattr(run, name, small)
    out = tmp_path / "demo.png"
    assert main(["demo", "--quick", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    for text in (
        "test accuracy",
        "loss curves",
        "training step",
        "bytes kept",
        "explanation",
        "error vs float64",
        "\n1 thread, torch",
    ):
        assert text in printed
    pixels = imread(out)
    assert min(pixels.shape[:2]) > 1000 and pixels[..., :3].std() > 0.05


def test_missing_dependency_is_one_line_and_status_2(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert main(["demo"]) == 2
    message = capsys.readouterr().err
    assert (
        message.count("\n") == 1
        and "bcos_kernels demo: needs scikit-learn" in message
        and "bcos_kernels[demo]' torch==" in message
    )


@pytest.mark.parametrize("argv", (["--epochs", "0"], ["--epochs", "x"], ["--out", "/no/such/folder/demo.png"]))
def test_bad_options_end_with_status_2(argv, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["demo", *argv])
    assert ended.value.code == 2 and argv[0] in capsys.readouterr().err


def test_saved_bytes_counts_each_storage_once_and_leaves_parameters_out():
    x, w = torch.randn(8, 4), torch.randn(4, 4, requires_grad=True)
    assert measure.saved_bytes(lambda: (x @ w).relu().sum()) == 4 * (8 * 4 + 8 * 4)  # x and the output of relu
    assert measure.saved_bytes(lambda: (x @ w) + (x @ w)) == 4 * 8 * 4
    assert measure.saved_bytes(lambda: (x * w[0]) @ w) == 4 * (8 * 4 + 8 * 4 + 4 * 4)
    assert measure.saved_bytes(lambda: (x * w[0]) @ w, [w]) == 4 * (8 * 4 + 8 * 4)


def test_saved_bytes_frees_the_graph_that_it_looks_at():
    """Of every model and layer that bench measured, all that autograd kept stayed in memory, to its end."""
    x, found = torch.randn(8, 4, requires_grad=True), []

    def call() -> torch.Tensor:
        y = x.exp()  # whose backward reads y
        found.append(weakref.ref(y))
        return y

    measure.saved_bytes(call)
    gc.collect()
    assert found[0]() is None


def test_explanation_error_sees_other_weights():
    """Equal weights: rounding apart; one changed weight: far apart."""
    from bcos.models.resnet import cifar10_resnet20

    torch.manual_seed(0)
    reference = cifar10_resnet20().eval()
    accelerated = bk.accelerate(copy.deepcopy(reference))
    image = torch.rand(1, 6, 16, 16)
    explained = explaining.explain((reference, accelerated), image, repeats=1, smooth=3)
    assert max(*explained.errors, explained.difference) < 1e-4
    with torch.no_grad():
        accelerated.layer1[0].conv1.linear.weight[0] *= 1.5
        accelerated.layer1[0].conv1.linear.weight[0, 0] *= -1
    changed = explaining.explain((reference, accelerated), image, repeats=1, smooth=3)
    assert changed.errors[0] == explained.errors[0] and changed.difference > 1e-3


def test_the_converted_network_finds_each_photograph():
    """In one image of both, what speaks for a photograph lies where the photograph is."""
    both = run.explain_converted((30, 60), 0, lambda: None)["both"]
    rows, columns = (size // 2 for size in both.image.shape[1:])
    for index, contributions in enumerate(both.contributions):
        cells = contributions.clamp(min=0).unflatten(1, (2, columns)).unflatten(0, (2, rows)).sum((1, 3))
        own = torch.eye(2, dtype=torch.bool) if index == 0 else ~torch.eye(2, dtype=torch.bool)
        assert cells[own].sum() > 0.75 * cells.sum()
