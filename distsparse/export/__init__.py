"""Ship a trained sparse network: compressed formats, conversion, theoretical cost and measured latency."""

from distsparse.export.convert import CsrConv, CsrLinear, to_csr
from distsparse.export.flops import Segment, inference_flops, layer_flops, training_flops
from distsparse.export.formats import (
    CROSSOVER_DENSITY,
    Coo,
    Csc,
    Csr,
    coo,
    coo_bytes,
    csc,
    csc_bytes,
    csr,
    csr_bytes,
    dense_bytes,
)
from distsparse.export.latency import Latency, compare, measure
from distsparse.export.machine import describe
from distsparse.export.shrink import shrink

__all__ = [
    "CROSSOVER_DENSITY",
    "Coo",
    "Csc",
    "Csr",
    "CsrConv",
    "CsrLinear",
    "Latency",
    "Segment",
    "compare",
    "coo",
    "coo_bytes",
    "csc",
    "csc_bytes",
    "csr",
    "csr_bytes",
    "dense_bytes",
    "describe",
    "inference_flops",
    "layer_flops",
    "measure",
    "shrink",
    "to_csr",
    "training_flops",
]
