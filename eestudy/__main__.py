"""`python -m eestudy` is `eestudy`."""

import sys

from eestudy.cli import main

sys.exit(main())
