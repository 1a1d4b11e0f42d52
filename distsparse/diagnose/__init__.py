"""What a network's layers tell about its topology: measurements on a model, without a run."""

from distsparse.diagnose.layer_scan import LayerLoss, curves, layer_scan

__all__ = ["LayerLoss", "curves", "layer_scan"]
