"""The examples: the published losses' numbers, second derivatives, and that they run."""

from __future__ import annotations

import importlib.util
import json
import runpy
import sys
from functools import partial

import pytest
import torch
from cases import error
from matplotlib.image import imread
from programs import ROOT, outcome, start

BOXES = ([(1, 2, 5, 5)], [(0, 0, 3, 4), (2, 1, 6, 3)])
"""Of two images, each (left, top, right, bottom)."""

PUBLISHED = {
    "L1": ((0.2783100343636004, 0.5557994637051596), 0.2194298618741787, -0.020833333333333332),
    "PPCE": ((8.854082141123609, 61.717933189709534), 2.417059620368501, -0.10464378079066596),
    "RRR": ((17.753083350969817, 16.16131726890456), 46.68861751641158, 0.0),
    "Energy": ((0.5417844862558188, 0.8037135649186061), 0.2269853848922083, -0.03331884925915039),
}
"""What the losses and the post-processing of Model-Guidance (Rao et al., ICCV 2023) gave in float64 for cos(0.7 i) as
contributions ``[2, 6, 8]``: each image's loss, the length of the gradient of their sum, and its entry [0, 3, 2]."""


@pytest.fixture(autouse=True)
def _examples_import_each_other(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))


def example(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def as_script(tmp_path, monkeypatch):
    """``as_script(name, *arguments)`` runs an example as a script, in this process, which has imported torch."""

    def run(name, *arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("PYTHONPATH", str(ROOT))  # of a process that it starts
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")

    return run


@pytest.fixture(scope="module")
def guidance():
    return example("model_guidance")


@pytest.mark.parametrize("name", PUBLISHED)
def test_losses_of_model_guidance_are_the_published_ones(name, guidance):
    inside = torch.zeros(2, 6, 8, dtype=torch.float64)
    for mask, boxes in zip(inside, BOXES, strict=True):
        for left, top, right, bottom in boxes:
            mask[top:bottom, left:right] = 1
    contributions = (torch.arange(96, dtype=torch.float64) * 0.7).cos().view(2, 6, 8).requires_grad_()
    losses = guidance.LOSSES[name][0](contributions, inside)
    (gradient,) = torch.autograd.grad(losses.sum(), contributions)
    values, length, entry = PUBLISHED[name]
    assert losses.tolist() == pytest.approx(values, rel=1e-12)
    assert gradient.norm().item() == pytest.approx(length, rel=1e-12)
    assert gradient[0, 3, 2].item() == pytest.approx(entry, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("name", PUBLISHED)
def test_losses_are_finite_without_contributions(name, guidance):
    contributions = torch.zeros(1, 4, 4, requires_grad=True)
    inside = torch.zeros(1, 4, 4)
    inside[0, 1:3, 1:3] = 1
    loss = guidance.LOSSES[name][0](contributions, inside).sum()
    assert loss.isfinite() and torch.autograd.grad(loss, contributions)[0].isfinite().all()


@pytest.mark.parametrize("loss", PUBLISHED)
def test_a_guided_step_is_the_references(loss, guidance, monkeypatch):
    """Gradients of all weights in float64, by kernels and by the formula."""
    images, labels, masks = (t[:4] for t in guidance.scenes(torch.Generator().manual_seed(0)))
    torch.manual_seed(0)
    network, results = guidance.Network().double(), []
    for backend in ("cpu", "reference"):
        monkeypatch.setattr(guidance, "bcos_conv2d", partial(guidance.bcos_conv2d, backend=backend))
        total, _ = guidance.step(network, images.double(), labels, masks.double(), loss)
        results.append(torch.autograd.grad(total, [*network.parameters()]))
    assert all(error(mine, yours) < 1e-11 for mine, yours in zip(*results, strict=True))


def test_the_loss_of_distillation_is_the_published_one():
    """What GoodTeachersExplain (Parchami-Araghi et al., ECCV 2024) gave in float64 for cos(0.3 i) and sin(0.31 i)."""
    steps = torch.arange(48, dtype=torch.float64)
    student, teacher = (0.3 * steps).cos().view(2, 2, 3, 4), (0.31 * steps).sin().view(2, 2, 3, 4)
    found = example("explanation_distillation").explanation_loss(student, teacher)
    assert found.tolist() == pytest.approx([0.805804350870571, 0.6191445342582607], rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name, words", [
    ("model_guidance", "contributions inside of the boxes"),
    ("explanation_distillation", "similarity of the explanations"),
    ("localisation", "20 images in 1 shard"),
])  # fmt: skip
def test_they_run(name, words, as_script, capsys):
    as_script(name, "--quick")
    printed = capsys.readouterr().out
    assert words in printed and "nan" not in printed


@pytest.mark.slow
def test_a_conversion_is_tuned_and_drawn(as_script, tmp_path, capsys):
    out = tmp_path / "digits.png"
    as_script("convert_digits", "--quick", "--out", out)
    printed = capsys.readouterr().out
    assert "9 modules converted, 6 kept, 0 left alone" in printed and "converted and tuned:" in printed
    pixels = imread(out)
    assert min(pixels.shape[:2]) > 800 and pixels[..., :3].std() > 0.05


@pytest.mark.slow
def test_training_on_digits_learns_and_draws(tmp_path, capsys):
    out = tmp_path / "digits.png"
    example("train_digits").main(["--steps", "60", "--out", str(out)])
    printed = capsys.readouterr().out
    assert "4 B-cos layers: 4 accelerated" in printed
    assert float(printed.partition("%")[0].rsplit(maxsplit=1)[-1]) > 60  # chance is 10
    assert imread(out)[..., :3].std() > 0.05


@pytest.mark.slow
def test_a_folder_is_explained(tmp_path, capsys):
    module = example("explain_folder")
    module.main(["--quick", "--top", "3", "--out", str(tmp_path)])
    pictures = sorted(path.stem for path in (tmp_path / "explained").iterdir())
    assert "60 explanations of the images" in capsys.readouterr().out and len(pictures) == 60
    assert len({name.partition("-class")[0] for name in pictures}) == 20
    assert imread(tmp_path / "explained" / f"{pictures[0]}.png").shape == (16, 16, 4)


def test_one_process_is_told_to_be_several(monkeypatch, capsys):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SystemExit, match="2"):
        example("ddp_digits").main([])
    assert "needed, as torchrun --nproc-per-node 2 examples/ddp_digits.py starts them" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_keep_the_same_parameters(tmp_path):
    torchrun = "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"
    status, printed, errors = outcome(start(*torchrun, ROOT / "examples" / "ddp_digits.py", "--quick", cwd=tmp_path))
    assert status == 0, errors
    assert "2 processes, each with 4 accelerated layers" in printed
    assert "largest difference of a parameter between the processes: 0\n" in printed


@pytest.mark.slow
def test_lightning_trains_and_draws_explanations(tmp_path):
    """Also where torchvision, which Lightning imports, was built for another torch."""
    command = ROOT / "examples" / "lightning_digits.py", "--quick", "--out", tmp_path
    status, printed, errors = outcome(start(*command, cwd=tmp_path))
    assert status == 0, errors
    assert "of 360 test digits are right" in printed
    assert imread(tmp_path / "explanations-0.png")[..., :3].std() > 0.05


@pytest.mark.slow
def test_the_notebook_runs(capsys):
    """Its code, cell after cell, with fewer steps; the file holds no outputs."""
    notebook = json.loads((ROOT / "examples" / "quickstart.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    sources = ["".join(cell["source"]) for cell in cells]
    assert sum("steps = 300" in source for source in sources) == 1
    names: dict = {}
    for number, source in enumerate(sources):
        exec(compile(source.replace("steps = 300", "steps = 30"), f"cell {number}", "exec"), names)
    printed = capsys.readouterr().out
    assert "largest difference of a logit" in printed and "that it has not seen are right" in printed
    found = names["found"]
    bias = (found.logits.gather(1, found.targets) - found.contributions.sum((2, 3))).flatten()
    assert bias.std() < 1e-3 * found.logits.abs().max()  # as the last words of the notebook say


def test_the_readme_of_the_examples_lists_them():
    folder = ROOT / "examples"
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert [p.name for p in folder.iterdir() if p.suffix in (".py", ".ipynb") and f"| `{p.name}` |" not in text] == []
