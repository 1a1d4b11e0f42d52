from __future__ import annotations

import pytest
import torch
from torch import nn

from distsparse.core import SparseWeight, find_weights


def names(model: nn.Module, **patterns: tuple[str, ...]) -> list[str]:
    return [weight.name for weight in find_weights(model, **patterns)]


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.conv1 = nn.Conv1d(2, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.block = nn.ModuleDict({"conv2": nn.Conv2d(4, 6, 3, groups=2), "conv3": nn.Conv3d(1, 2, 2)})
        self.attention = nn.MultiheadAttention(8, 2)
        self.layer_norm = nn.LayerNorm(8)
        self.up = nn.ConvTranspose2d(2, 2, 2)
        self.bilinear = nn.Bilinear(2, 2, 2)
        self.head = nn.Linear(8, 3)


def test_linear_convolutions_and_attention_in_model_order() -> None:
    assert names(Mixed()) == [
        "conv1.weight",
        "block.conv2.weight",
        "block.conv3.weight",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "head.weight",
    ]


def test_attention_with_own_key_and_value_sizes_has_three_projections() -> None:
    attention = nn.MultiheadAttention(8, 2, kdim=4, vdim=6)
    assert names(attention) == ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"]


def test_shapes_and_kinds() -> None:
    found = {weight.name: weight for weight in find_weights(Mixed())}
    assert found["block.conv2.weight"].shape == (6, 2, 3, 3)  # grouped: each output sees half of the inputs
    assert found["block.conv2.weight"].kind == "Conv2d"
    assert found["attention.in_proj_weight"].shape == (24, 8)
    assert found["attention.in_proj_weight"].kind == "MultiheadAttention"


def test_include_and_exclude() -> None:
    assert names(Mixed(), include=("block.*", "head.weight")) == [
        "block.conv2.weight",
        "block.conv3.weight",
        "head.weight",
    ]
    assert names(Mixed(), include=("block.*", "head.*"), exclude=("*.conv3.*",)) == [
        "block.conv2.weight",
        "head.weight",
    ]
    with pytest.raises(
        ValueError, match=r"include pattern 'blok\.\*' matches no weight; weights: conv1\.weight"
    ):
        find_weights(Mixed(), include=("blok.*",))
    with pytest.raises(ValueError, match="exclude pattern 'Head"):
        find_weights(Mixed(), exclude=("Head.weight",))


@pytest.mark.parametrize(
    ("model", "patterns"),
    [(nn.Sequential(nn.Embedding(3, 2), nn.LayerNorm(2)), {}), (nn.Linear(2, 2), {"exclude": ("*",)})],
)
def test_nothing_to_sparsify(model: nn.Module, patterns: dict) -> None:
    with pytest.raises(ValueError, match="nothing to sparsify"):
        find_weights(model, **patterns)


def test_tied_weights_are_one_weight_under_the_first_name() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    assert names(model) == ["0.weight"]
    shared = nn.Linear(4, 4)
    assert names(nn.Sequential(shared, shared)) == ["0.weight"]


def test_a_weight_tied_to_an_embedding_is_an_embedding() -> None:
    model = nn.ModuleDict(
        {"head": nn.Linear(8, 11), "body": nn.Linear(8, 8), "embedding": nn.Embedding(11, 8)}
    )
    model["head"].weight = model["embedding"].weight
    assert names(model) == ["body.weight"]


def test_names_are_those_of_the_inner_model() -> None:
    inner = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))
    assert names(nn.DataParallel(inner)) == ["0.weight", "1.0.weight"]
    compiled = torch.compile(inner)
    assert names(compiled) == ["0.weight", "1.0.weight"]
    assert names(nn.DataParallel(compiled)) == ["0.weight", "1.0.weight"]
    inner[1] = torch.compile(inner[1])
    assert names(inner) == ["0.weight", "1.0.weight"]


def test_a_submodule_called_module_keeps_its_name() -> None:
    assert names(nn.ModuleDict({"module": nn.Linear(2, 2)})) == ["module.weight"]


def test_a_frozen_weight_is_not_sparsified() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].weight.requires_grad_(False)
    assert names(model) == ["1.weight"]


def test_names_that_merely_contain_a_wrappers_name_are_kept() -> None:
    model = nn.ModuleDict({"submodule": nn.Linear(2, 2), "my_orig_mod": nn.Linear(2, 2)})
    assert names(model) == ["submodule.weight", "my_orig_mod.weight"]


def conv1d_of(module: str) -> nn.Module:
    """A class like transformers' Conv1D: the weight is stored (in, out)."""

    def initialize(self: nn.Module) -> None:
        nn.Module.__init__(self)
        self.weight = nn.Parameter(torch.arange(6.0).reshape(3, 2))

    return type("Conv1D", (nn.Module,), {"__init__": initialize, "__module__": module})()


def test_transformers_conv1d_is_transposed() -> None:
    (weight,) = find_weights(conv1d_of("transformers.pytorch_utils"))
    assert weight.transposed
    assert weight.shape == (2, 3)
    matrix = weight.matrix(weight.parameter)
    assert matrix.tolist() == [[0, 2, 4], [1, 3, 5]]
    assert torch.equal(weight.unmatrix(matrix), weight.parameter)
    with pytest.raises(ValueError, match="nothing to sparsify"):
        find_weights(conv1d_of("elsewhere"))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_matrix_rows_are_outputs_in_any_memory_layout(memory_format: torch.memory_format) -> None:
    values = torch.arange(24.0).reshape(2, 3, 2, 2)
    parameter = nn.Parameter(values.clone().to(memory_format=memory_format))
    weight = SparseWeight("w", "Conv2d", parameter)
    assert weight.matrix(parameter).tolist() == values.reshape(2, 12).tolist()
    assert torch.equal(weight.unmatrix(weight.matrix(parameter)), values)


def test_a_lazy_layer_has_no_shape_yet() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LazyLinear(2))
    with pytest.raises(ValueError, match="layer '1' has no shape yet: pass a batch through the model first"):
        find_weights(model)
    model(torch.ones(1, 3))
    assert names(model) == ["0.weight", "1.weight"]
