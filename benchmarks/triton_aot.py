"""``python -m benchmarks.triton_aot``: what the Triton kernels compile to, and what the cost model predicts.

Nothing is run and no GPU is needed: registers, copies and instructions are read from the binaries that Triton makes,
times are **predicted**, not measured.
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from math import prod
from multiprocessing import get_context
from pathlib import Path

from bcos_kernels.cli.bench.stored import header, store
from bcos_kernels.cli.bench.tables import Part, Table, markdown
from bcos_kernels.cli.bench.workloads import Layer, workloads
from bcos_kernels.cli.measure import geomean
from bcos_kernels.cli.terminal import at_least
from bcos_kernels.core.candidate import DIRECTIONS
from bcos_kernels.gpu import aot
from bcos_kernels.gpu.launch import Launch
from bcos_kernels.gpu.launches import launches
from bcos_kernels.text import progress
from bcos_kernels.transform import TRANSFORM, Call, traffic
from bcos_kernels.transform.call import of_shapes

from .command import Parser, heading

__all__ = ["inspected", "loop", "main", "predicted", "call_of"]

SECOND = "double backward"
"""The derivative of an explanation in the early mode, beside that of a plain layer's gradient."""
IMAGES, IMAGES_OF_TOKENS = 256, 64  # a transformer's batch has 196 rows an image
QUICK = (
    r"resnet50/(56x56-(64-k3|256-k1s1-64)|14x14-1024-k1s1-256)|resnext50/56x56-128-|vit_s/\d+-384-1536|"
    r"convnext_t/56x56-96-dw"
)
WAYS = tuple(dict.fromkeys(c.name for c in TRANSFORM.candidates if c.backend == "triton" or c.compiles))
CLOCK = {"sm_90": (132, 1.755e9, 4096)}
"""Multiprocessors, cycles/s and FLOP/cycle of one in half precision (H200), for the times of loops."""
PRODUCTS = {
    "tcgen05": r"tcgen05\.mma\.",
    "wgmma": r"wgmma\.mma_async",
    "mma.sync": r"mma\.sync",
    "mfma": r"v_mfma_",
    "dot": r"v_dot\d",
}


# ------------------------------------------------------------------------------------------------ layers


def call_of(layer: Layer, arch: str) -> Call:
    """The layer in bf16."""
    spec = layer.spec
    window = {} if spec.is_linear else {"stride": spec.stride, "padding": spec.padding, "groups": spec.groups}
    return of_shapes(layer.x_shape, layer.weight_shape, arch=arch, **window)


def serving(call: Call, direction: str, backends: str = "triton") -> list:
    """The candidates of these backends for one direction of a call."""
    return [c for c in TRANSFORM.candidates_of(backends) if c.can_serve(call, direction)]


def predictable(call: Call, direction: str) -> list:
    """Those whose times are predicted: Triton's, and the graphs of cuDNN, whose plans are taken to be there."""
    return serving(call, direction) + [c for c in serving(call, direction, "cuda") if c.compiles]


def selected(pattern: str) -> list[Layer]:
    """The layers of ResNet-50, ViT-S and ConvNeXt-T and the grouped ones of ResNeXt-50 whose name matches."""
    found = workloads(pattern, IMAGES, IMAGES_OF_TOKENS, ("resnet50", "vit_s", "convnext_t", "resnext50"))
    layers = [layer for layer in found if isinstance(layer, Layer)]
    return [layer for layer in layers if layer.model != "resnext50" or layer.spec.groups > 1]


# ------------------------------------------------------------------------------------------------ predictions


def predicted(found: list[Layer], arch: str) -> list[dict]:
    """Times in µs by the cost model, for each layer and direction."""
    rows = []
    for layer in found:
        call = call_of(layer, arch)
        for direction in DIRECTIONS:
            times = {c.name: 1e6 * c.cost(call, direction) for c in predictable(call, direction)}
            plain, chosen = 1e6 * traffic.plain_seconds(call, direction), min(times, key=times.get)
            row = {"layer": layer.name, "model": layer.model, "direction": direction, "plain": plain} | times
            rows.append(row | {"chosen": chosen, "chosen/plain": times[chosen] / plain})
        plain, vendor = 1e6 * traffic.plain_seconds(call, "training"), 1e6 * traffic.seconds(call, traffic.second(call))
        row = {"layer": layer.name, "model": layer.model, "direction": SECOND, "plain": plain, "vendor": vendor}
        rows.append(row | {"chosen": "vendor", "chosen/plain": vendor / plain})
    return rows


