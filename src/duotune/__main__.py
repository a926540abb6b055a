"""`python -m duotune`, which is what `torchrun -m duotune train ...` needs."""

import sys

from .endings import watching

if __name__ == "__main__":
    with watching(alone=True):  # from here on, imports included
        from .cli import main

        status = main()
    sys.exit(status)
