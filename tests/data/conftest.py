from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder that holds mnist/ and cifar10/ in Parquet; tests that need it skip where it is absent."""
    beside = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    root = Path(os.environ.get("DISTSPARSE_DATA") or beside)
    if not (root / "mnist" / "train.parquet").is_file():
        pytest.skip(f"no mnist/train.parquet below {root}; set DISTSPARSE_DATA to the folder that has it")
    return root


def png(pixels: np.ndarray) -> bytes:
    """Encode (H, W) grey or (H, W, 3) colour pixels without loss."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


WriteParquet = Callable[..., None]


@pytest.fixture
def write_parquet() -> WriteParquet:
    """Write a file in the hub's layout; images are encoded bytes."""

    def write(
        file: Path,
        encoded: Sequence[bytes | None],
        labels: Sequence[Any],
        *,
        image: str = "image",
        label: str = "label",
        struct: bool = True,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        values = [{"bytes": data, "path": None} for data in encoded] if struct else list(encoded)
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if struct else pa.binary()
        table = pa.table({image: pa.array(values, kind), label: pa.array(labels)})
        if metadata:
            table = table.replace_schema_metadata({key: json.dumps(value) for key, value in metadata.items()})
        pq.write_table(table, file)

    return write


@pytest.fixture
def encode() -> Callable[[np.ndarray], bytes]:
    return png
