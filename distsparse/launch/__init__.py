"""Run a configuration in this process or on Ray Train workers, and write its tables.

Ray is imported only by the modules that need it.
"""

from distsparse.launch.latency import record_latency
from distsparse.launch.local import run_local
from distsparse.launch.record import finished_row, record_failed
from distsparse.launch.run import run

__all__ = ["finished_row", "record_failed", "record_latency", "run", "run_local"]
