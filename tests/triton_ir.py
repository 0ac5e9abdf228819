"""What Triton's intermediate representations say about a kernel: races of its copies, and offsets that could wrap.

Races are found by running the GPU form (TTGIR) with buffers instead of values: the loop that Triton pipelined, its
buffer indices, its copies and its waits. Wrapping offsets are found by following rows through the form before (TTIR).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

ROUNDS = 9  # of each loop: every buffer of a pipeline is used more than twice
LARGEST_FACTOR = 2048  # a constant factor of a row: a tile's size, or the groups that the largest row counts in
NAME = re.compile(r"%[\w$.-]+(?:#\d+)?")


# ------------------------------------------------------------------------------------------------ operations


@dataclass
class Operation:
    """One operation: ``results = name text``, and the regions that it holds."""

    results: list[str]
    name: str
    text: str
    regions: list[list[Operation]] = field(default_factory=list)

    @property
    def operands(self) -> list[str]:
        """The values it takes; for loops see ``scf.for`` below."""
        return NAME.findall(self.text.split(" : ")[0])

    @property
    def result_type(self) -> str:
        return re.sub(r" loc\(.*", "", self.text).rpartition(" : ")[2].rpartition(" to ")[2]


def operations(module: str) -> list[Operation]:
    """The body of the one function of a module that has been inlined."""
    lines = iter(module.splitlines())
    header = next(line for line in lines if "tt.func public" in line)
    assert header.rstrip().split(" loc(")[0].endswith("{") or header.rstrip().endswith("{"), header
    return _region(lines)


def _region(lines: Iterator[str]) -> list[Operation]:
    """Operations up to the brace that closes their region."""
    found = []
    for line in lines:
        line = line.strip()
        if line.startswith("} else {"):
            found[-1:] = [found[-1]]
            return [*found, Operation([], "else", "", [_region(lines)])]
        if line.startswith("}"):
            return found
        if not line or line.startswith(("^", "//", "#")):
            continue
        matched = re.match(r'(?:(%[^=]*?) = )?"?([\w.]+)"?(.*)', line)
        assert matched, f"not an operation: {line}"
        results, name, text = matched.groups()
        operation = Operation(_results(results or ""), name, text)
        if re.sub(r" loc\(.*", "", line).endswith("{"):
            inner = _region(lines)
            other = inner.pop().regions if inner and inner[-1].name == "else" else []
            operation.regions = [inner, *other]
        found.append(operation)
    return found


def _results(text: str) -> list[str]:
    """``%a, %b:2`` as %a, %b#0 and %b#1."""
    found = re.findall(r"(%[\w$.-]+)(?::(\d+))?", text)
    return [name for stem, count in found for name in ([f"{stem}#{i}" for i in range(int(count))] if count else [stem])]


def _loop(operation: Operation) -> tuple[str, list[str], dict[str, str]]:
    """(induction variable, [from, to, step], {argument: its first value}) of an ``scf.for``."""
    variable, *bounds = NAME.findall(operation.text.partition("iter_args")[0].split(" : ")[0])[:4]
    carried = re.search(r"iter_args\((.*?)\) ->", operation.text)
    pairs = re.findall(r"(%[\w$.-]+) = (%[\w$.-]+(?:#\d+)?)", carried[1]) if carried else []
    return variable, bounds, dict(pairs)


# ------------------------------------------------------------------------------------------------ races

Buffer = tuple[str, int]


@dataclass
class Product:
    """An asynchronous product that may not have finished: the buffers it uses, and the barrier that it arrives at."""

    buffers: set[Buffer]
    barrier: Buffer | None = None


VIEWS = (
    "ttg.memdesc_trans",
    "ttg.memdesc_reshape",
    "ttg.memdesc_subslice",
    "ttg.memdesc_reinterpret",
    "ttng.tmem_subslice",
)
UNCONCERNED = (
    "ttng.init_barrier", "ttng.inval_barrier", "ttng.fence_async_shared", "ttng.fence", "ttng.barrier_expect",
)  # fmt: skip
WRITES = {"ttg.async_copy_global_to_local": 1, "ttg.local_store": 1, "ttng.tmem_store": 1}
"""Operation -> which operand it writes to."""
SCALARS = {
    "arith.addi": lambda a, b: a + b,
    "arith.subi": lambda a, b: a - b,
    "arith.muli": lambda a, b: a * b,
    "arith.andi": lambda a, b: a & b,
    "arith.ori": lambda a, b: a | b,
    "arith.xori": lambda a, b: a ^ b,
    "arith.remsi": lambda a, b: a % b,
    "arith.divsi": lambda a, b: a // b,
    "arith.ceildivsi": lambda a, b: -(-a // b),
    "arith.maxsi": max,
    "arith.extui": lambda a: a,
    "arith.extsi": lambda a: a,
    "arith.trunci": lambda a: a,
}
COMPARISONS = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "slt": lambda a, b: a < b,
    "sle": lambda a, b: a <= b,
    "sgt": lambda a, b: a > b,
    "sge": lambda a, b: a >= b,
}


