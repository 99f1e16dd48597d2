"""A pipeline that is killed while it searches, trains and quantizes ends with the same bits."""

import signal
import time

import killing
import numpy as np
import small_pipeline

PAUSE = 0.15  # seconds before each chunk, so that phases last as long as moments are drawn from
LONGEST = 0.5


def test_sigkill_in_every_phase_does_not_change_a_bit(tmp_path):
    reference = small_pipeline.reference()
    rng = np.random.default_rng()  # other moments each time
    hits = []
    for phase in ('search', 'float', 'trained-bits'):
        process = reference.start(tmp_path, pause=PAUSE)
        alive = killing.wait_until_written(process, tmp_path / phase)
        time.sleep(rng.uniform(0, LONGEST))
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        assert alive, errors
        hits.append(process.returncode == -signal.SIGKILL)
        assert not (tmp_path / 'results.json').exists() or phase == 'trained-bits'
    assert all(hits[:2])  # the last phase may have ended before
    killing.finish(reference.start(tmp_path))
    got, expected = (small_pipeline.results(w) for w in (tmp_path, reference.workdir))
    assert set(got) == set(expected)
    different = {
        name: _first_difference(got[name], expected[name])
        for name in expected
        if got[name] != expected[name]
    }
    assert not different


def _first_difference(got, expected):
    """Where two results part: for metrics the record and its fields, so that a failure tells."""
    if not isinstance(expected, list) or len(got) != len(expected):
        return got, expected
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        if a != b:
            keys = {*a, *b} if isinstance(a, dict) and isinstance(b, dict) else ()
            return i, {k: (a.get(k), b.get(k)) for k in keys if a.get(k) != b.get(k)} or (a, b)
    return None
