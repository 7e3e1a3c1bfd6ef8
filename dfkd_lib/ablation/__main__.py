"""`python -m dfkd_lib.ablation STORE`: work off the queue of a store; started by the ablation widget."""

import signal
import sys
from contextlib import suppress
from functools import partial

from dfkd_lib.ablation.cells import saved_jobs, work
from dfkd_lib.core import Store


def main(root: str) -> None:
    """Work until nothing has waited for a while; SIGTERM ends a training as Ctrl-C does, its finished epochs kept."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        saved_jobs(Store(root)).work(partial(work, from_disk=True), root)


if __name__ == "__main__":
    main(sys.argv[1])
