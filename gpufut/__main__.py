"""``python -m gpufut`` is ``gpufut``."""

from __future__ import annotations

import sys

from gpufut.cli import main

if __name__ == "__main__":
    sys.exit(main())
