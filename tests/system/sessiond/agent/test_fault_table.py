"""The fault table: each turn has one outcome, the ledger has the reason, and the next holder's first turn works."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from support.agent.fault_rows import ACKS, BOUNDARIES, BYTES, EXITS, HUGE, Row
from support.agent.fault_scene import DRAIN, Scene
from support.servers import Sessiond, scripted_env
from support.size import FULL

Start = Callable[..., Sessiond]
PATIENT = {"drain_deadline": 60.0, "not_taken": 60.0, "start_deadline": 60.0, "claim_window": 30.0}
SHORT = {"drain_deadline": DRAIN, "not_taken": 3.0, "start_deadline": 6.0, "claim_window": 30.0}
AT_ONCE = 8
ROWS = (*ACKS, *BOUNDARIES, *BYTES, *((HUGE,) if FULL else ()))
TABLES = {
    "acks and boundaries": [row for row in (*ACKS, *BOUNDARIES) if not row.deadlines],
    "bytes": [row for row in ROWS if row not in (*ACKS, *BOUNDARIES) and not row.deadlines],
    "exits": list(EXITS),
    "deadlines": [row for row in ROWS if row.deadlines],
}


@pytest.mark.parametrize("rows", TABLES.values(), ids=TABLES)
def test_each_fault_has_its_outcome_and_the_next_turn_works(
    sessiond: Start, matrix: Callable[..., None], rows: list[Row]
) -> None:
    times = SHORT if rows[0].deadlines else PATIENT
    service = sessiond(scripted_env(**times) | {"SESSIOND_MAX_AGENTS": "100"})
    with ThreadPoolExecutor(AT_ONCE) as pool:
        scenes = list(pool.map(lambda row: Scene(service, row).run(), rows))
    for scene in scenes:
        scene.report(matrix)
    assert {f"{s.row.fault}, {s.row.when}": s.wrong for s in scenes if s.wrong} == {}
