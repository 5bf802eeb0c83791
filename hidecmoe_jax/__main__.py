"""`python -m hidecmoe_jax` is `hidecmoe`."""

import sys

from hidecmoe_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
