"""Tables on an object store, by URI (``s3://bucket/results``): a file appears whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.fs


@dataclass(frozen=True)
class Folder:
    """A prefix of an object store."""

    filesystem: pa.fs.FileSystem
    path: str

    def __str__(self) -> str:
        return self.path

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.rpartition("/")[2]

    def child(self, name: str) -> Folder:
        """Return what a name in it stands for."""
        return Folder(self.filesystem, f"{self.path}/{name}")

    def names(self, *, folders: bool) -> list[str]:
        """Return the sorted names of the folders, or files, directly in it; none if it is not there."""
        selector = pa.fs.FileSelector(self.path, allow_not_found=True)
        return sorted(
            info.base_name
            for info in self.filesystem.get_file_info(selector)
            if (info.type == pa.fs.FileType.Directory) == folders
        )

    def existing(self, names: Sequence[str]) -> list[str]:
        """Return those of some names that are files in it."""
        infos = self.filesystem.get_file_info([f"{self.path}/{name}" for name in names])
        return [name for name, info in zip(names, infos, strict=True) if info.type == pa.fs.FileType.File]

    def read(self, name: str) -> pa.BufferReader:
        """Return a file's content.

        Raises:
            FileNotFoundError: it is not there.
        """
        with self.filesystem.open_input_file(f"{self.path}/{name}") as file:
            return pa.BufferReader(file.read_buffer())

    def put(self, name: str, content: pa.Buffer) -> None:
        """Write a file; it replaces the one there in one step, once all of it has arrived."""
        with self.filesystem.open_output_stream(f"{self.path}/{name}") as file:
            file.write(content)

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        if self.existing([name]):
            self.filesystem.delete_file(f"{self.path}/{name}")


def is_uri(root: str | Path) -> bool:
    """Return whether a results folder is named by a URI."""
    return "://" in str(root)


def opened(root: str | Path) -> Folder:
    """Return the folder that a URI names; options such as ``?endpoint_override=…`` are pyarrow's.

    Raises:
        ValueError: no such kind of storage, or a URI that cannot be read.
    """
    try:
        filesystem, path = pa.fs.FileSystem.from_uri(str(root))
    except (pa.ArrowException, ValueError) as error:
        raise ValueError(f"results folder {root}: {error}") from None
    return Folder(filesystem, path.rstrip("/"))


def below(root: str, name: str) -> str:
    """Return the URI of what is called ``name`` in the folder of a URI."""
    path, question, options = root.partition("?")
    return f"{path.rstrip('/')}/{name}{question}{options}"
