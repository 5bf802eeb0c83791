"""`hidecmoe convert`, callable by this path from a checkout: the same arguments and exit codes."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hidecmoe_jax.cli.main import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