class Pipeline:
    """Runs a kernel's TTGIR on buffers.

    ``races`` names every buffer that is written while a product, or a copy to global memory, reads it, or that is read
    before TMA has filled it. ``arguments`` are integers of the kernel whose values decide what it does next.
    """

    def __init__(self, ttgir: str, **arguments: int) -> None:
        self.values: dict[str, object] = {f"%{name}": value for name, value in arguments.items()}
        self.pending: list[Product] = []
        self.landing: dict[Buffer, Buffer] = {}
        """Buffers that TMA fills, and the barriers at which it says that it has."""
        self.leaving: list[Buffer] = []
        """Buffers that TMA copies to global memory."""
        self.products = self.copies = 0
        self.races: list[str] = []
        self.run(operations(ttgir))

    def run(self, region: list[Operation]) -> list:
        """Runs a region; returns what it yields."""
        for operation in region:
            if operation.name == "scf.yield":
                return [self.values.get(name) for name in operation.operands]
            values = self.step(operation)
            self.values.update(zip(operation.results, values, strict=False))
        return []

    def step(self, operation: Operation) -> list:
        """The values of an operation's results, as far as they matter: integers and buffers."""
        name, given = operation.name, [self.values.get(operand) for operand in operation.operands]
        buffers = [value for value in given if isinstance(value, tuple)]
        if name == "scf.for":
            return self.loop(operation)
        if name == "scf.if":
            return self.branches(operation, given[0])
        if name == "arith.constant":
            value = re.match(r" (-?\d+|true|false) : ", operation.text)
            return [
                None
                if value is None
                else {"true": 1, "false": 0}.get(value[1])
                if value[1].isalpha()
                else int(value[1])
            ]
        if name == "arith.cmpi":
            known = None not in given and not buffers
            return [int(COMPARISONS[operation.text.split(",")[0].strip()](*given)) if known else None]
        if name == "arith.select":
            return [None if given[0] is None else given[1] if given[0] else given[2]]
        if name in ("tt.get_program_id", "tt.get_num_programs"):
            return [self.values.get(f"%{name[7:]}")]
        if name in SCALARS:
            return [None if None in given else SCALARS[name](*given)]
        if name in ("ttg.local_alloc", "ttng.tmem_alloc"):
            buffer = (operation.results[0], 0)
            if given:
                self.write(buffer)
            return [buffer]
        if name == "ttg.memdesc_index":
            assert isinstance(given[1], int), f"buffer index unknown: {operation.text}"
            return [(given[0][0], given[1])]
        if name in VIEWS:
            return [given[0]]
        if name in WRITES:
            self.write(given[WRITES[name]])
        elif name == "ttng.async_tma_copy_global_to_local":
            self.copies += 1
            self.write(buffers[0])
            self.landing[buffers[0]] = buffers[1]
        elif name == "ttng.async_tma_copy_local_to_global":
            self.read(buffers[0])
            self.leaving.append(buffers[0])
        elif name == "ttng.async_tma_store_wait":
            kept = int(re.search(r"pendings = (\d+)", operation.text)[1])
            self.leaving = self.leaving[max(0, len(self.leaving) - kept) :]
        elif name == "ttg.local_load":
            self.read(given[0])
        elif name == "ttng.tc_gen5_mma" and given[4] == 0:
            pass  # its predicate is false: it would be of a step behind the last
        elif name in ("ttng.warp_group_dot", "ttng.tc_gen5_mma"):
            self.multiply(operation, given)
        elif name == "ttng.warp_group_dot_wait":
            kept = int(re.search(r"pendings = (\d+)", operation.text)[1])
            self.pending = self.pending[max(0, len(self.pending) - kept) :]
            return given
        elif name == "ttng.wait_barrier":
            self.landing = {buffer: barrier for buffer, barrier in self.landing.items() if barrier != given[0]}
            reached = [i for i, product in enumerate(self.pending) if product.barrier == given[0]]
            self.pending = self.pending[reached[-1] + 1 :] if reached else self.pending
        elif name == "ttng.tc_gen5_commit":
            for product in self.pending:
                product.barrier = product.barrier or given[0]
        elif name == "ttng.tmem_load":
            self.write(given[0])  # not written, but not to be read either while a product may write it
        elif name == "ttg.local_dealloc":
            for product in self.pending:
                for buffer in [b for b in product.buffers if b[0] == given[0][0]]:
                    self.write(buffer)
        elif buffers and name not in UNCONCERNED:
            raise AssertionError(f"not known what it does to a buffer: {name}{operation.text}")
        return [None] * len(operation.results)

    def write(self, buffer: Buffer) -> None:
        if buffer in self.leaving or any(buffer in product.buffers for product in self.pending):
            self.races.append(f"{buffer[0]}[{buffer[1]}]")

    def read(self, buffer: Buffer) -> None:
        if buffer in self.landing:
            self.races.append(f"{buffer[0]}[{buffer[1]}] before it is filled")

    def multiply(self, operation: Operation, given: list) -> None:
        self.products += 1
        for value in given[:2]:
            if isinstance(value, tuple):
                self.read(value)
        if "isAsync = true" in operation.text or "is_async" in operation.text:
            barrier = given[5] if operation.name == "ttng.tc_gen5_mma" and len(given) > 5 else None
            self.pending.append(Product({value for value in given[:3] if isinstance(value, tuple)}, barrier))

    def loop(self, operation: Operation) -> list:
        variable, bounds, first = _loop(operation)
        start, end, stride = (self.values.get(bound) for bound in bounds)
        turns = ROUNDS if None in (start, end, stride) else min(ROUNDS, -(-(end - start) // stride))
        carried = [self.values.get(value) for value in first.values()]
        for turn in range(turns):
            self.values[variable] = None if None in (start, stride) else start + turn * stride
            self.values.update(zip(first, carried, strict=True))
            carried = self.run(operation.regions[0])
        return carried

    def branches(self, operation: Operation, condition) -> list:
        """Both where the condition is not known; what follows continues from the first."""
        if condition is not None:
            taken = operation.regions[0 if condition else 1 : 1 if condition else 2]
            return self.run(taken[0]) if taken else []
        before = self.pending, self.landing, self.leaving
        ends = []
        for region in operation.regions:
            self.pending, self.landing, self.leaving = list(before[0]), dict(before[1]), list(before[2])
            ends.append((self.run(region), self.pending, self.landing, self.leaving))
        yielded, self.pending, self.landing, self.leaving = ends[0]
        return yielded


# ------------------------------------------------------------------------------------------------ offsets


def wrapping_products(ttir: str) -> list[str]:
    """Products in 32 bits of a row's index (of pixels, or of pixels × groups) with a length that is not a constant.

    A row's index is what the first program index and the loops over ``pixels`` or ``rows`` lead to; a remainder of it
    is a place within an image.
    """
    found: dict[str, None] = {}
    header = next(line for line in ttir.splitlines() if "tt.func public" in line)
    rows, constants = {name for name in ("%pixels", "%rows") if f"{name}:" in header}, {}

    def visit(region: list[Operation]) -> list[str]:
        for operation in region:
            operands, name = operation.operands, operation.name
            if name == "scf.yield":
                return operands
            if name == "arith.constant":
                value = re.match(r" (?:dense<)?(-?\d+)>? : ", operation.text)
                if value:
                    constants[operation.results[0]] = abs(int(value[1]))
            elif name == "tt.splat" and operands[0] in constants:
                constants[operation.results[0]] = constants[operands[0]]
            elif name == "scf.for":
                variable, bounds, first = _loop(operation)
                if rows & set(bounds):
                    rows.add(variable)
                for _ in range(2):
                    rows.update(name for name, value in first.items() if value in rows)
                    yielded = visit(operation.regions[0])
                    carried = zip(first, yielded, operation.results, strict=False)
                    for argument, value, result in carried:
                        if value in rows or argument in rows:
                            rows.update((argument, result))
            elif operation.regions:
                yielded = [visit(inner) for inner in operation.regions]
                for values in yielded:
                    rows.update(r for r, value in zip(operation.results, values, strict=False) if value in rows)
            elif name == "tt.get_program_id":
                if operation.text.split()[0] == "x":
                    rows.update(operation.results)
            elif name == "arith.muli" and "i32" in operation.result_type:
                for one, other in (operands, operands[::-1]):
                    if one in rows and constants.get(other, LARGEST_FACTOR + 1) > LARGEST_FACTOR:
                        found[f"{operation.results[0]} = {one} * {other}"] = None
                rows.update(operation.results if rows & set(operands) else ())
            elif name not in ("arith.remsi", "arith.cmpi", "tt.load", "tt.addptr") and rows & set(operands):
                rows.update(operation.results)
        return []

    visit(operations(ttir))
    return list(found)
