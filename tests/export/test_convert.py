import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from distsparse.export import CsrConv, CsrLinear, to_csr


def sparsify(model, sparsity=0.9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(torch.rand(parameter.shape, generator=generator) >= sparsity)
    return model


def kinds(model):
    return [type(module) for module in model.modules()]


def assert_same_output(model, converted, x):
    model.eval()
    converted.eval()
    with torch.inference_mode():
        expected, actual = model(x), converted(x)
    assert actual.stride() == expected.stride()
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


class ResidualNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.block = nn.Sequential(nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.ReLU())
        self.shortcut = nn.Conv2d(16, 16, 1, stride=2, bias=False)
        self.head = nn.Linear(16 * 4 * 4, 10)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = self.block(x) + self.shortcut(x)
        return self.head(x.view(len(x), -1))


@pytest.mark.parametrize("batch_size", [0, 1, 2, 3, 4, 63, 64, 65, 200])
@pytest.mark.parametrize("bias", [True, False])
def test_mlp(batch_size, bias):
    model = sparsify(nn.Sequential(nn.Linear(50, 30, bias=bias), nn.ReLU(), nn.Linear(30, 7, bias=bias)))
    converted = to_csr(model, min_sparsity=0.5)
    assert kinds(converted) == [nn.Sequential, CsrLinear, nn.ReLU, CsrLinear]
    assert_same_output(model, converted, torch.randn(batch_size, 50))


@pytest.mark.parametrize("leading", [(), (1,), (3, 5), (2, 3, 4)])
def test_linear_takes_leading_dims(leading):
    model = sparsify(nn.Linear(20, 9))
    assert_same_output(model, to_csr(model, min_sparsity=0.5), torch.randn(*leading, 20))


def test_strided_input():
    model = sparsify(nn.Linear(20, 9))
    assert_same_output(model, to_csr(model), torch.randn(20, 6).t())
    model = sparsify(nn.Conv2d(4, 5, 3, padding=0))
    x = torch.randn(2, 9, 8, 4).permute(0, 3, 1, 2).flip(3)[:, :, 1:, ::2]
    assert_same_output(model, to_csr(model), x.clone(memory_format=torch.contiguous_format))
    with torch.inference_mode():
        torch.testing.assert_close(to_csr(model)(x), model(x))


@pytest.mark.parametrize("batch_size", [1, 5])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3},
        {"kernel_size": 1},
        {"kernel_size": 1, "stride": 2},
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (3, 5), "padding": (0, 2), "stride": (2, 1)},
        {"kernel_size": 3, "padding": 2, "dilation": 2, "stride": 3},
        {"kernel_size": (2, 3), "dilation": (3, 1)},
        {"kernel_size": (4, 2), "padding": "same", "dilation": (1, 2)},
        {"kernel_size": 3, "padding": "valid"},
    ],
)
def test_conv2d(options, bias, batch_size):
    model = sparsify(nn.Conv2d(6, 10, bias=bias, **options))
    converted = to_csr(model, min_sparsity=0.5)
    assert isinstance(converted, CsrConv)
    assert_same_output(model, converted, torch.randn(batch_size, 6, 11, 12))


def test_conv1d_conv3d_and_one_sample_without_batch():
    for model, shape in (
        (nn.Conv1d(4, 6, 5, stride=2, padding=2, dilation=2), (4, 21)),
        (nn.Conv3d(3, 5, (1, 2, 3), padding=(0, 1, 2)), (3, 4, 5, 6)),
        (nn.Conv2d(4, 6, 3), (4, 7, 8)),
    ):
        sparsify(model, 0.8)
        converted = to_csr(model, min_sparsity=0.5)
        assert isinstance(converted, CsrConv)
        assert_same_output(model, converted, torch.randn(3, *shape))
        assert_same_output(model, converted, torch.randn(*shape))


def test_residual_network():
    model = sparsify(ResidualNet())
    model(torch.randn(8, 3, 8, 8))  # running statistics that are not the initial ones
    converted = to_csr(model)
    assert kinds(converted).count(CsrConv) == 3
    assert kinds(converted).count(CsrLinear) == 1
    assert_same_output(model, converted, torch.randn(6, 3, 8, 8))


def test_threshold_is_a_sparsity():
    model = nn.Linear(10, 10)
    with torch.no_grad():
        model.weight.fill_(1.0).view(-1)[:60] = 0
    assert isinstance(to_csr(model, min_sparsity=0.6), CsrLinear)
    assert isinstance(to_csr(model, min_sparsity=0.61), nn.Linear)
    assert isinstance(to_csr(model), nn.Linear)
    assert isinstance(to_csr(nn.Linear(10, 10), min_sparsity=0.0), nn.Linear)


