"""Work spread over processes and machines by Dask: one queue, for notebooks and for cells of a grid, also on disk."""

from dfkd_lib.jobs.cluster import Cluster, Inline, SchedulerLost, WorkerLost, failed
from dfkd_lib.jobs.queue import LOST_TIMES, Job, Later, Queue, Skipped, opened_queue
from dfkd_lib.jobs.saved import SavedJobs
from dfkd_lib.jobs.start import opened
from dfkd_lib.jobs.worker import NO_GPU, Needs, Tell, alone_in_process, most_processes, stopped_by
