"""Whether a limit of address space (`ulimit -v`, batch systems) may have changed what was computed.

MKL, which multiplies torch's matrices on x86 processors, asks for scratch space. Where that is refused it reports nothing:
it takes kernels that need none and round otherwise. What is computed so close to the limit that such a request may have
been refused is therefore never saved: no epoch, no artifact.
"""

import re
from pathlib import Path

from dfkd_lib.core.errors import WorkbenchError

SCRATCH = 64 * 2**20  # bytes of one thread: several times what MKL asks for (4 to 12 MB measured)
RAN_OUT = re.compile(
    r"out of memory|can(no|.)t allocate memory|not enough memory|bad_alloc|MemoryError"
    r"|could not create a primitive",  # oneDNN, without space for its generated code
    re.IGNORECASE,
)
STATUS = Path("/proc/self/status")


def check(where: object = None) -> None:
    """Refuse what this process has computed if a request for scratch space may have been refused.

    A request of S bytes is refused only where limit - S is already in use, so the highest use so far tells. Systems
    without /proc do not enforce such limits.

    Raises:
        WorkbenchError: if the highest use of address space so far is within the scratch space of the limit.
    """
    if not STATUS.exists():
        return
    import resource

    import torch

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return
    used = re.search(r"^VmPeak:\s+(\d+) kB", STATUS.read_text(), re.M)
    peak = 1024 * int(used.group(1)) if used else 0
    scratch = SCRATCH * torch.get_num_threads()
    if peak + scratch > limit:
        raise WorkbenchError(
            "memory ran out: so close to the limit of address space kernels may round differently",
            expected=f"{scratch / 1e6:,.0f} MB to spare",
            got=f"{peak / 1e6:,.0f} MB used at most, of {limit / 1e6:,.0f} MB",
            where=where,
            fix="raise the limit (ulimit -v), or lower batch_size or the model's size; what was finished "
            "before is kept and resumed",
        )
