"""`python -m atelier`: see cli.py."""

import sys

from atelier.cli import main

sys.exit(main())
