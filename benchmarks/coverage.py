"""``python -m benchmarks.coverage CHECKOUT...``: are all layers and norms of public repositories' models accelerated?

Each model of :mod:`benchmarks.public_models` is built by its repository's code in a process of its own and run in
float64, as it is and accelerated. The table holds the largest relative differences of what they compute. The exit code
is 1 if a module is left alone that the table does not leave alone or one runs plain, a model does not run or a
difference exceeds ``BOUND``.

Besides torchvision and einops the models need transformers below 5 (language models) and mmengine (how-to-probe).
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

import bcos_kernels as bk
from bcos_kernels import tally
from bcos_kernels.adopt import Row, fingerprint
from bcos_kernels.adopt.alignment import WEIGHTS
from bcos_kernels.adopt.gate import ACT, METHOD
from bcos_kernels.adopt.kinds import kind_of
from bcos_kernels.adopt.layer import weighted
from bcos_kernels.adopt.layer_code import SLOW_NORM
from bcos_kernels.adopt.published import TABLE, published_mro
from bcos_kernels.compat import declare_torchvision_operators_when_needed
from bcos_kernels.text import aligned

from .command import Parser
from .fingerprints import apart, imported, title

declare_torchvision_operators_when_needed()
from .public_models import MODELS, UNUSED, Model  # noqa: E402

__all__ = ["main"]

BOUND = 1e-9

QUANTITIES = ("logits", "d input", "d parameters", "explanation", "late explanation", "loss on it", "buffers")
"""What is compared. A late explanation enters the mode between forward and backward, as model guidance does; the loss
on it and on the logits is differentiated outside of the mode, with respect to the parameters. The buffers are compared
after all of it."""


COLUMNS = {"layers": "layer", "alignments": "alignment", "norms": "norm", "attentions": "attention", "gates": "gate"}
"""Column -> the kind of modules that it counts."""


LEFT = {
    row["formula"]["left"]
    for section in json.loads(TABLE.read_text()).values()
    for row in section.values()
    if "left" in row["formula"]
}
"""Why the table leaves code alone that it knows."""


class Unused:
    """Stands for a name that a file imports and no model needs."""

    def __init__(self, *args, **kwargs) -> None:
        raise NotImplementedError("no model needs this")


@dataclass(frozen=True)
class Outcome:
    """What became of one model."""

    cells: tuple[str, ...]
    right: bool
    remarks: tuple[str, ...] = ()
    met: frozenset[str] = frozenset()
    """The fingerprints of its layers and norms, and of their parts."""


def main(argv: list[str] | None = None) -> int:
    """Prints the table; 1 if something is amiss."""
    parser = Parser(__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="CHECKOUT", help="in a folder named after its owner")
    options = parser.parse_args(argv)
    known = {model.repository for model in MODELS}
    for folder in options.folders:
        if not (folder / ".git").exists() or title(folder) not in known:
            parser.error(f"{folder}: not a checkout OWNER/NAME of {', '.join(sorted(known))}")
    rows, outcomes = [("repository", "model", *COLUMNS, *QUANTITIES)], []
    for folder in options.folders:
        for index, model in enumerate(MODELS):
            if model.repository == title(folder):
                outcomes.append(apart(outcome, folder, index))
                rows.append((model.repository, model.name, *outcomes[-1].cells))
                print(*rows[-1], *outcomes[-1].remarks, sep="  ", file=sys.stderr, flush=True)
    print(aligned(rows))
    for row, done in zip(rows[1:], outcomes, strict=True):
        for remark in done.remarks:
            print(f"{row[0]} {row[1]}: {remark}")
    met = frozenset().union(*(done.met for done in outcomes))
    for kind, table in json.loads(TABLE.read_text()).items():
        missing = [f"{digest} {row['class']}" for digest, row in table.items() if digest not in met]
        print(", ".join([f"{len(table) - len(missing)} of {len(table)} published {kind} ran", *missing]))
    return 0 if all(done.right for done in outcomes) else 1


def outcome(folder: Path, index: int) -> Outcome:
    """Builds and compares one model; for a process that ends with it."""
    model = MODELS[index]
    torch.set_num_threads(1)
    prepare_process()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            torch.manual_seed(0)
            module = model.make(imported(folder, folder / model.file)).double()
            x = torch.randn(2, *model.shape)
            buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
            theirs = measured(model, module, x)
            for name, buffer in module.named_buffers():
                buffer.copy_(buffers[name])
    except Exception as error:  # anything that a stranger's code can raise
        return Outcome(("-",) * (len(COLUMNS) + len(QUANTITIES)), False, (f"{type(error).__name__}: {error}",))
    report = bk.report(bk.accelerate(module))
    ours = measured(model, module, x)
    ran_plain = [key for key in tally.current() if key[0] == tally.PLAIN]
    by_reference = ("bcos_conv2d", "bcos_linear")  # a backend of this package, for what no kernel of it serves
    differences = [difference(a, b) for a, b in zip(ours, theirs, strict=True)]
    return Outcome(
        cells=(
            *(share(report.of(kind)) for kind in COLUMNS.values()),
            *(f"{d:.0e}" for d in differences),
        ),
        right=all(row.backend is not None or row.reason in LEFT for row in report.rows)
        and max(differences) <= BOUND
        and all(kind in by_reference for _, kind, _ in ran_plain),
        remarks=(
            *(f"{row.name} left alone: {row.reason}" for row in report.rows if row.backend is None),
            *(f"calls of {kind} ran plain: {reason}" for _, kind, reason in ran_plain),
        ),
        met=frozenset(fingerprints(module)),
    )


def prepare_process() -> None:
    """Makes this process one for a stranger's code: float64, no warnings, and something for each unused import."""
    torch.set_default_dtype(torch.float64)
    warnings.simplefilter("ignore")
    for name, attributes in UNUSED.items():
        sys.modules[name] = module = ModuleType(name)
        vars(module).update(dict.fromkeys(attributes, Unused))


