"""`python -m robustmed.metrics.froc`: scores submissions in the LUNA16 format."""

import sys

from robustmed.metrics.froc import tool

sys.exit(tool.main(sys.argv[1:]))
