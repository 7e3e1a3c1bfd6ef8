"""Work spread over processes and machines by Dask."""

from dfkd_lib.fanout.cluster import LOOK_SECONDS, LOST_TIMES, Cluster, Inline, SchedulerLost, WorkerLost, failed, opened
from dfkd_lib.fanout.worker import NO_GPU, Needs, Tell, alone_in_process, cores, most_processes, stopped_by

__all__ = ["LOOK_SECONDS", "LOST_TIMES", "NO_GPU", "Cluster", "Inline", "Needs", "SchedulerLost", "Tell", "WorkerLost",
           "alone_in_process", "cores", "failed", "most_processes", "opened", "stopped_by"]
