"""Tasks from their adding to their end, by real workers on a real sessiond with the scripted agent."""

from collections.abc import Callable

from worker_crew import SESSION, Scene, line

Start = Callable[..., Scene]


def test_a_task_of_several_turns(scene: Start) -> None:
    s = scene()
    task = s.add(line("more", "a"), line("more", "b"), line("done", "all of it"), asked_by="ann")
    found = s.settled(task)
    assert (found.state, found.note, found.used.turns, found.turn.key) == ("done", "all of it", 3, f"{task.id}:3:1")
    assert round(found.used.usd, 6) == 0.003 and 0 < found.used.seconds < 5
    entries = s.entries()
    assert sum(e["event"] == "granted" for e in entries) == 1, "several turns under one lease"
    assert [e["reason"] for e in entries if e["event"] == "ended"] == ["released"]
    first, second, _ = s.prompts()
    assert "asked for by ann" in first and "Begin with it now" in first and "Go on with it" in second
    assert s.client.view(SESSION)["queue"] == []
