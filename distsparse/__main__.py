"""``python -m distsparse``."""

import sys

from distsparse.cli.main import main

sys.exit(main())
