"""Storage formats of a sparse matrix: COO, CSR and CSC, and what each costs in memory.

Values are fp32 and indices int32 in the formulas, which is what the conversions produce for an fp32 matrix.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

CROSSOVER_DENSITY = 0.5
"""Density below which CSR is smaller than dense (8 nnz < 4 m n, row pointers aside); COO needs 1/3."""


@dataclass(frozen=True, eq=False)
class Coo:
    """Coordinates in row-major order: ``values[k]`` sits at ``(rows[k], cols[k])``."""

    shape: tuple[int, int]
    rows: Tensor
    cols: Tensor
    values: Tensor

    def to_dense(self) -> Tensor:
        """Return the matrix."""
        dense = self.values.new_zeros(self.shape)
        dense[self.rows, self.cols] = self.values
        return dense


@dataclass(frozen=True, eq=False)
class Csr:
    """Compressed rows: row ``i`` holds the entries ``row_ptr[i]`` to ``row_ptr[i + 1]`` (exclusive)."""

    shape: tuple[int, int]
    row_ptr: Tensor
    cols: Tensor
    values: Tensor

    def to_dense(self) -> Tensor:
        """Return the matrix."""
        return torch_csr(self).to_dense()


@dataclass(frozen=True, eq=False)
class Csc:
    """Compressed columns: column ``j`` holds the entries ``col_ptr[j]`` to ``col_ptr[j + 1]`` (exclusive)."""

    shape: tuple[int, int]
    col_ptr: Tensor
    rows: Tensor
    values: Tensor

    def to_dense(self) -> Tensor:
        """Return the matrix."""
        transposed = Csr(self.shape[::-1], self.col_ptr, self.rows, self.values)
        return transposed.to_dense().t().contiguous()


def coo(matrix: Tensor) -> Coo:
    """Convert a dense matrix to coordinates of its nonzeros.

    Raises:
        ValueError: not two-dimensional, or dimensions beyond int32 (as for ``csr`` and ``csc``).
    """
    matrix = _checked(matrix)
    rows, cols = matrix.nonzero(as_tuple=True)
    return Coo(_shape(matrix), rows.int(), cols.int(), matrix[rows, cols])


def csr(matrix: Tensor) -> Csr:
    """Convert a dense matrix to compressed rows of its nonzeros."""
    with _no_beta_warning():
        compressed = _checked(matrix).to_sparse_csr()
    row_ptr, cols = compressed.crow_indices().int(), compressed.col_indices().int()
    return Csr(_shape(matrix), row_ptr, cols, compressed.values())


def csc(matrix: Tensor) -> Csc:
    """Convert a dense matrix to compressed columns of its nonzeros."""
    transposed = csr(_checked(matrix).t())
    return Csc(_shape(matrix), transposed.row_ptr, transposed.cols, transposed.values)


def torch_csr(matrix: Csr) -> Tensor:
    """Return torch's own CSR tensor over the same memory; its indices stay int32."""
    with _no_beta_warning():
        return torch.sparse_csr_tensor(
            matrix.row_ptr, matrix.cols, matrix.values, matrix.shape, check_invariants=False
        )


def dense_bytes(num_rows: int, num_cols: int) -> int:
    """Return the size of an fp32 matrix: 4 m n bytes."""
    return 4 * num_rows * num_cols


def coo_bytes(nnz: int) -> int:
    """Return the size in COO: a value, a row and a column each, 12 nnz bytes."""
    return 12 * nnz


def csr_bytes(nnz: int, *, num_rows: int) -> int:
    """Return the size in CSR: a value and a column each, and the row pointers, 8 nnz + 4 (m + 1) bytes."""
    return 8 * nnz + 4 * (num_rows + 1)


def csc_bytes(nnz: int, *, num_cols: int) -> int:
    """Return the size in CSC: a value and a row each, and the column pointers, 8 nnz + 4 (n + 1) bytes."""
    return 8 * nnz + 4 * (num_cols + 1)


def _shape(matrix: Tensor) -> tuple[int, int]:
    num_rows, num_cols = matrix.shape
    return num_rows, num_cols


def _checked(matrix: Tensor) -> Tensor:
    """Return the matrix without its graph, or raise ValueError for what int32 indices cannot hold."""
    if matrix.dim() != 2 or matrix.layout != torch.strided:
        raise ValueError(
            f"matrix of shape {tuple(matrix.shape)} and layout {matrix.layout}: allowed: dense 2-D"
        )
    limit = torch.iinfo(torch.int32).max
    if max(matrix.shape) > limit or (matrix.numel() > limit and int(matrix.count_nonzero()) > limit):
        raise ValueError(
            f"matrix of shape {tuple(matrix.shape)}: int32 indices allow at most {limit} nonzeros"
        )
    return matrix.detach()


@contextmanager
def _no_beta_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Sparse CSR tensor support is in beta", category=UserWarning
        )
        yield
