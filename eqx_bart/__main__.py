"""`python -m eqx_bart`."""

import sys

from .cli import main


sys.exit(main())
