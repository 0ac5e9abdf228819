"""Counts what happened to the B-cos modules of a process and to their calls, and prints a job's summary.

A tally counts by (what, class, reason). Each process of a job keeps its counts in a memory-mapped file in the job's
folder. So they survive however the process ends, and nothing has to be written at its end. Run as a script, this module
prints the summary of a job; it imports nothing from the package, and so no torch.
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

__all__ = ["accelerated", "compiled", "counts", "current", "fused", "keep", "left_alone", "plain", "tell", "words"]

Key = tuple[str, str, str]

FUSED, ACCELERATED, LEFT_ALONE, PLAIN, COMPILED = "fused", "accelerated", "left alone", "ran plain", "compiled"
_MOST = 512
"""The most keys that one process counts; further reasons are counted together."""
_BYTES = 8 * _MOST
_SHOWN = 8
"""The most reasons that a summary lists, beginning with the most frequent."""

_index: dict[Key, int] = {(FUSED, "", ""): 0}
counts: Any = [0] * _MOST
"""The count of each key at the key's index: a list, or a view of this process's file."""
_folder: str | None = None
_path: str | None = None
_map: mmap.mmap | None = None


def fused() -> None:
    """Counts a call that was served by the fused kernels."""
    counts[0] += 1


def compiled() -> None:
    """Counts a fused call that torch.compile compiled; how often the compiled code runs is not counted."""
    _count((COMPILED, "", ""))


# Makes Dynamo call the function while it traces, as torch.compiler.assume_constant_result does by importing Dynamo.
setattr(compiled, "_dynamo_marked_constant", True)  # noqa: B010


LAYER = "layer"
"""Modules of all other kinds are counted apart, under the name of their kind."""


def accelerated(of: str = LAYER) -> None:
    """Counts a module that was accelerated; ``of`` is the name of its kind."""
    _count((ACCELERATED, "" if of == LAYER else of, ""))


def left_alone(name: str, reason: str, of: str = LAYER) -> None:
    """Counts a module of the class ``name`` that keeps its own forward."""
    _count((LEFT_ALONE if of == LAYER else f"{LEFT_ALONE}{_OF}{of}", name, reason))


_OF = ", a "
"""Stands in a key between what happened and the kind of module, for all kinds but layers."""


def plain(name: str, reason: str) -> None:
    """Counts a call that ran plain, of a module of the class ``name`` or of the function of this name."""
    _count((PLAIN, name, reason))


def current() -> Counter[Key]:
    """The tally of this process."""
    return Counter({key: count for key, i in _index.items() if (count := counts[i])})


def _count(key: Key) -> None:
    index = _index.get(key)
    counts[_new(key) if index is None else index] += 1


def _new(key: Key) -> int:
    if len(_index) >= _MOST - 3:  # the last keys are kept for the three kinds of counts of which there may be several
        key = (key[0].partition(_OF)[0], "other classes", "too many different reasons to list")
    if key not in _index:
        _index[key] = len(_index)
        _append(key)
    return _index[key]


def _append(key: Key) -> None:
    # Writing fails if the disk is full or the job has ended before this process; this count is then lost.
    if _path is not None:
        with suppress(OSError), open(_path, "ab") as file:
            file.write(f"\n{json.dumps([_index[key], *key])}\n".encode())


class _Unopened:
    """The counts of a process that has not counted anything yet; its first count creates its file."""

    def __init__(self, inherited: dict[int, int]) -> None:
        self.inherited = inherited

    def __getitem__(self, index: int) -> int:
        return self.inherited.get(index, 0)

    def __setitem__(self, index: int, count: int) -> None:
        global counts
        counts = _open()
        for i, number in (self.inherited | {index: count}).items():
            counts[i] = number


def keep(folder: str) -> None:
    """Keeps the tallies of this process, and of each process that is forked from it, in files in ``folder``."""
    global _folder
    _folder = folder
    _start_anew()
    os.register_at_fork(after_in_child=_start_anew)


def _start_anew() -> None:
    """Resets the counts of calls. The counts of layers stay, because a forked process has the same layers."""
    global counts, _map, _path
    layers = {i: counts[i] for key, i in _index.items() if key[0].startswith((ACCELERATED, LEFT_ALONE)) and counts[i]}
    if _map is not None:
        counts.release()
        _map.close()
    counts, _map, _path = _Unopened(layers), None, None


def _open() -> memoryview | list[int]:
    """Creates the counts in a new file, which stays locked while this process lives."""
    global _map, _path
    import fcntl

    try:
        handle, path = tempfile.mkstemp(dir=_folder, prefix=f"{os.getpid()}-")
        with open(handle, "r+b") as file:
            file.write(bytes(_BYTES))  # fails here, and not later, if the disk is full
            file.flush()
            with suppress(OSError):  # some file systems do not support locks
                fcntl.flock(file, fcntl.LOCK_EX)
            _map = mmap.mmap(handle, _BYTES)  # keeps the file open, and the lock
    except OSError:  # on another machine or after the job has ended, this process prints its own summary
        atexit.register(_tell_of_this_process, os.getpid())
        return [0] * _MOST
    _path = path
    for key in _index:
        _append(key)
    return memoryview(_map).cast("q")


def _read(path: str) -> tuple[Counter[Key], bool]:
    """The tally in one file, and whether its process is still running."""
    import fcntl

    with open(path, "rb") as file:
        content = file.read()
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            running = False
        except OSError as error:
            running = isinstance(error, BlockingIOError)
    if len(content) < _BYTES:  # its process could not write all counts
        return Counter(), running
    counts = array("q", content[:_BYTES])
    found: Counter[Key] = Counter()
    for line in content[_BYTES:].split(b"\n"):
        with suppress(ValueError):  # an empty or incomplete line
            index, *key = json.loads(line)
            what, name, reason = key
            found[what, name, reason] = counts[index]
    return +found, running


def tell(folder: str, first: str) -> None:
    """Prints the summary of a job to stderr and removes its folder.

    ``first`` is the id of the job's first process, which is about to end and is not counted as running.
    """
    try:
        found = {entry.name: _read(entry.path) for entry in os.scandir(folder)}
    except OSError as error:
        _print(f"bcos_kernels: the summary of this job cannot be read: {error}")
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
    """The summary of the tallies of a job's processes, ``running`` of which have not ended."""
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
        lines.append("  calls inside code that torch.compile compiled are not counted")
    for of in sorted(key[1] for key in total if key[0] == ACCELERATED and key[1]):
        having = sum(bool(tally[ACCELERATED, of, ""]) for tally in tallies)
        among = f" in {having} processes" if len(tallies) > 1 else ""
        lines.append(f"  {_many(total[ACCELERATED, of, ''], _NOUNS.get(of, of))} accelerated{among}")
    others = sorted({key[0] for key in total if key[0].startswith(LEFT_ALONE + _OF)})
    kinds = [(key, key.partition(_OF)[2]) for key in others]
    for what, noun in ((LEFT_ALONE, LAYER), *((key, _NOUNS.get(of, of)) for key, of in kinds), (PLAIN, "call")):
        reasons = [key for key, _ in total.most_common() if key[0] == what]
        for key in reasons[:_SHOWN]:
            lines.append(f"  {what.partition(_OF)[0]}: {_many(total[key], noun)} of {key[1]}: {key[2]}")
        if more := sum(total[key] for key in reasons[_SHOWN:]):
            lines.append(f"  {what.partition(_OF)[0]}: {_many(more, noun)} for {len(reasons) - _SHOWN} further reasons")
    if running:
        lines.append(f"  {_many(running, 'process')} had not ended: only what was done until then is counted")
    return "\n".join(lines)


_NOUNS = {"alignment": "dynamic alignment layer"}
"""What a module of a kind is called, where the kind's name does not say it."""


def _layers(processes: Counter[int]) -> str:
    """The number of accelerated layers in words; ``processes`` is number of layers -> number of such processes."""
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
