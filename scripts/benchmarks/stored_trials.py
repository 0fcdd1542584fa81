"""Benchmark: what a study costs that has 10,000 trials already, beside one with 1,000.

A few null trials are run, and their rows copied within the database until a study has as many as wanted. Ask and tell
take turns between both studies. `status` is the command, in a process of its own; a resume is timed from the opening of
the database until a worker has its next trial. With CITYOPT_STORAGE set (an empty PostgreSQL database) the studies are
there, else in a file.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import optuna
import sqlalchemy
from sqlalchemy import Connection

from benchmarks.coordinator import EPOCHS, Studies, configure
from benchmarks.measuring import Bound, Row
from cityopt.search.sampling import build_sampler
from cityopt.search.space import sample_settings
from cityopt.search.storage import join_services, open_storage
from cityopt.search.study import load_stored_study

CHILDREN = {
    "trial_params": "param_name, param_value, distribution_json",
    "trial_values": "objective, value, value_type",
    "trial_intermediate_values": "step, intermediate_value, intermediate_value_type",
    "trial_user_attributes": "key, value_json",
    "trial_system_attributes": "key, value_json",
}


def bench_stored_trials(*, quick: bool) -> list[Row]:
    """Measure 1,000 and 10,000 stored trials; quick: 20 and 200."""
    few, many, turns, num_real = (20, 200, 3, 12) if quick else (1000, 10_000, 25, 40)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with tempfile.TemporaryDirectory() as place:
        studies = {number: Studies(Path(place) / str(number), name=f"stored-{number}") for number in (few, many)}
        for number, study in studies.items():
            join_services(study.folder, os.environ.get("CITYOPT_STORAGE"), None)
            study.advance(num_real)
            multiply_trials(study.folder, study.name, number)
        engine = open_storage(studies[few].folder).engine.dialect.name
        rows = [*_bench_asking(studies[few], studies[many], turns, engine)]
        for what, limit in (("status", 2), ("resume", 5)):
            measure = _time_status if what == "status" else _time_resume
            ours, peer = (median(measure(studies[n]) for _ in range(1 if quick else 3)) for n in (many, few))
            unit = f"s at {many} trials on {engine}; peer: at {few}"
            rows.append(Row(f"stored-trials-{what}", ours, peer, unit, Bound("ours", "<=", limit)))
        return rows


def _bench_asking(few: Studies, many: Studies, turns: int, engine: str) -> list[Row]:
    """Return what ask and tell cost, as studies are by default, and with a sampler that sees all trials."""
    rows = []
    for history, name, bound in ((None, "", Bound("ratio", "<=", 1.5)), (10**6, "-all-seen", None)):
        opened = [_open(study, history) for study in (few, many)]
        for study in opened:
            _ask_and_tell(study)
        taken = [[_ask_and_tell(study) for study in opened] for _ in range(turns)]
        peer, ours = (median(column) for column in zip(*taken, strict=True))
        seen = "all of them" if history else f"{configure(1).search.sampler.history} of them at most"
        unit = f"ms per ask + tell with TPE, which sees {seen}, at {many.name} on {engine}; peer: {few.name}, in turns"
        rows.append(Row(f"stored-trials{name}", ours, peer, unit, bound))
    return rows


def _open(study: Studies, history: int | None) -> optuna.Study:
    opened, config, _ = load_stored_study(open_storage(study.folder), study.name)
    if history is not None:
        sampler = config.search.sampler.model_copy(update={"history": history})
        opened.sampler = build_sampler(sampler, config.search.space, config.seed)
    return opened


def _ask_and_tell(study: optuna.Study) -> float:
    """Return the milliseconds of an ask with all settings and of the tell; the reports between them do not count."""
    begin = time.perf_counter()
    trial = study.ask()
    sample_settings(trial, configure(1).search.space)
    asked = time.perf_counter() - begin
    for epoch in range(1, EPOCHS + 1):
        trial.report(0.1 * epoch, epoch)
    begin = time.perf_counter()
    study.tell(trial, 0.5)
    return 1000 * (asked + time.perf_counter() - begin)


def _time_status(study: Studies) -> float:
    command = [sys.executable, "-m", "cityopt.cli", "status", "--study", study.name, "--store", str(study.folder)]
    begin = time.perf_counter()
    answer = subprocess.run([*command, "--json"], check=True, capture_output=True, text=True)
    taken = time.perf_counter() - begin
    assert len(json.loads(answer.stdout)["trials"]) > 0
    return taken


def _time_resume(study: Studies) -> float:
    """Return the seconds until the next trial begins."""
    began = list[float]()
    begin = time.perf_counter()
    study.advance(1, on_job=lambda: began.append(time.perf_counter()))
    return began[0] - begin


def multiply_trials(folder: Path, name: str, total: int) -> None:
    """Copy a study's trials, row by row and in turn, until it has `total`."""
    storage = open_storage(folder)
    study_id = storage.get_study_id_from_name(name)
    with storage.engine.begin() as connection:
        query = sqlalchemy.text("SELECT trial_id FROM trials WHERE study_id = :study ORDER BY number")
        known = [row[0] for row in connection.execute(query, {"study": study_id})]
        last = connection.execute(sqlalchemy.text("SELECT max(trial_id) FROM trials")).scalar() or 0
        connection.execute(sqlalchemy.text("CREATE TEMPORARY TABLE copies (source INT, target INT, place INT)"))
        copies = [
            {"source": known[i % len(known)], "target": last + 1 + i, "place": len(known) + i}
            for i in range(total - len(known))
        ]
        connection.execute(sqlalchemy.text("INSERT INTO copies VALUES (:source, :target, :place)"), copies)
        _copy_rows(connection)
        connection.execute(sqlalchemy.text("DROP TABLE copies"))


def _copy_rows(connection: Connection) -> None:
    columns = "study_id, state, datetime_start, datetime_complete"
    statements = [
        f"INSERT INTO trials (trial_id, number, {columns}) "
        f"SELECT target, place, {columns} FROM copies JOIN trials ON trial_id = source"
    ]
    statements += [
        f"INSERT INTO {table} (trial_id, {own}) SELECT target, {own} FROM copies JOIN {table} ON trial_id = source"
        for table, own in CHILDREN.items()
    ]
    if connection.dialect.name == "postgresql":  # ids given by hand are not counted
        statements.append(
            "SELECT setval(pg_get_serial_sequence('trials', 'trial_id'), (SELECT max(trial_id) FROM trials))"
        )
    for statement in statements:
        connection.execute(sqlalchemy.text(statement))
