"""Entry point of `python -m crossent_jax.demo`."""

import sys

from crossent_jax.demo.cli import main

if __name__ == "__main__":
    sys.exit(main())
