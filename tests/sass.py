"""What a GPU is told to do: the main loops of compiled CUDA kernels, read from their machine code."""

from __future__ import annotations

import re
import subprocess
from collections import deque
from pathlib import Path
from typing import NamedTuple

PRODUCT, COPY = r"\bHMMA\.", r"\bLDGSTS\b"


class Loop(NamedTuple):
    """One round of a main loop."""

    products: int
    """On tensor cores."""
    instructions: int
    """The fewest that a round takes which makes all its products and copies; those of rarer branches are not in it."""

    @property
    def each(self) -> float:
        return self.instructions / self.products


def disassembled(binary: Path, arch: str) -> dict[str, list[tuple[int, str]]]:
    """The kernels of a binary for one GPU: name -> ``(address, instruction)`` of each instruction."""
    from triton import knobs  # imported here because most tests that import this module need no Triton

    command = [knobs.nvidia.cuobjdump.path, "-sass", "-arch", f"sm_{arch}", str(binary)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    parts = re.split(r"^\s*Function : (\S+)$", text, flags=re.M)[1:]
    return {
        name: [(int(at, 16), code) for at, code in re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;]*?)\s*;", body)]
        for name, body in zip(parts[::2], parts[1::2], strict=True)
    }


def loops(code: list[tuple[int, str]]) -> list[Loop]:
    """The innermost loops with products on tensor cores, in their order."""
    index = {at: i for i, (at, _) in enumerate(code)}
    jumps = {i: index[int(found[1], 16)] for i, (_, text) in enumerate(code) if (found := _JUMP.search(text))}
    bodies = [(begin, end) for end, begin in jumps.items() if begin <= end and _count(code[begin : end + 1], PRODUCT)]
    return [
        Loop(_count(code[begin : end + 1], PRODUCT), _shortest(code, jumps, begin, end))
        for begin, end in bodies
        if not any((b, e) != (begin, end) and begin <= b and e <= end for b, e in bodies)
    ]


_JUMP = re.compile(r"\bBRA\b.*?\b(0x[0-9a-f]+)")


def _count(code: list[tuple[int, str]], pattern: str) -> int:
    return sum(bool(re.search(pattern, text)) for _, text in code)


def _shortest(code: list[tuple[int, str]], jumps: dict[int, int], begin: int, end: int) -> int:
    """The instructions of the shortest way from the beginning through all products and copies to the end."""

    def following(i: int) -> list[int]:
        text = code[i][1]
        ends = i in jumps and not re.match(r"@|BRA U?!?U?P\d|BRA\.DIV", text)
        return ([jumps[i]] if i in jumps else []) + ([] if ends else [i + 1])

    stops = [i for i in range(begin, end) if re.search(f"{PRODUCT}|{COPY}", code[i][1])]
    length = 1
    for start, goal in zip((begin, *stops), (*stops, end), strict=True):
        distance, waiting = {start: 0}, deque([start])
        while goal not in distance:
            i = waiting.popleft()
            for j in following(i):
                if begin <= j <= end and j not in distance:
                    distance[j] = distance[i] + 1
                    waiting.append(j)
        length += distance[goal]
    return length
