import subprocess
import sys

import pytest
import scipy.sparse
import torch

from distsparse.export import (
    CROSSOVER_DENSITY,
    coo,
    coo_bytes,
    csc,
    csc_bytes,
    csr,
    csr_bytes,
    dense_bytes,
)

EXAMPLE = torch.tensor([[1.0, 0, 2], [0, 0, 3], [4, 0, 0]])


def random_sparse(shape, density, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) < density)


def measured_bytes(matrix):
    return sum(t.numel() * t.element_size() for t in vars(matrix).values() if isinstance(t, torch.Tensor))


def test_worked_example():
    rows = csr(EXAMPLE)
    assert rows.row_ptr.tolist() == [0, 2, 3, 4]
    assert rows.cols.tolist() == [0, 2, 2, 0]
    assert rows.values.tolist() == [1, 2, 3, 4]
    columns = csc(EXAMPLE)
    assert columns.col_ptr.tolist() == [0, 2, 2, 4]
    assert columns.rows.tolist() == [0, 2, 0, 1]
    assert columns.values.tolist() == [1, 4, 2, 3]
    coordinates = coo(EXAMPLE)
    assert coordinates.rows.tolist() == [0, 0, 1, 2]
    assert coordinates.cols.tolist() == [0, 2, 2, 0]
    assert coordinates.values.tolist() == [1, 2, 3, 4]
    assert coo_bytes(4) == csr_bytes(4, num_rows=3) == csc_bytes(4, num_cols=3) == 48


@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (3, 7), (40, 25)])
@pytest.mark.parametrize("density", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("convert", [coo, csr, csc])
def test_round_trip_and_memory(convert, shape, density):
    matrix = random_sparse(shape, density)
    nnz = int(matrix.count_nonzero())
    compressed = convert(matrix)
    assert torch.equal(compressed.to_dense(), matrix)
    assert compressed.to_dense().is_contiguous()
    expected = {
        coo: coo_bytes(nnz),
        csr: csr_bytes(nnz, num_rows=shape[0]),
        csc: csc_bytes(nnz, num_cols=shape[1]),
    }
    assert measured_bytes(compressed) == expected[convert]


@pytest.mark.parametrize(("convert", "oracle"), [(csr, "csr_array"), (csc, "csc_array")])
def test_agrees_with_scipy(convert, oracle):
    matrix = random_sparse((30, 50), 0.15)
    expected = getattr(scipy.sparse, oracle)(matrix.numpy())
    compressed = convert(matrix)
    pointers, indices = (
        (compressed.row_ptr, compressed.cols)
        if convert is csr
        else (
            compressed.col_ptr,
            compressed.rows,
        )
    )
    assert pointers.dtype == indices.dtype == torch.int32
    assert pointers.tolist() == expected.indptr.tolist()
    assert indices.tolist() == expected.indices.tolist()
    assert compressed.values.tolist() == expected.data.tolist()


def test_strided_input_and_gradients_do_not_matter():
    matrix = random_sparse((6, 9), 0.3).t().requires_grad_()
    for convert in (coo, csr, csc):
        compressed = convert(matrix)
        assert torch.equal(compressed.to_dense(), matrix)
        assert not compressed.values.requires_grad


def test_crossover_density():
    num_rows, num_cols = 768, 3072
    nnz = int(CROSSOVER_DENSITY * num_rows * num_cols)
    pointers = 4 * (num_rows + 1)
    assert csr_bytes(nnz, num_rows=num_rows) - pointers == dense_bytes(num_rows, num_cols) == 9437184


@pytest.mark.parametrize("convert", [coo, csr, csc])
@pytest.mark.parametrize("bad", [torch.zeros(3), torch.zeros(2, 2, 2), torch.eye(3).to_sparse()])
def test_refuses_what_is_not_a_dense_matrix(convert, bad):
    with pytest.raises(ValueError, match="allowed: dense 2-D"):
        convert(bad)


def test_refuses_more_than_int32_can_index():
    too_wide = torch.zeros(1, 1).expand(1, 2**31)
    with pytest.raises(ValueError, match="int32"):
        csr(too_wide)


def test_torchs_beta_warning_is_not_shown():
    # In a process of its own, because torch warns once.
    code = "import torch; from distsparse.export import csr; csr(torch.eye(2)).to_dense()"
    ran = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
