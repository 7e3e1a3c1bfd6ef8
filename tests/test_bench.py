"""The throughput table measures every step through the real loop."""

from dfkd_lib import bench


def test_the_table_has_a_positive_speed_for_each_step(monkeypatch, capsys):
    monkeypatch.setattr(bench, "BATCH", 4)
    monkeypatch.setattr(bench, "STEPS", 1)
    monkeypatch.setenv("DFKD_PROGRESS", "none")
    bench.print_table(repeats=1)
    lines = capsys.readouterr().out.splitlines()
    names = ("teacher, cross entropy", "student, KD + CE + patch", "GAN, vanilla", "GAN, augmented")
    for name in names:
        (line,) = [line for line in lines if line.startswith(name)]
        speed, ratio = map(float, line.removeprefix(name).split())
        assert speed > 0 and ratio > 0
    assert lines[-1].startswith("last make report: ")