def prediction_table(rows: list[dict], arch: str) -> Iterator[Part]:
    yield f"## {arch}: predicted, not measured (cost model, bf16, batch {IMAGES}), µs"
    lines = []
    for row in rows:
        times = (f"{row[name]:.0f}" if name in row else "–" for name in ("plain", *WAYS))
        lines.append((row["layer"], row["direction"], *times, row["chosen"], f"{row['chosen/plain']:.2f}"))
    head = ("layer", "direction", "plain", *WAYS, "chosen", "chosen ÷ plain")
    yield Table(head, lines, frozenset(range(2, len(head))) - {len(head) - 2})
    directions, means = (*DIRECTIONS, SECOND), []
    for model in dict.fromkeys(row["model"] for row in rows):
        found = ([r["chosen/plain"] for r in rows if (r["model"], r["direction"]) == (model, d)] for d in directions)
        means.append((model, *(f"{geomean(ratios):.2f}" for ratios in found)))
    yield Table(("predicted geomean of chosen ÷ plain", *directions), means, frozenset(range(1, 5)))


# ------------------------------------------------------------------------------------------------ binaries


def loop(sass: str) -> Counter[str]:
    """Instructions of the shortest loop with a product on a tensor core, by name; empty where there is none."""
    code: list[str] = []
    labels: dict[str, int] = {}
    best: Counter[str] = Counter()
    for line in sass.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(code)
        elif instruction := re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*?);", line):
            code.append(instruction[1])
    exits = [at for at, instruction in enumerate(code) if instruction.split()[-1] == "EXIT"]
    code = code[: exits[-1] + 1] if exits else code
    for end, instruction in enumerate(code):
        target = re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", instruction)
        if target is None or labels.get(target[1], end + 1) > end:
            continue
        body = [re.sub(r"^@!?U?P\w+\s+", "", text) for text in code[labels[target[1]] : end + 1]]
        mix = Counter(text.split()[0].split(".")[0] for text in body)
        if any("MMA" in name for name in mix) and (not best or mix.total() < best.total()):
            best = mix
    return best


def operands(ptx: str) -> str:
    """Where wgmma takes A from: shared memory (SS) or registers (RS)."""
    after = [m[0].split("}", 1)[1].lstrip(" ,\t\n") for m in re.finditer(r"wgmma\.mma_async[^;]*;", ptx)]
    found = Counter("RS" if rest.startswith("{") else "SS" for rest in after)
    return "+".join(sorted(found))


def copies(assembly: str) -> str:
    """How tiles reach shared memory, the widest first; plain loads where nothing else does."""
    if "cp.async.bulk.tensor" in assembly:
        return "TMA"
    widths = {
        int(m[1], 0) for m in re.finditer(r"cp\.async\.c[ag]\.shared\.global[^;]*?, (0x[0-9a-f]+|\d+)[,;]", assembly)
    }
    if widths:
        return "cp.async " + "/".join(f"{width} B" for width in sorted(widths, reverse=True))
    return "buffer_load" if "buffer_load" in assembly else "global_load" if "global_load" in assembly else "ld.global"


def inspected(what: aot.Specialisation) -> dict:
    """One row about a kernel, made in a worker process; its ``error`` where it does not compile."""
    constants = dict(what.constants)
    tile = [constants[name] for name in ("BM", "BN", "BK") if name in constants]
    row = {"arch": what.arch, "kernel": what.kernel, "tile": tile, "warps": what.warps}
    row["stages"] = what.stages
    try:
        kernel = aot.compiled(what)
    except Exception as error:
        return row | {"error": f"{type(error).__name__}: {error}"[-1000:]}
    row |= kernel.resources._asdict() | {"excesses": kernel.excesses(), "copies": copies(kernel.assembly)}
    unit = next((name for name, pattern in PRODUCTS.items() if re.search(pattern, kernel.assembly)), None)
    row |= {"products": unit, "operands": operands(kernel.assembly)}
    if aot.ARCHITECTURES[what.arch].target.backend == "cuda":
        row["loop"] = dict(loop(aot.disassembled(kernel.binary)).most_common())
    return row


def started(chosen: list[Layer], arch: str) -> dict[aot.Specialisation, tuple[str, Call, Launch]]:
    """Every distinct kernel of the layers in every candidate's first tile, with the launch that needs it."""
    found = {}
    for layer in chosen:
        call = call_of(layer, arch)
        for direction in DIRECTIONS:
            for candidate in serving(call, direction):
                for launch in launches(TRANSFORM, call, direction, candidate.name):
                    origin = f"{layer.name} {direction} {candidate.name}"
                    found.setdefault(aot.specialise(launch, arch), (origin, call, launch))
    return found


