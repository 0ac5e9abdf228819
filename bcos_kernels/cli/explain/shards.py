"""The results of ``explain`` on disk: numbered tars, as WebDataset reads them, with a record each, and an index.

A shard is complete once its record is there, and as long as its tar has the size that the record tells. Every file is
written under another name and then renamed, so that none is ever there in part.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..terminal import draft_of

__all__ = ["Folder", "fingerprint", "shard_writer"]

SETTINGS, INDEX = "settings.json", "index.json"


def fingerprint(texts: Iterable[str]) -> str:
    """A hash of texts in their order."""
    found = hashlib.sha256()
    for text in texts:
        found.update(text.encode(errors="surrogateescape") + b"\0")  # a name of a file may be of other bytes
    return found.hexdigest()[:16]


class Folder:
    """An output folder, whose settings say what its shards hold."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, self.settings = path, settings

    def claim(self, before: Callable[[], object] = lambda: None) -> None:
        """Makes the folder, or checks that the shards that are in it were made under the same settings.

        ``before`` is called before a new folder is made; what it raises leaves nothing behind.

        Raises:
            ValueError: it holds something else. Nothing is changed.
            OSError: it cannot be written.
        """
        stored = self.path / SETTINGS
        if not stored.exists():
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                raise ValueError(f"--out {self.path}: it is there already and holds something else")
            before()
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                _write(stored, json.dumps(self.settings, indent=1).encode())
            except OSError as error:
                raise OSError(f"--out {self.path}: it cannot be written: {error.strerror or error}") from error
            return
        try:
            found = dict(json.loads(stored.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            raise ValueError(f"--out {self.path}: its {SETTINGS} is damaged") from None
        now = json.loads(json.dumps(self.settings))
        other = [name for name in sorted({*found, *now}) if found.get(name) != now.get(name)]
        if other:
            told = ", ".join(f"{name} {found.get(name)} (now {now.get(name)})" for name in other)
            raise ValueError(f"--out {self.path}: it holds a run of other settings: {told}; choose another folder")

    def is_complete(self, number: int) -> bool:
        """Whether a shard has its record and its tar, and the tar was not cut short."""
        try:
            size = self.shard(number).stat().st_size
            return json.loads(self._record(number).read_text(encoding="utf-8"))["bytes"] == size
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return False

    def _record(self, number: int) -> Path:
        return self.path / f"shard-{number:06d}.json"

    def shard(self, number: int) -> Path:
        return self.path / f"shard-{number:06d}.tar"

    def finish(self, number: int, record: dict[str, Any]) -> None:
        """Marks a shard as complete."""
        record = {**record, "bytes": self.shard(number).stat().st_size}
        _write(self._record(number), json.dumps(record).encode())

    def write_index(self, shards: int) -> dict[str, Any]:
        """Writes the index of all shards and returns it: the settings, each shard, and the images that were skipped."""
        records = [json.loads(self._record(number).read_text(encoding="utf-8")) for number in range(shards)]
        index = {
            "settings": self.settings,
            "images": sum(len(record["images"]) for record in records),
            "skipped": [skipped for record in records for skipped in record["skipped"]],
            "shards": [
                {"file": self.shard(number).name, "images": record["images"]} for number, record in enumerate(records)
            ],
        }
        _write(self.path / INDEX, json.dumps(index).encode())
        return index


@contextmanager
def shard_writer(path: Path) -> Iterator[Callable[[str, Iterable[tuple[str, bytes]]], None]]:
    """A context that leaves the whole of a shard or nothing; it yields ``add(key, [(ending, content), ...])``."""

    def add(key: str, parts: Iterable[tuple[str, bytes]]) -> None:
        for ending, content in parts:
            member = tarfile.TarInfo(f"{key}.{ending}")
            member.size, member.mode = len(content), 0o644
            tar.addfile(member, io.BytesIO(content))

    with draft_of(path) as draft, tarfile.open(draft, "w") as tar:
        yield add


def _write(path: Path, content: bytes) -> None:
    with draft_of(path) as draft:
        draft.write_bytes(content)
