"""Models by name: factories ``(input_shape, num_classes, *, ...) -> nn.Module``."""

from distsparse.models.lenet import lenet5
from distsparse.models.mlp import mlp
from distsparse.models.registry import build, models
from distsparse.models.resnet import resnet18, resnet20
from distsparse.models.wide_resnet import wrn_22_2

__all__ = ["build", "lenet5", "mlp", "models", "resnet18", "resnet20", "wrn_22_2"]
