"""The results of ``explain`` on disk: numbered tars, as WebDataset reads them, with a record each, and an index.

A shard is complete once its record is there, and as long as its tar has the size that the record tells. Every file is
written under another name and then renamed, so that none is ever there in part.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = ["Folder", "ShardWriter", "fingerprint"]

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


class ShardWriter:
    """One shard while it is written: a context that leaves either the whole file or nothing."""

    def __init__(self, path: Path) -> None:
        self.path, self._draft = path, _draft(path)

    def __enter__(self) -> ShardWriter:
        self._tar = tarfile.open(self._draft, "w")
        return self

    def add(self, key: str, parts: Iterable[tuple[str, bytes]]) -> None:
        """Adds the files ``KEY.ENDING`` of an image."""
        for ending, content in parts:
            member = tarfile.TarInfo(f"{key}.{ending}")
            member.size, member.mode = len(content), 0o644
            self._tar.addfile(member, io.BytesIO(content))

    def __exit__(self, kind: Any, *_: Any) -> None:
        with _removed_at_the_end(self._draft):
            self._tar.close()
            if kind is None:
                os.replace(self._draft, self.path)


def _draft(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _write(path: Path, content: bytes) -> None:
    draft = _draft(path)
    with _removed_at_the_end(draft):
        draft.write_bytes(content)
        os.replace(draft, path)


@contextmanager
def _removed_at_the_end(draft: Path) -> Iterator[None]:
    """A context after which the draft is gone, also where a full disk ended it."""
    try:
        yield
    finally:
        with suppress(OSError):
            draft.unlink()
