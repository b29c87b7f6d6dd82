"""python -m lab.mirror URL COPY."""

import sys

from lab.mirror import main

sys.exit(main())
