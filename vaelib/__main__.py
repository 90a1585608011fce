"""``python -m vaelib`` is ``vaelib``."""

import sys

from vaelib.cli import main

sys.exit(main())
