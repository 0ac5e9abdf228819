"""What the demo does: it trains, explains, prints the table and draws the picture."""

from __future__ import annotations

import copy
import statistics
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import nn

from ... import accelerate
from ..measure import ratio
from .converting import HEIGHT, WIDTH, Fine, explain_photographs, fine_tune
from .explaining import Explained, explain, summary
from .images import Digits, load_digits, load_photographs
from .results import Results
from .training import WARM_UP, batches, build, train

__all__ = ["run"]

ZOO = {"ResNet-50": "resnet50", "ViT-B/16": "simple_vit_b_patch16_224"}
"""Full-size models that explain a photograph: shown name -> entry point of ``bcos.models.pretrained``."""
QUICK_ZOO = {"ResNet-18": "resnet18", "ViT-Ti/16": "simple_vit_ti_patch16_224"}
TUNING, QUICK_TUNING = (60, 160), (2, 2)
"""Steps of training before the conversion of the network for photographs, and after it."""
QUICK_STEPS, QUICK_BATCH, QUICK_TEST = WARM_UP + 2, 8, 60


def run(epochs: int, seed: int, out: Path, quick: bool) -> Results:
    """Trains, explains, prints the table and writes the picture ``out``; needs the optional dependencies."""
    console = Console()
    columns = TextColumn("{task.description:<34}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        digits = load_digits()
        reference, accelerated = build(seed), accelerate(build(seed))
        schedule = batches(len(digits.labels), epochs, seed)
        if quick:
            schedule = [indices[:QUICK_BATCH] for indices in schedule[:QUICK_STEPS]]
            test = digits.test_images[:QUICK_TEST], digits.test_labels[:QUICK_TEST]
            digits = Digits(digits.images, digits.labels, *test)
        task = progress.add_task("digits: ResNet-18, both in turns", total=2 * len(schedule))
        trainings = train((reference, accelerated), digits, schedule, lambda: progress.advance(task))
        repeats = 1 if quick else 5
        explained_digits = explain_digits(reference, digits, 2 if quick else 10, repeats, progress)
        models = explain_models(QUICK_ZOO if quick else ZOO, seed, repeats, progress)
        photographs = explain_converted(QUICK_TUNING if quick else TUNING, seed, progress)
    results = Results((trainings[0], trainings[1]), explained_digits, models, photographs)
    console.print(table(results))
    from .picture import draw

    draw(results, out)
    console.print(f"{torch.get_num_threads()} threads, torch {torch.__version__}; picture: {out}")
    return results


def twin(model: nn.Module) -> nn.Module:
    """An accelerated copy of ``model``, of equal weights."""
    return accelerate(copy.deepcopy(model))


def explain_digits(model: nn.Module, digits: Digits, count: int, repeats: int, progress: Progress) -> list[Explained]:
    """Explanations of the first test images of ``count`` digits by the trained weights of the reference."""
    task = progress.add_task("digits: explanations", total=count)
    models = model.eval(), twin(model)
    explained = []
    for digit in range(count):
        image = digits.test_images[digits.test_labels == digit][:1]
        explained.append(explain(models, image, repeats, smooth=3))
        progress.advance(task)
    return explained


def explain_models(zoo: dict[str, str], seed: int, repeats: int, progress: Progress) -> dict[str, Explained]:
    """Explanations of a photograph by each model of ``zoo`` with random weights, for their times and errors."""
    from bcos.models import pretrained
    from PIL import Image

    task = progress.add_task("photograph: full-size models", total=len(zoo))
    photograph = Image.fromarray(next(iter(load_photographs().values())))
    explained: dict[str, Explained] = {}
    for name, entry in zoo.items():
        torch.manual_seed(seed)
        model = getattr(pretrained, entry)(pretrained=False).eval().to(memory_format=torch.channels_last)
        image = model.transform(photograph).unsqueeze(0).to(memory_format=torch.channels_last)
        explained[name] = explain((model, twin(model)), image, repeats, smooth=15)
        progress.advance(task)
    return explained


def explain_converted(steps: tuple[int, int], seed: int, progress: Progress) -> dict[str, Fine]:
    """Explanations of the photographs by a network that was trained, converted and fine-tuned on patches of them."""
    task = progress.add_task("photographs: converted, fine-tuned", total=sum(steps))
    torch.manual_seed(seed)
    named = load_photographs()
    photographs = [
        F.interpolate(torch.tensor(pixels).permute(2, 0, 1)[None] / 255, size=(HEIGHT, WIDTH), mode="area")
        for pixels in named.values()
    ]
    network = fine_tune(photographs, steps, lambda: progress.advance(task))
    return dict(zip((*named, "both"), explain_photographs(network, photographs), strict=True))


def table(results: Results) -> Table:
    """The figures of both columns; times are medians, their ratios medians of paired ratios."""
    view = Table(
        title="B-cos models as they are, and after bcos_kernels.accelerate(model)",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    for heading in ("", "figure"):
        view.add_column(heading, no_wrap=True)
    for heading in ("reference", "accelerated", "comparison"):
        view.add_column(heading, justify="right", no_wrap=True)
    a, b = results.trainings
    subject = "digits, ResNet-18"
    delta = 100 * (b.accuracy - a.accuracy)
    view.add_row(subject, "test accuracy", f"{a.accuracy:.1%}", f"{b.accuracy:.1%}", f"{delta:+.1f} points")
    gap = max(abs(x - y) for x, y in zip(a.losses, b.losses, strict=True))
    view.add_row("", "loss, step 1", f"{a.losses[0]:.5f}", f"{b.losses[0]:.5f}", "")
    view.add_row("", f"loss, step {len(a.losses)}", f"{a.losses[-1]:.5f}", f"{b.losses[-1]:.5f}", "")
    view.add_row("", "loss curves", "", "", f"{gap:.1e} apart")
    medians = (f"{1e3 * statistics.median(t.seconds):.0f} ms" for t in (a, b))
    view.add_row("", "training step", *medians, speed(ratio(a.seconds, b.seconds)))
    saved = (f"{t.saved / 2**20:.1f} MiB" for t in (a, b))
    view.add_row("", "bytes saved", *saved, f"{b.saved / a.saved:.2f} x bytes")
    for name, explained in results.explained.items():
        s = summary(explained)
        view.add_section()
        times = (f"{1e3 * t:.0f} ms" for t in s["seconds"])
        view.add_row(name, "explanation", *times, speed(s["ratio"]))
        errors = (f"{e:.1e}" for e in s["errors"])
        view.add_row("", "error vs float64", *errors, f"{s['difference']:.1e} apart")
    view.caption = (
        "Times: medians, and the median of paired ratios. Differences: the largest.\n"
        "Explanations: of equal weights (full-size models: random ones), errors relative."
    )
    return view


def speed(quotient: float) -> str:
    return f"{quotient:.2f} x speed"
