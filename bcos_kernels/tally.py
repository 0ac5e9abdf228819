"""Counts what was done with the B-cos layers of a process and their calls, and sums up a whole job in words.

A tally counts by (what, class, reason). Each process of a job keeps its counts in a mapped file in the folder of the
job: they survive any end of the process, and nothing has to be done when it ends. Run as a script, this module prints
the summary of a job; it imports nothing of the package, hence no torch.
"""

from __future__ import annotations

import atexit
import json
import mmap
import os
import shutil
import sys
import tempfile
import textwrap
from array import array
from collections import Counter
from contextlib import suppress
from typing import Any

__all__ = ["accelerated", "compiled", "current", "fused", "keep", "left_alone", "plain", "tell", "words"]

Key = tuple[str, str, str]

FUSED, ACCELERATED, LEFT_ALONE, PLAIN, COMPILED = "fused", "accelerated", "left alone", "ran plain", "compiled"
_MOST = 512
"""The most different keys of one process; further reasons are counted together."""
_BYTES = 8 * _MOST
_SHOWN = 8
"""The most reasons that a summary lists, the most frequent first."""

_index: dict[Key, int] = {(FUSED, "", ""): 0}
_counts: Any = [0] * _MOST
"""Of the keys, by their index: a list, or a view of the file of this process."""
_folder: str | None = None
_path: str | None = None
_map: mmap.mmap | None = None


def fused() -> None:
    """A call was made by the fused operators."""
    _counts[0] += 1


def compiled() -> None:
    """A fused call was compiled by torch.compile; how often the compiled code runs is not counted."""
    _count((COMPILED, "", ""))


# as torch.compiler.assume_constant_result does, without its import of Dynamo: Dynamo calls it while it traces
setattr(compiled, "_dynamo_marked_constant", True)  # noqa: B010


def accelerated() -> None:
    """A layer was accelerated."""
    _count((ACCELERATED, "", ""))


def left_alone(kind: str, reason: str) -> None:
    """A B-cos layer of class ``kind`` keeps its own forward."""
    _count((LEFT_ALONE, kind, reason))


def plain(kind: str, reason: str) -> None:
    """A call of an accelerated layer of class ``kind`` ran the layer's own forward."""
    _count((PLAIN, kind, reason))


def current() -> Counter[Key]:
    """The tally of this process."""
    return Counter({key: count for key, i in _index.items() if (count := _counts[i])})


def _count(key: Key) -> None:
    index = _index.get(key)
    _counts[_new(key) if index is None else index] += 1


def _new(key: Key) -> int:
    if len(_index) >= _MOST - 2:  # one is left for each of the two kinds of keys that have reasons
        key = (key[0], "other classes", "too many different reasons to list")
    if key not in _index:
        _index[key] = len(_index)
        _append(key)
    return _index[key]


def _append(key: Key) -> None:
    # fails where the disk is full or the job has ended before this process: then this count is lost
    if _path is not None:
        with suppress(OSError), open(_path, "ab") as file:
            file.write(f"\n{json.dumps([_index[key], *key])}\n".encode())


class _Unopened:
    """The counts of a process of a job before its first count: it has no file yet."""

    def __init__(self, inherited: dict[int, int]) -> None:
        self.inherited = inherited

    def __getitem__(self, index: int) -> int:
        return self.inherited.get(index, 0)

    def __setitem__(self, index: int, count: int) -> None:
        global _counts
        _counts = _open()
        for i, number in (self.inherited | {index: count}).items():
            _counts[i] = number


def keep(folder: str) -> None:
    """Keeps the tally of this process, and of each process that is forked from it, in a file in ``folder``."""
    global _folder
    _folder = folder
    _start_anew()
    os.register_at_fork(after_in_child=_start_anew)


def _start_anew() -> None:
    """Resets the counts of calls and keeps those of layers, which a forked process has as well."""
    global _counts, _map, _path
    layers = {i: _counts[i] for key, i in _index.items() if key[0] in (ACCELERATED, LEFT_ALONE) and _counts[i]}
    if _map is not None:
        _counts.release()
        _map.close()
    _counts, _map, _path = _Unopened(layers), None, None


