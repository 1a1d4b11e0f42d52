import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from distsparse.export import Segment, inference_flops, layer_flops, training_flops


def lenet():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )


class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, groups=4, dilation=2)
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 5))

    def forward(self, x):
        return self.head(self.grouped(self.norm(self.stem(x))).mean((2, 3)))


def test_lenet_by_hand():
    assert layer_flops(lenet(), (1, 28, 28)) == {"1.weight": 470400, "3.weight": 60000, "5.weight": 2000}


def test_convolutions_by_hand():
    flops = layer_flops(ConvNet(), (3, 12, 12))
    assert flops == {
        "stem.weight": 2 * 8 * 27 * 6 * 6,
        "grouped.weight": 2 * 8 * 2 * 9 * 2 * 2,
        "head.1.weight": 2 * 8 * 5,
    }


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (lenet(), (28, 28)),
        (ConvNet(), (3, 20, 14)),
        (nn.Linear(4, 5), (7, 4)),
        (nn.Sequential(nn.Conv1d(2, 6, 3), nn.Conv1d(6, 4, 5, stride=2)), (2, 30)),
        (nn.Conv3d(2, 3, (1, 2, 3), padding=1), (2, 4, 5, 6)),
    ],
)
def test_total_agrees_with_torchs_counter(model, shape):
    model.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, *shape))
    assert sum(layer_flops(model, shape).values()) == counter.get_total_flops()


def test_reused_and_tied_weights_add_up_and_unused_ones_are_zero():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.Linear(4, 4)
            self.tied = nn.Linear(4, 4)
            self.tied.weight = self.cell.weight
            self.unused = nn.Linear(4, 4)

        def forward(self, x):
            return self.tied(self.cell(self.cell(x)))

    assert layer_flops(Recurrent(), (4,)) == {"cell.weight": 3 * 32, "unused.weight": 0}


@pytest.mark.parametrize(("kdim", "vdim"), [(None, None), (6, 10)])
def test_attention_counts_its_projections(kdim, vdim):
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, kdim=kdim, vdim=vdim, batch_first=True)

        def forward(self, x):
            key, value = x[:, :3, : kdim or 8], x[:, :3, : vdim or 8].repeat(1, 1, 2)[..., : vdim or 8]
            return self.attention(x, key, value=value)[0]

    flops = layer_flops(Attention(), (5, 8))
    assert flops.pop("attention.out_proj.weight") == 2 * 5 * 64
    if kdim is None:
        assert flops == {"attention.in_proj_weight": 2 * 64 * (5 + 3 + 3)}
    else:
        assert flops == {
            "attention.q_proj_weight": 2 * 5 * 64,
            "attention.k_proj_weight": 2 * 3 * 48,
            "attention.v_proj_weight": 2 * 3 * 80,
        }


def test_encoder_layer_is_counted_although_torch_would_fuse_it():
    layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True).eval()
    flops = layer_flops(layer, (5, 8))
    assert flops["self_attn.in_proj_weight"] == 2 * 5 * 8 * 24
    assert flops["linear1.weight"] == flops["linear2.weight"] == 2 * 5 * 8 * 16


def test_transformers_conv1d_stores_its_weight_transposed():
    conv1d = type("Conv1D", (nn.Module,), {"__module__": "transformers.pytorch_utils"})
    module = conv1d()
    module.weight = nn.Parameter(torch.zeros(4, 6))
    module.forward = lambda x: x @ module.weight
    assert layer_flops(nn.Sequential(module), (3, 4)) == {"0.weight": 2 * 3 * 4 * 6}


def test_tokens():
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 10, bias=False))
    assert layer_flops(model, (7,), dtype=torch.long) == {"1.weight": 2 * 7 * 40}


def test_leaves_the_model_as_it_was():
    model = ConvNet().train()
    model.norm.eval()
    model(torch.randn(2, 3, 12, 12)).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    modes = [module.training for module in model.modules()]
    random_state = torch.get_rng_state()
    layer_flops(model, (3, 12, 12))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(p.grad, gradients[name]) for name, p in model.named_parameters())
    assert all(torch.equal(b, buffers[name]) for name, b in model.named_buffers())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any(module._forward_hooks for module in model.modules())


def test_hooks_and_modes_are_restored_when_the_model_fails():
    model = ConvNet()
    with pytest.raises(RuntimeError):
        layer_flops(model, (4, 12, 12))
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_inference_flops_weighs_layers_by_cost():
    flops = {"a": 300, "b": 100}
    assert inference_flops(flops, {"a": 0.1}) == pytest.approx((30 + 100) / 400)
    assert inference_flops(flops, {}) == 1
    assert inference_flops(flops, {"a": 0.0, "b": 0.0}) == 0


@pytest.mark.parametrize(
    ("flops", "density", "message"),
    [
        ({"a": 1}, {"b": 0.5}, r"'b'.*allowed: a"),
        ({"a": 1}, {"a": 1.5}, r"'a' = 1.5.*0 to 1"),
        ({"a": 0}, {}, "no FLOPs"),
    ],
)
def test_inference_flops_refuses(flops, density, message):
    with pytest.raises(ValueError, match=message):
        inference_flops(flops, density)


@pytest.mark.parametrize("sparse", [0.0, 0.1, 0.42, 1.0])
@pytest.mark.parametrize("delta_T", [1, 100])
def test_published_training_costs(sparse, delta_T):
    dense = 1.0
    rigl = (3 * sparse * delta_T + 2 * sparse + dense) / (3 * dense * (delta_T + 1))
    assert training_flops([Segment(delta_T + 1, 1, sparse)]) == pytest.approx(rigl)
    assert training_flops([Segment(delta_T, 0, sparse)]) == pytest.approx(sparse)
    snfs = (2 * sparse + dense) / (3 * dense)
    assert training_flops([Segment(delta_T, delta_T, sparse)]) == pytest.approx(snfs)


def test_rigl_at_ninety_percent_by_hand():
    assert math.isclose(training_flops([(101, 1, 0.1)]), (30 + 0.2 + 1) / 303)


def test_segments_are_weighed_by_their_steps():
    assert training_flops([(10, 0, 1.0), (30, 0, 0.2)]) == pytest.approx((10 * 1.0 + 30 * 0.2) / 40)
    assert training_flops([(10, 2, 0.5), (0, 0, 0.1)]) == training_flops([(10, 2, 0.5)])


@pytest.mark.parametrize(
    ("segments", "message"),
    [([], "no steps"), ([(1, 2, 0.5)], "num_dense_gradient_steps"), ([(1, 0, 1.1)], "0 to 1")],
)
def test_training_flops_refuses(segments, message):
    with pytest.raises(ValueError, match=message):
        training_flops(segments)