def test_empty_weight():
    model = sparsify(nn.Linear(5, 3), 1.1)
    assert_same_output(model, to_csr(model), torch.randn(4, 5))


def test_what_stays_dense():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = nn.Sequential(
        nn.Conv2d(4, 4, 3, groups=2, padding=1),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
        nn.Flatten(),
        Doubled(4 * 36, 5),
    )
    sparsify(model)
    converted = to_csr(model)
    assert kinds(converted) == kinds(model)
    assert_same_output(model, converted, torch.randn(2, 4, 6, 6))


def test_modules_that_read_their_childrens_weights():
    model = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True), 2, enable_nested_tensor=False
    )
    model = nn.Sequential(model, nn.Linear(8, 8))
    sparsify(model)
    converted = to_csr(model)
    assert kinds(converted).count(CsrLinear) == 1
    assert_same_output(model, converted, torch.randn(3, 5, 8))


def test_reparametrized_weights_stay_correct():
    model = nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)),
        nn.utils.spectral_norm(nn.Linear(8, 8)),  # the older kind: a hook writes the weight
        nn.Linear(8, 8),
    )
    sparsify(model, 0.8)
    with torch.no_grad():
        model(torch.randn(2, 8))
    converted = to_csr(model, min_sparsity=0.5)
    assert kinds(converted).count(CsrLinear) == 1
    assert_same_output(model, converted, torch.randn(5, 8))


def test_one_module_used_twice_and_tied_weights_stay_one():
    layer = nn.Linear(8, 8)
    model = nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(8, 8))
    model[3].weight = layer.weight
    sparsify(model)
    converted = to_csr(model)
    assert converted[0] is converted[2]
    assert converted[3].values is converted[0].values
    assert_same_output(model, converted, torch.randn(5, 8))


def test_the_model_is_left_alone():
    model = sparsify(ResidualNet()).train()
    model.norm.eval()
    before = copy.deepcopy(model.state_dict())
    converted = to_csr(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert kinds(model).count(CsrConv) == 0
    assert converted.stem.training
    assert not converted.norm.training
    assert not to_csr(model.eval()).stem.training
    assert not any(parameter.requires_grad for parameter in converted.parameters())
    converted.head.bias.add_(1)
    assert torch.equal(model.head.bias, before["head.bias"])


def test_holds_only_the_active_weights():
    model = sparsify(nn.Linear(100, 50), 0.95)
    converted = to_csr(model)
    assert converted.values.numel() == int(model.weight.count_nonzero())
    assert converted.cols.dtype == torch.int32
    assert "100 -> 50" in repr(converted)


def test_can_be_copied_and_runs_outside_inference_mode():
    model = sparsify(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)))
    model[0].weight.data.fill_(0.5)  # dense, ahead of a sparse layer
    converted = to_csr(model)
    copied = copy.deepcopy(converted)
    copied[2].values.zero_()
    x = torch.randn(5, 8)
    torch.testing.assert_close(converted(x), model(x).detach())
    assert torch.equal(copied(x), model[2].bias.expand(5, 8))


def test_state_is_plain_tensors_and_loads_in_place():
    models = [sparsify(nn.Sequential(nn.Linear(30, 20), nn.Conv1d(20, 4, 1))) for _ in range(2)]
    first, second = (to_csr(model) for model in models)
    state = first.state_dict()
    assert list(state)[:4] == ["0.row_ptr", "0.cols", "0.values", "0.bias"]
    assert all(value.layout == torch.strided for value in state.values())
    second.load_state_dict(state)
    assert_same_output(models[0][0], second[0], torch.randn(3, 30))


def test_moves_with_the_model():
    model = sparsify(nn.Sequential(nn.Linear(30, 20)))
    x = torch.randn(5, 30).double()
    torch.testing.assert_close(to_csr(model).double()(x), model.double()(x).detach())


@pytest.mark.parametrize("min_sparsity", [-0.1, 1.1])
def test_refuses_a_threshold_that_is_no_fraction(min_sparsity):
    with pytest.raises(ValueError, match="min_sparsity"):
        to_csr(nn.Linear(2, 2), min_sparsity=min_sparsity)


def test_refuses_other_precisions():
    model = sparsify(nn.Sequential(nn.Linear(8, 8))).double()
    with pytest.raises(ValueError, match=r"'0'.*float64.*allowed: float32 on cpu"):
        to_csr(model)