def _open() -> memoryview | list[int]:
    """New counts, in a new file that stays locked while this process lives."""
    global _map, _path
    import fcntl

    try:
        handle, path = tempfile.mkstemp(dir=_folder, prefix=f"{os.getpid()}-")
        with open(handle, "r+b") as file:
            file.write(bytes(_BYTES))  # a disk that is full says so here
            file.flush()
            with suppress(OSError):  # some file systems have no locks
                fcntl.flock(file, fcntl.LOCK_EX)
            _map = mmap.mmap(handle, _BYTES)  # keeps the file open, and the lock
    except OSError:  # on another machine, or after the end of the job: this process must print its own summary
        atexit.register(_tell_of_this_process, os.getpid())
        return [0] * _MOST
    _path = path
    for key in _index:
        _append(key)
    return memoryview(_map).cast("q")


def _read(path: str) -> tuple[Counter[Key], bool]:
    """The tally in one file, and whether its process has not ended."""
    import fcntl

    with open(path, "rb") as file:
        content = file.read()
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            running = False
        except OSError as error:
            running = isinstance(error, BlockingIOError)
    if len(content) < _BYTES:  # its process could not write them
        return Counter(), running
    counts = array("q", content[:_BYTES])
    found: Counter[Key] = Counter()
    for line in content[_BYTES:].split(b"\n"):
        with suppress(ValueError):  # an empty line, or one that could not be written whole
            index, *key = json.loads(line)
            what, kind, reason = key
            found[what, kind, reason] = counts[index]
    return +found, running


def tell(folder: str, first: str) -> None:
    """Prints the summary of a job to stderr and removes its folder; the process ``first`` is about to end."""
    try:
        found = {entry.name: _read(entry.path) for entry in os.scandir(folder)}
    except OSError as error:
        _print(f"bcos_kernels: what was accelerated is unknown: {error}")
        return
    shutil.rmtree(folder, ignore_errors=True)
    running = sum(running and not name.startswith(f"{first}-") for name, (_, running) in found.items())
    _print(words([tally for tally, _ in found.values() if tally], running))


def _tell_of_this_process(process: int) -> None:
    if os.getpid() == process:
        _print(words([current()]))


def _print(text: str) -> None:
    width = shutil.get_terminal_size().columns
    lines = (textwrap.wrap(line, width, subsequent_indent="    ", break_on_hyphens=False) for line in text.split("\n"))
    try:
        sys.stdout.flush()
        print("\n".join(part for parts in lines for part in parts), file=sys.stderr, flush=True)
    except (AttributeError, OSError, ValueError):  # the script has closed or replaced its streams
        return


def words(tallies: list[Counter[Key]], running: int = 0) -> str:
    """The summary of processes with B-cos layers, ``running`` of which have not ended."""
    total = sum(tallies, Counter())
    layers = Counter(tally[ACCELERATED, "", ""] for tally in tallies)
    lines = [f"bcos_kernels: {_layers(layers)}"]
    if calls := total[FUSED, "", ""]:
        lines[0] += f", {_many(calls, 'fused call')}"
    elif total[ACCELERATED, "", ""]:
        lines[0] += ", but no fused call was counted" if total[COMPILED, "", ""] else ", but no fused call was made"
    if len(layers) > 1:
        lines.append(f"  processes × layers: {', '.join(f'{n} × {many}' for many, n in sorted(layers.items()))}")
    without = sum(not tally[FUSED, "", ""] for tally in tallies)
    if calls and without:
        lines.append(f"  {without} of the {len(tallies)} processes made no fused call")
    if total[COMPILED, "", ""]:
        lines.append("  calls inside what torch.compile compiled are not counted")
    for what, noun in ((LEFT_ALONE, "layer"), (PLAIN, "call")):
        reasons = [key for key, _ in total.most_common() if key[0] == what]
        for key in reasons[:_SHOWN]:
            lines.append(f"  {what}: {_many(total[key], noun)} of {key[1]}: {key[2]}")
        if more := sum(total[key] for key in reasons[_SHOWN:]):
            lines.append(f"  {what}: {_many(more, noun)} for {len(reasons) - _SHOWN} further reasons")
    if running:
        lines.append(f"  {_many(running, 'process')} had not ended: counted is what was done until then")
    return "\n".join(lines)


def _layers(processes: Counter[int]) -> str:
    """How many layers; ``processes`` says how many processes have a number of them."""
    total = sum(many * n for many, n in processes.items())
    if not total:
        return "no B-cos layer was accelerated"
    if len(processes) > 1:
        return f"{_many(total, 'B-cos layer')} accelerated in {processes.total()} processes"
    ((many, n),) = processes.items()
    return f"{f'{n} processes × ' if n > 1 else ''}{_many(many, 'B-cos layer')} accelerated"


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}{'es' if noun.endswith('s') else 's'}"


if __name__ == "__main__":
    tell(*sys.argv[1:])
