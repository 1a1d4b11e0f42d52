"""Folders of checkpoints, on this machine's disk or anywhere that pyarrow reaches, such as ``s3://``.

A *place* is text: a path, or a URI with pyarrow's options behind a question mark
(``s3://bucket/runs?region=us-east-1``).
"""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from pyarrow import ArrowException
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem, copy_files

from distsparse.train.checkpoint import REST, atomic_folder


def join(place: str | Path, *names: str) -> str:
    """Return a place below another; a URI keeps its options."""
    if not _is_uri(place):
        return str(Path(place, *names))
    parts = urlsplit(str(place))
    return urlunsplit(parts._replace(path="/".join([parts.path.rstrip("/"), *names])))


def parent(place: str | Path) -> str:
    """Return the place that a place is in; a URI keeps its options."""
    if not _is_uri(place):
        return str(Path(place).parent)
    parts = urlsplit(str(place))
    return urlunsplit(parts._replace(path=parts.path.rstrip("/").rpartition("/")[0]))


def name_of(place: str | Path) -> str:
    """Return a place's last name."""
    return Path(urlsplit(str(place)).path if _is_uri(place) else place).name


def folders(place: str | Path) -> list[str]:
    """Return the places of the folders in one, sorted by name, without those that begin with a dot.

    Raises:
        OSError: it cannot be listed; one that is absent is empty.
    """
    filesystem, path = _open(str(place))
    found = filesystem.get_file_info(FileSelector(path, allow_not_found=True))
    names = sorted(info.base_name for info in found if info.type == FileType.Directory)
    return [join(place, name) for name in names if not name.startswith(".")]


@contextmanager
def reading(place: str | Path) -> Iterator[Path]:
    """Give a folder of this machine with what is there: the place itself, or a copy for the block.

    Raises:
        OSError: it cannot be read, or is not there.
    """
    filesystem, path = _open(str(place))
    if isinstance(filesystem, LocalFileSystem):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        copy_files(path, folder, filesystem, LocalFileSystem())
        yield Path(folder)


@contextmanager
def writing(place: str | Path) -> Iterator[Path]:
    """Give a folder of this machine whose files are there if the block ends well.

    On a disk the folder appears whole. Elsewhere each file does, and last the one that a checkpoint is not
    readable without.

    Raises:
        OSError: it cannot be written.
    """
    filesystem, path = _open(str(place))
    if isinstance(filesystem, LocalFileSystem):
        with atomic_folder(Path(path)) as folder:
            yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)
        for file in sorted(Path(temporary).iterdir(), key=lambda file: file.name == REST):
            copy_files(str(file), f"{path}/{file.name}", LocalFileSystem(), filesystem)


def remove(place: str | Path) -> None:
    """Remove a folder and what is in it; one that is absent is left so."""
    filesystem, path = _open(str(place))
    if filesystem.get_file_info(path).type != FileType.NotFound:
        filesystem.delete_dir(path)


def remove_unfinished(place: str | Path) -> None:
    """Remove what :func:`writing` leaves on a disk where its process is killed."""
    if not _is_uri(place):
        for unfinished in Path(place).glob(".*.tmp"):
            shutil.rmtree(unfinished)


def check_storage(place: str) -> None:
    """Make sure that a place can be written to.

    Raises:
        ValueError: it cannot.
    """
    try:
        filesystem, path = _open(place)
        filesystem.create_dir(path)
        probe = f"{path}/.probe.{uuid.uuid4().hex}"
        with filesystem.open_output_stream(probe):
            pass
        filesystem.delete_file(probe)
    except (OSError, ArrowException) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"checkpoint.storage = {place!r}: cannot be written to: {reason}") from None


def _is_uri(place: str | Path) -> bool:
    return "://" in str(place)


def _open(place: str) -> tuple[FileSystem, str]:
    if _is_uri(place):
        filesystem, path = FileSystem.from_uri(place)
        return filesystem, path
    return LocalFileSystem(), str(Path(place).resolve())
