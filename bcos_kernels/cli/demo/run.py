"""What the demo does: it trains, explains, prints the table and draws the picture."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from ... import accelerate
from ...text import aligned, many, progress
from ..measure import ratio
from ..terminal import entry_point
from .converting import HEIGHT, WIDTH, Fine, explain_photographs, fine_tune
from .explaining import Explained, explain, summary
from .images import Digits, load_digits, load_photographs
from .picture import Results, draw
from .training import WARM_UP, batches, build, train

__all__ = ["run"]

ZOO = {"ResNet-50": "resnet50", "ViT-B/16": "simple_vit_b_patch16_224"}
"""Full-size models that explain a photograph: shown name -> entry point of ``bcos.models.pretrained``."""
QUICK_ZOO = {"ResNet-18": "resnet18", "ViT-Ti/16": "simple_vit_ti_patch16_224"}
TUNING, QUICK_TUNING = (60, 160), (2, 2)
"""Steps of training before the conversion of the network for photographs, and after it."""
MODEL_STEPS = 20
"""How many steps of the progress a full-size model counts for."""
TITLE = "B-cos models as they are, and after bcos_kernels.accelerate(model)"
CAPTION = (
    "Times: medians, and the median of paired ratios. Differences: the largest.\n"
    "Bytes kept: what a training step keeps between its forward and its backward.\n"
    "Explanations: of equal weights (full-size models: random ones), errors relative."
)
NOTHING = ("",) * 5
QUICK_STEPS, QUICK_BATCH, QUICK_TEST = WARM_UP + 2, 8, 60


def run(epochs: int, seed: int, out: Path, quick: bool) -> Results:
    """Trains, explains, prints the table and writes the picture ``out``; needs the optional dependencies."""
    digits = load_digits()
    schedule = batches(len(digits.labels), epochs, seed)
    if quick:
        schedule = [indices[:QUICK_BATCH] for indices in schedule[:QUICK_STEPS]]
        test = digits.test_images[:QUICK_TEST], digits.test_labels[:QUICK_TEST]
        digits = Digits(digits.images, digits.labels, *test)
    count, repeats, zoo, tuning = (2, 1, QUICK_ZOO, QUICK_TUNING) if quick else (10, 5, ZOO, TUNING)
    with progress("demo", 2 * len(schedule) + count + MODEL_STEPS * len(zoo) + sum(tuning)) as advance:
        reference, accelerated = build(seed), accelerate(build(seed))
        step = partial(advance, "digits: ResNet-18, both in turns")
        trainings = train((reference, accelerated), digits, schedule, step)
        explained = explain_digits(reference, digits, count, repeats, partial(advance, "digits: explanations"))
        step = partial(advance, "photograph: full-size models", MODEL_STEPS)
        models = explain_models(zoo, seed, repeats, step)
        photographs = explain_converted(tuning, seed, partial(advance, "photographs: converted, fine-tuned"))
    results = Results((trainings[0], trainings[1]), explained, models, photographs)
    print(table(results))
    draw(results, out)
    print(f"{many(torch.get_num_threads(), 'thread')}, torch {torch.__version__}; picture: {out}")
    return results


def twin(model: nn.Module) -> nn.Module:
    """An accelerated copy of ``model``, of equal weights."""
    return accelerate(copy.deepcopy(model))


def explain_digits(
    model: nn.Module, digits: Digits, count: int, repeats: int, advance: Callable[[], None]
) -> list[Explained]:
    """Explanations of the first test images of ``count`` digits by the trained weights of the reference."""
    models = model.eval(), twin(model)
    explained = []
    for digit in range(count):
        image = digits.test_images[digits.test_labels == digit][:1]
        explained.append(explain(models, image, repeats, smooth=3))
        advance()
    return explained


def explain_models(zoo: dict[str, str], seed: int, repeats: int, advance: Callable[[], None]) -> dict[str, Explained]:
    """Explanations of a photograph by each model of ``zoo`` with random weights, for their times and errors."""
    from PIL import Image

    photograph = Image.fromarray(next(iter(load_photographs().values())))
    explained: dict[str, Explained] = {}
    for name, entry in zoo.items():
        torch.manual_seed(seed)
        model = entry_point(entry)(pretrained=False).eval().to(memory_format=torch.channels_last)
        image = model.transform(photograph).unsqueeze(0).to(memory_format=torch.channels_last)
        explained[name] = explain((model, twin(model)), image, repeats, smooth=15)
        advance()
    return explained


def explain_converted(steps: tuple[int, int], seed: int, advance: Callable[[], None]) -> dict[str, Fine]:
    """Explanations of the photographs by a network that was trained, converted and fine-tuned on patches of them."""
    torch.manual_seed(seed)
    named = load_photographs()
    photographs = [
        F.interpolate(torch.tensor(pixels).permute(2, 0, 1)[None] / 255, size=(HEIGHT, WIDTH), mode="area")
        for pixels in named.values()
    ]
    network = fine_tune(photographs, steps, advance)
    return dict(zip((*named, "both"), explain_photographs(network, photographs), strict=True))


def table(results: Results) -> str:
    """The figures of both columns; times are medians, their ratios medians of paired ratios."""
    a, b = results.trainings
    gap = max(abs(x - y) for x, y in zip(a.losses, b.losses, strict=True))
    medians = (f"{1e3 * statistics.median(t.seconds):.0f} ms" for t in (a, b))
    saved = (f"{t.saved / 2**20:.1f} MiB" for t in (a, b))
    accuracy = f"{100 * (b.accuracy - a.accuracy):+.1f} points"
    rows: list[tuple[str, ...]] = [
        ("", "figure", "reference", "accelerated", "comparison"),
        NOTHING,
        ("digits, ResNet-18", "test accuracy", f"{a.accuracy:.1%}", f"{b.accuracy:.1%}", accuracy),
        ("", "loss, step 1", f"{a.losses[0]:.5f}", f"{b.losses[0]:.5f}", ""),
        ("", f"loss, step {len(a.losses)}", f"{a.losses[-1]:.5f}", f"{b.losses[-1]:.5f}", ""),
        ("", "loss curves", "", "", f"{gap:.1e} apart"),
        ("", "training step", *medians, speed(ratio(a.seconds, b.seconds))),
        ("", "bytes kept", *saved, f"{b.saved / a.saved:.2f} x bytes"),
    ]
    for name, explained in results.explained.items():
        s = summary(explained)
        times, errors = (f"{1e3 * t:.0f} ms" for t in s["seconds"]), (f"{e:.1e}" for e in s["errors"])
        rows += [NOTHING, (name, "explanation", *times, speed(s["ratio"]))]
        rows.append(("", "error vs float64", *errors, f"{s['difference']:.1e} apart"))
    return f"{TITLE}\n\n{aligned(rows, right=(2, 3, 4))}\n\n{CAPTION}"


def speed(quotient: float) -> str:
    return f"{quotient:.2f} x speed"