def loop_time(row: dict, call: Call, grid: tuple[int, ...]) -> dict:
    """Cycles of a step of the loop and predicted µs of all steps, of products on a GPU in ``CLOCK``.

    A multiprocessor issues one instruction to each of four warps a cycle. None where TMA copies: a program of these
    kernels takes many tiles, whose ends are branches of the loop.
    """
    if row["arch"] not in CLOCK or not row.get("loop") or len(row["tile"]) != 3 or row["copies"] == "TMA":
        return {}
    processors, rate, flops = CLOCK[row["arch"]]
    m, n, k = row["tile"]
    issue, tensor = sum(row["loop"].values()) * row["warps"] / 4, 2 * m * n * k / flops
    depth = call.pack * (call.group_channels if "fwd" in row["kernel"] else call.group_filters)
    steps = -(-call.taps * depth // k) if call.flat and "fwd" in row["kernel"] else call.taps * -(-depth // k)
    if "wgrad" in row["kernel"]:
        steps = -(-call.pixels // (grid[2] * k))
    cycles = prod(grid) * steps * max(issue, tensor)
    return {"issue_cycles": issue, "tensor_cycles": tensor, "loop_us": 1e6 * cycles / (processors * rate)}


def binary_table(rows: list[dict], arch: str) -> Iterator[Part]:
    yield f"## {arch}: what the kernels compile to"
    head = (
        "kernel", "first of", "tile", "warps × stages", "registers", "spills, B", "shared, KiB", "products", "copies",
        "loop: instructions", "issue ÷ tensor cycles", "predicted µs of the loop",
    )  # fmt: skip
    lines: list[tuple[str, ...]] = []
    for row in rows:
        if "error" in row:
            told = (row["kernel"], row["of"], f"does not compile: {row['error'].splitlines()[-1]}")
            lines.append(told + ("",) * (len(head) - len(told)))
            continue
        mix = Counter(row.get("loop", {}))
        shown = f"{mix.total()}: " + " ".join(f"{name} {count}" for name, count in mix.most_common(6)) if mix else "–"
        cycles = f"{row['issue_cycles']:.0f} ÷ {row['tensor_cycles']:.0f}" if "issue_cycles" in row else "–"
        cells = (
            row["kernel"].removesuffix("_kernel"), row["of"], "×".join(map(str, row["tile"])),
            f"{row['warps']} × {row['stages']}", row["registers"], row["spills"], f"{row['shared'] / 1024:.0f}",
            " ".join(filter(None, (row["products"], row["operands"]))) or "–", row["copies"], shown, cycles,
            f"{row['loop_us']:.0f}" if "loop_us" in row else "–",
        )  # fmt: skip
        lines.append(tuple(map(str, cells)))
    yield Table(head, lines, frozenset((4, 5, 6, 10, 11)))


# ------------------------------------------------------------------------------------------------ command


def main(argv: list[str] | None = None) -> int:
    """Prints the tables; returns 1 where a kernel does not compile, spills, or exceeds a GPU."""
    parser = Parser(__doc__)
    allowed = f"of {', '.join(aot.ARCHITECTURES)} (default sm_90)"
    parser.add_argument(
        "--arch", nargs="+", default=["sm_90"], choices=list(aot.ARCHITECTURES), metavar="ARCH", help=allowed
    )
    parser.add_argument("--quick", action="store_true", help="six typical layers instead of all")
    parser.add_argument("--layers", default="", metavar="REGEX", help="layers whose name matches (default all)")
    parser.add_argument(
        "--workers", type=at_least(1), metavar="N", default=os.cpu_count(), help="that compile (default one a core)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="store the figures as JSON, too")
    arguments = parser.parsed(argv)
    chosen = selected(arguments.layers or (QUICK if arguments.quick else ""))
    if not chosen:
        parser.error(f"--layers {arguments.layers!r} matches no layer")
    machine = {"device": "none: kernels are compiled, times predicted with the rates of bcos_kernels.gpu.cost"}
    settings = {"images": IMAGES, "vit_images": IMAGES_OF_TOKENS, "dtype": "bf16", "memory_format": "channels_last"}
    result = header(arguments.command, machine, settings, ("triton",)) | {"predicted": {}, "compiled": []}
    print(heading(result))
    print("Compiled ahead of time; times are predicted, nothing was measured.")
    exceeding = 0
    with ProcessPoolExecutor(arguments.workers, mp_context=get_context("spawn")) as pool:
        for arch in arguments.arch:
            result["predicted"][arch] = predicted(chosen, arch)
            found = started(chosen, arch)
            work = {pool.submit(inspected, what): what for what in found}
            rows = {}
            with progress(f"compiling for {arch}", len(work)) as advance:
                for done in as_completed(work):
                    origin, p, launch = found[work[done]]
                    row = done.result()
                    rows[work[done]] = {"of": origin} | row | loop_time(row, p, launch.grid)
                    advance(f"{arch}: {row['kernel']}")
            ordered = [rows[what] for what in found]
            result["compiled"] += ordered
            exceeding += sum("error" in row or bool(row["excesses"]) for row in ordered)
            if arguments.out is not None:
                store(result, arguments.out)
            print("\n" + markdown([*prediction_table(result["predicted"][arch], arch), *binary_table(ordered, arch)]))
    result["complete"] = True
    if arguments.out is not None:
        store(result, arguments.out)
    print(f"\n{exceeding} kernels spill or exceed the registers or the shared memory of a GPU")
    return 1 if exceeding else 0


if __name__ == "__main__":
    sys.exit(main())
