"""The queue of jobs: in the order of their needs, skipped after a failure, handed in again when a worker is lost."""

from concurrent.futures import Future
from types import SimpleNamespace

import pytest
from distributed import KilledWorker

from dfkd_lib import jobs
from dfkd_lib.jobs import Job, Needs, Queue, SchedulerLost, Skipped, WorkerLost, queue

LOST = KilledWorker("task", SimpleNamespace(address="tcp://worker"), 2)


class Hand:
    """A cluster whose jobs end when a test says so."""

    def __init__(self, room: int = 2):
        self.room, self.futures, self.handed_in, self.alive = room, {}, [], True

    def needs(self, memory, gpu, threads):
        return Needs(threads or 1, memory, gpu)

    def free(self, running):
        return running < self.room

    def submit(self, name, function, *args, needs):
        self.handed_in.append(name)
        self.futures[name] = Future()
        return self.futures[name]

    def answers(self):
        return self.alive

    def end(self, name, answer=None):
        future = self.futures[name]
        future.set_exception(answer) if isinstance(answer, Exception) else future.set_result(answer)


@pytest.fixture
def made():
    notes, heard = [], []
    found = Queue(lambda job, message: heard.append((job.name, message)), notes.append)
    found.cluster, found.notes, found.heard = Hand(), notes, heard
    return found


def ends_at_once(made: Queue, answers: dict) -> None:
    """Have each job end as it is handed in, with its answer (by default its name)."""
    submit = made.cluster.submit

    def at_once(name, *args, needs):
        future = submit(name, *args, needs=needs)
        made.cluster.end(name, answers.get(name, name))
        return future

    made.cluster.submit = at_once


def hand_in(made: Queue) -> None:
    """Hand in what is ready, and break off there."""
    made.interrupt()
    with pytest.raises(KeyboardInterrupt):
        list(made)


def drive(made: Queue, **answers) -> list[tuple[str, object]]:
    """(name, answer) in order, each job ending at once with its answer."""
    ends_at_once(made, answers)
    return [(job.name, answer) for job, answer in made]


def test_jobs_start_in_order_when_what_they_wait_for_has_ended(made):
    made.cluster.room = 1
    for name, options in {
        "last": {"after": ["a", "b"]},
        "a": {},
        "b": {"builds_on": ("a",)},
        "c": {},
    }.items():
        made.add(Job(name, print, **options))
    assert [name for name, _ in drive(made)] == ["a", "b", "last", "c"]


def test_no_more_run_than_there_is_room_for(made):
    for name in "abc":
        made.add(Job(name, print))
    hand_in(made)
    assert (
        made.cluster.handed_in == ["a", "b"] and len(made.running) == 2
    )  # for whoever ends what runs
    made.cluster.end("a", 1)
    assert next(iter(made))[1] == 1
    assert made.cluster.handed_in == ["a", "b"]


def test_what_builds_on_a_failure_is_skipped_and_what_only_waits_runs(made):
    made.add(Job("a", print))
    made.add(Job("bad", print, succeeded=lambda answer: answer == "well"))
    made.add(Job("on both", print, builds_on=("a", "bad")))
    made.add(Job("on that", print, builds_on=("on both",)))
    made.add(Job("after all", print, after=["a", "bad", "on both", "on that"]))
    found = dict(drive(made))
    assert found["on both"] == Skipped("bad") and found["on that"] == Skipped("on both")
    assert found["after all"] == "after all" and "on both" not in made.cluster.handed_in


def test_what_another_stands_in_the_way_of_is_handed_in_again_when_one_has_ended(made):
    for name in ("maker", "student", "other"):
        made.add(Job(name, print))
    found = []

    def end(name, answer):
        made.cluster.end(name, answer)
        found.append(next(waiting)[0].name)

    hand_in(made)
    waiting = iter(made)
    made.cluster.end("student", jobs.Later("key"))
    end("maker", "made")
    assert made.cluster.handed_in == ["maker", "student", "other"] and found == ["maker"]
    end("other", "made")
    assert made.cluster.handed_in == ["maker", "student", "other", "student"]
    end("student", "made")
    assert found == ["maker", "other", "student"] and not made.jobs


def test_what_waits_for_a_part_of_another_ones_work_is_tried_again_after_a_while(made, monkeypatch):
    monkeypatch.setattr(queue, "LATER_SECONDS", 0.0)
    monkeypatch.setattr(queue, "WAKE_SECONDS", 0.01)
    for name in ("long", "student"):
        made.add(Job(name, print))
    hand_in(made)
    made.cluster.end("student", jobs.Later("key"))
    ends_at_once(made, {})
    assert next(iter(made))[0].name == "student" and "long" in made.running


def test_what_nothing_of_this_run_stands_in_the_way_of_has_ended(made):
    """Another run makes it: whoever needs it waits there."""
    made.add(Job("student", print))
    assert drive(made, student=jobs.Later("key")) == [("student", jobs.Later("key"))]


def test_an_error_is_an_answer(made):
    made.add(Job("a", print))
    made.add(Job("b", print, builds_on=("a",)))
    (_, error), (_, skipped) = drive(made, a=ValueError("no"))
    assert isinstance(error, ValueError) and skipped == Skipped("a")


def test_jobs_may_be_added_while_others_run(made):
    made.add(Job("first", print))
    made.add(Job("whole", print, after=["first"]))
    ends_at_once(made, {})
    found = []
    for job, _ in made:
        found.append(job.name)
        if job.name == "first":
            made.add(Job("part", print))
            made.jobs["whole"].after.append("part")
    assert found == ["first", "part", "whole"]


def test_a_job_lost_before_it_began_is_handed_in_again_but_not_for_ever(made):
    made.add(Job("a", print))
    ((_, answer),) = drive(made, a=LOST)
    assert isinstance(answer, WorkerLost)
    assert made.cluster.handed_in == ["a"] * jobs.LOST_TIMES
    assert len(made.notes) == jobs.LOST_TIMES - 1 and "handed in again" in made.notes[0]


def test_a_job_that_had_begun_is_not_handed_in_again(made):
    """Dask itself has run it again as often as is worth while."""
    made.add(Job("a", print))
    made.receive("a", {"started": 1.0, "where": "here"})
    made.receive("a", {"started": 2.0, "where": "there"})
    assert made.heard == [("a", {"started": 1.0, "where": "here"})]
    assert "it runs again on there" in made.notes[0] and made.jobs["a"].began
    ((_, answer),) = drive(made, a=LOST)
    assert isinstance(answer, WorkerLost) and made.cluster.handed_in == ["a"]
    made.receive("a", {"line": "late"})  # of a job that has ended
    assert len(made.heard) == 1


def test_a_scheduler_that_is_gone_ends_the_queue(made, monkeypatch):
    monkeypatch.setattr(queue, "WAKE_SECONDS", 0.05)
    made.add(Job("a", print))
    made.cluster.alive = False
    with pytest.raises(SchedulerLost):
        list(made)


def test_whatever_is_raised_in_the_body_ends_what_runs(monkeypatch):
    stopped = []
    monkeypatch.setattr(jobs.Inline, "stop", lambda self: stopped.append(self))
    with pytest.raises(ValueError), jobs.opened_queue(1, None):
        raise ValueError
    assert len(stopped) == 1
