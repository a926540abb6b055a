"""`python -m duotune`, which is what `torchrun -m duotune train ...` needs."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
