"""Experiment trackers: a run's rows in TensorBoard, Weights & Biases and MLflow, as they come.

The Parquet tables are the record, and are always written; a tracker that fails ends no training.
"""

from distsparse.loggers.logs import TRACKERS, Logs, check_installed

__all__ = ["TRACKERS", "Logs", "check_installed"]
