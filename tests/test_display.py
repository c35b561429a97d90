from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from palimpsest.display import Display
from palimpsest.forecast import forecast
from palimpsest.jobs import jobs
from palimpsest.runner import Runner
from palimpsest.store import Store
from scripted import FISH, Dampen, Follow, Seeds, audit
from tiny import tiny_model


@pytest.mark.parametrize("terminal", [True, False])
def test_a_run_is_seen_to_go_on_and_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    monkeypatch.setattr("palimpsest.protocol.shipped_concepts", lambda: {"fish": FISH})
    budget = {"looks": 2, "passes": 20}
    planned = audit(attacks=["direct", Seeds(), Follow()], erasers=[Dampen()], measures=["neighbours"], budget=budget)
    written, model, left = StringIO(), tiny_model(), jobs(planned)
    expected = forecast(planned, model, left)
    console = Console(file=written, force_terminal=terminal, width=200)
    seen = []
    with Display(console, planned, model, left, expected) as display, Store(tmp_path, planned) as store:

        def watch(event) -> None:
            display.watch(event)
            (task,) = display._progress.tasks
            seen.append((task.completed, task.fields["counts"]))

        Runner(audit=planned, store=store, base=model, watch=watch).run()
        assert [one for one, _ in seen] == sorted(one for one, _ in seen)
        assert seen[-1][0] == expected.passes  # every goal and every picture has been accounted for
        assert "(of 10 goals)" in seen[-1][1]
        assert "pictures/s" in seen[-1][1]
    if terminal:
        assert "church · dampen" in written.getvalue()
    else:
        lines = written.getvalue().splitlines()
        assert "church · dampen · erasing" in lines
        assert "church · dampen · measuring neighbours" in lines
        assert len(lines) == len(set(lines))
