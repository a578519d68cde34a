"""How far a pass over slices is."""

from ctssl_jax.hosts import progress


def test_a_long_pass_tells_how_far_it_is(monkeypatch, capsys):
    """Batches of 64 of 200 slices, a quarter of a minute each."""
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    told = progress.Progress("test", 200)
    for _ in range(4):
        told.batch(64)
        now += 15.0
    assert capsys.readouterr().out == "test: 128 of 200 slices, 4.3 slices/s, 17s left\n"


def test_a_short_pass_tells_nothing(capsys):
    told = progress.Progress("test", 200)
    for _ in range(4):
        told.batch(64)
    assert not capsys.readouterr().out
