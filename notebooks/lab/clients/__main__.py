"""python -m lab.clients MODEL URL."""

import sys

from lab.clients.models import main

sys.exit(main())
