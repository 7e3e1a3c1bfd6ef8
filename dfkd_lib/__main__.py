"""`python -m dfkd_lib`: the same command as `dfkd`."""

import sys

from dfkd_lib.cli import main

if __name__ == "__main__":
    sys.exit(main())
