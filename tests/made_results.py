"""Results as a benchmark run stores them, made with the noise of real machines instead of being measured."""

import json
from functools import cache
from pathlib import Path

import numpy as np

from bcos_kernels.cli.measure import summarise

RATES = {"bytes/s": 2.0e10, "FLOP/s": 4.0e11}
MEASURES = {"forward": 1.0, "explanation": 2.0, "training": 3.0}
TITLES = {"resnet50": "ResNet-50", "resnext50": "ResNeXt-50", "densenet121": "DenseNet-121", "vgg11": "VGG-11"}
TITLES |= {"convnext_t": "ConvNeXt-T", "vit_s": "ViT-S"}
MODEL_MEASURES = ("inference", "training", "explanation", "class explanations", "explanation loss")
SLOWER = {"plain": 1.0, "reference": 1.9, "compiled": 1.5, "ours": 1.08}
"""Time relative to the plain layer, before noise."""
CPU = {"cpu": "AMD EPYC", "cores": 2, "threads": 2, "capability": "AVX512", "system": "Linux x86_64"}
GPU = CPU | {"device": "NVIDIA H200", "driver": "570.1", "compute_capability": "9.0"}


def shapes():
    """``(workload, model, FLOPs, bytes)`` of 80 layers forward in fp32, batch 8, shaped as those of three models."""
    for stage in range(4):
        size, width = 56 >> stage, 64 << stage
        for i, o, k in ((width, width, 1), (width, width, 3), (width, 4 * width, 1), (4 * width, width, 1)) * 3:
            pixels = 8 * size * size
            yield f"resnet50/{size}x{size}-{i}-k{k}s1-{o}", "resnet50", 2 * pixels * i * o * k * k, 4 * pixels * (i + o)
        channels, pixels = 96 << stage, 8 * size * size
        for _ in range(3):
            yield (
                f"convnext_t/{size}x{size}-{channels}-dw7s1-{channels}",
                "convnext_t",
                98 * pixels * channels,
                (8 * pixels * channels),
            )
    for i, o in ((384, 384), (384, 1536), (1536, 384), (384, 1152)) * 8:
        yield f"vit_s/1568-{i}-{o}", "vit_s", 2 * 1568 * i * o, 4 * (1568 * (i + o) + i * o)


def times(rng, seconds, rounds, noise, contenders, wander=0.0):
    """Contender -> seconds of each round: log-normal, a load that drifts and hits a whole round, and outliers.

    ``wander`` is how far each contender drifts on its own besides.
    """
    load = np.exp(0.1 * np.cumsum(rng.normal(size=rounds)) / np.sqrt(rounds) + 0.3 * (rng.random(rounds) < 0.05))
    found = {}
    for name, factor in contenders.items():
        drift = wander * np.cumsum(rng.normal(size=rounds)) / np.sqrt(rounds)
        own = np.exp(noise * rng.normal(size=rounds) + drift) * np.where(
            rng.random(rounds) < 0.03, 1 + 2 * rng.random(rounds), 1
        )
        found[name] = (seconds * factor * load * own).tolist()
    return found


def contender(samples, **facts):
    return {"samples": samples, **summarise(samples), "errors": None, "peak": None, "saved": None, **facts}


def layer_rows(rng, changed, noise, between, wander):
    """276 rows; ``between`` is how far a contender moves from one run of the same code to the next."""
    seen = {}
    for workload, model, flops, size in shapes():
        seen[workload] = seen.get(workload, -1) + 1
        name = workload + f"-{seen[workload]}" * (seen[workload] > 0)
        for measure, work in MEASURES.items():
            floor = max(work * flops / RATES["FLOP/s"], work * size / RATES["bytes/s"])
            own = {k: f * changed.get((name, measure, k), 1.0) for k, f in SLOWER.items()}
            own = {k: f * float(np.exp(between * rng.normal())) for k, f in own.items()}
            rounds = int(np.clip(0.5 / (6 * floor), 8, 100))
            sampled = times(rng, 1.4 * floor, rounds, rng.uniform(*noise), own, wander)
            errors = {"plain": None, "reference": [1.1e-7], "compiled": [1.1e-7], "ours": [1.0e-7]}
            yield {
                "scope": "layer", "workload": name, "model": model, "group": TITLES[model], "measure": measure,
                "batch": 8, "image": 224, "scaling": None, "served": {"ours": {"cpu": 1}}, "refused": {},
                "contenders": {
                    k: contender(v, errors=errors[k], saved=int(size * SLOWER[k])) for k, v in sampled.items()
                },
                "floor": {"flops": work * flops, "bytes": work * size, "seconds": floor},
            }  # fmt: skip


def model_row(rng, model, measure, batch, seconds, scaling=None, image=224):
    own = {name: factor for name, factor in SLOWER.items() if scaling is None or name != "compiled"}
    sampled = times(rng, seconds, 8, 0.04, own)
    return {
        "scope": "model", "workload": model, "model": model, "group": TITLES[model], "measure": measure, "batch": batch,
        "image": image, "scaling": scaling, "served": {"ours": {"cpu": 53}}, "refused": {}, "floor": None,
        "contenders": {k: contender(v, errors=[6e-5], saved=int(4e8 * SLOWER[k] ** 2)) for k, v in sampled.items()},
    }  # fmt: skip


def model_rows(rng):
    models = {"resnet50": 1.5, "resnext50": 1.6, "densenet121": 1.2, "vgg11": 1.4, "convnext_t": 1.3, "vit_s": 1.0}
    for model, seconds in models.items():
        for i, measure in enumerate(MODEL_MEASURES):
            yield model_row(rng, model, measure, 8, seconds * (0.5 + i / 2))
    for batch in (1, 2, 4, 8, 16, 32):
        yield model_row(rng, "resnet50", "training", batch, 0.1 + 0.18 * batch, "batch")
    for image in (64, 128, 256, 512):
        yield model_row(rng, "resnet50", "training", 8, 0.05 + 1.5 * (image / 224) ** 2, "image", image)


def result(seed=0, changed=None, noise=(0.05, 0.15), between=0.0, wander=0.0, machine=None, dtype="fp32"):
    """A complete result; ``changed`` maps ``(workload, measure, contender)`` to a factor of its time."""
    rng = np.random.default_rng(seed)
    rows = [*layer_rows(rng, changed or {}, noise, between, wander), *model_rows(rng)]
    return {
        "schema": 2, "started": "2026-11-21T02:19:21Z", "command": "python -m bcos_kernels bench",
        "commit": "431f4d43a6f2235fd543336e6d9f548a36a582a6", "machine": machine or CPU, "complete": True,
        "versions": {"bcos_kernels": "0.1.0", "torch": "2.13.0", "python": "3.11.7"}, "not_measured": [],
        "settings": {"batch": {"layers": 8, "models": 8}, "dtype": dtype, "memory_format": "channels_last"},
        "rates": RATES, "rows": rows,
    }  # fmt: skip


@cache
def made(gpu=False):
    """A result of either machine, which is not to be changed."""
    return result(machine=GPU if gpu else CPU, dtype="bf16" if gpu else "fp32")


def stored(path: Path, document) -> str:
    path.write_text(json.dumps(document), encoding="utf-8")
    return str(path)
