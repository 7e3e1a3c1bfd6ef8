"""Work spread over processes and machines by Dask."""

from dfkd_lib.jobs.cluster import (
    LOOK_SECONDS,
    LOST_TIMES,
    Cluster,
    Inline,
    SchedulerLost,
    WorkerLost,
    failed,
    opened,
)
from dfkd_lib.jobs.worker import NO_GPU, Needs, Tell, alone_in_process, most_processes, stopped_by

__all__ = [
    "LOOK_SECONDS",
    "LOST_TIMES",
    "NO_GPU",
    "Cluster",
    "Inline",
    "Needs",
    "SchedulerLost",
    "Tell",
    "WorkerLost",
    "alone_in_process",
    "failed",
    "most_processes",
    "opened",
    "stopped_by",
]