def share(rows: Sequence[Row]) -> str:
    """How many of the modules are accelerated."""
    return f"{sum(row.backend is not None for row in rows)}/{len(rows)}"


def measured(model: Model, module: nn.Module, x: Tensor) -> tuple[Sequence[Tensor | None], ...]:
    """``QUANTITIES`` of a module in training mode, which sees the same random numbers each time."""
    parameters = [p for p in module.parameters() if p.requires_grad]

    def run(early: bool, late: bool) -> tuple[Tensor, Tensor, Tensor]:
        """The logits, a weighted sum of them and its gradient with respect to the input."""
        torch.manual_seed(1)
        inputs = x.clone().requires_grad_()
        explain(module, early)
        y = model.call(module, inputs)
        y = y if isinstance(y, Tensor) else y[-1]
        total = (y * torch.cos(torch.arange(y.numel())).view_as(y)).sum()
        explain(module, late)
        (gradient,) = torch.autograd.grad(total, inputs, create_graph=True)
        explain(module, False)
        return y, total, gradient

    def by_parameters(loss: Tensor) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)

    y, total, gradient = run(False, False)
    _, _, explanation = run(True, True)
    _, late_total, late = run(False, True)
    loss = late_total + late.square().sum() / late.detach().norm()
    results = [y], [gradient], by_parameters(total), [explanation], [late], by_parameters(loss)
    return *results, [1 + buffer.double() for buffer in module.buffers()]


def explain(module: nn.Module, on: bool) -> None:
    """Sets the explanation mode of every part that has one."""
    for part in module.modules():
        if hasattr(part, "set_explanation_mode"):
            part.set_explanation_mode(on)
        elif "detach" in vars(part):
            part.detach = on


def difference(ours: Sequence[Tensor | None], theirs: Sequence[Tensor | None]) -> float:
    """The largest relative difference of a tensor; infinite where theirs is zero or not finite and so says nothing.

    Without a gradient in theirs there is nothing to compare: a shortcut for b = 1 or 2 hides b from autograd.
    """
    found = [0.0]
    for a, b in zip(ours, theirs, strict=True):
        if b is not None:
            far = math.inf if a is None or not b.any() else ((a - b).norm() / b.norm()).item()
            found.append(math.inf if math.isnan(far) else far)
    return max(found)


def fingerprints(module: nn.Module) -> Iterator[str]:
    """Those of the B-cos layers and norms, of their linear parts, modes and norms for dilation."""
    for layer in (m for m in module.modules() if kind_of(m) is not None):
        if WEIGHTS in layer._modules:
            weights = layer.get_submodule(WEIGHTS)
            yield fingerprint.of(published_mro(type(weights)), ("forward", "unfold")).digest
            yield fingerprint.of(published_mro(type(weights.norm_func))).digest
        linear = weighted(layer) if "linear" in layer._modules else None
        for part in (layer, linear, layer._modules.get("dynamic_multiplication")):
            if part is not None:
                yield fingerprint.of(published_mro(type(part))).digest
        for name, root in (("calc_patch_norms", SLOW_NORM), (ACT, METHOD)):
            if name in vars(layer):
                yield fingerprint.of(published_mro(type(layer)), (root,)).digest


if __name__ == "__main__":
    raise SystemExit(main())
