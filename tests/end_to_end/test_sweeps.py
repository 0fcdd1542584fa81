"""Whole sweeps: the same study whatever happens on the way, and nothing left half done."""

import json

import pytest
from command_line import STUDY, read_curves, read_runs, read_trials, run, run_here
from optuna.trial import TrialState

from cityopt.runtime import derive_seed
from cityopt.search.status import RUN_ID
from cityopt.tracking.mlflow_store import MlflowStore

pytestmark = pytest.mark.slow
DISTURBED = ("stopped", "interrupted", "coordinator_killed", "worker_killed")
MEASURED = ("system/", "train/images_per_s")
"""Metrics of the machine, which no two runs share."""


def read_sweep_runs(store):
    """Return the runs of a sweep: other tests promote from the same stores."""
    return {name: found for name, found in read_runs(store).items() if not name.startswith("promotion")}


def summarize(trials):
    return [(t.number, t.state, t.params, t.values, t.intermediate_values) for t in trials]


def test_calm_study_learns_prunes_and_tells_the_next_step(stories):
    calm = stories("calm")
    trials = read_trials(calm.store)
    states = [trial.state for trial in trials]
    assert len(trials) == 5 and TrialState.PRUNED in states and states[0] == states[3] == TrialState.COMPLETE
    assert len({trial.value for trial in trials}) == 5, "scores must differ, or nothing below shows anything"
    assert trials[0].params == {"training.learning_rate": 1e-3, "training.weight_decay": 1e-2}  # the baseline
    output = calm.answers[0].output
    assert str(calm.store) in output and "cityopt promote --study tiny --store" in output
    assert "worker ready on cpu with 1 threads" in output and "\x1b" not in output  # plain lines without a terminal


@pytest.mark.parametrize("name", ["calm", "coordinator_killed"])
def test_look_at_the_data_is_on_the_parent_run(stories, name):
    store = stories(name).store
    mlflow = MlflowStore(store)
    parent = mlflow.find_run("tiny", "tiny")
    summary = json.loads(mlflow.fetch_artifact(parent, "data/stats.json").read_text())
    assert all(mlflow.fetch_artifact(parent, f"data/{file}") for file in summary["files"])
    facts = json.loads(mlflow.fetch_artifact(parent, "anchors.json").read_text())
    assert summary["anchors"]["sizes"] == facts["sizes"] and summary["splits"]["train"]["images"] > 10


def test_plan_tells_what_the_calm_study_cost(stories):
    """Of its times a test cannot tell on a busy machine: they are compared where nothing else runs."""
    calm = stories("calm")
    answer = run_here("plan", "--study", STUDY, "--store", calm.store, "--device", "cpu", "--json")
    assert answer.code == 0, answer
    found = json.loads(answer.output)
    assert (found["study"], found["trials"], found["workers"], found["epochs"]) == ("tiny", 5, 1, 4)
    for key in ("trial_s", "sweep_s", "device_s"):
        assert 0 < found[key]["low"] <= found[key]["likely"] <= found[key]["high"]
    needed = max(value for *_, value in read_curves(calm.store, "trial-0000")["system/rss_gib"])
    assert 0.75 * needed < found["memory_gib"] < 1.25 * needed
    assert not list(calm.store.glob(".plan-*"))


@pytest.mark.parametrize("name", DISTURBED)
def test_study_equals_the_calm_one_when_disturbed(stories, name):
    calm, disturbed = stories("calm"), stories(name)
    assert summarize(read_trials(disturbed.store)) == summarize(read_trials(calm.store))
    for run_name in read_sweep_runs(calm.store):
        expected, found = (read_curves(store, run_name) for store in (calm.store, disturbed.store))
        assert found.keys() == expected.keys()
        for metric, points in expected.items():
            assert [step for step, *_ in found[metric]] == [step for step, *_ in points], (run_name, metric)
            if not metric.startswith(MEASURED):
                assert [v for *_, v in found[metric]] == [v for *_, v in points], (run_name, metric)


@pytest.mark.parametrize("name", ["calm", *DISTURBED])
def test_nothing_stays_running_when_a_study_is_done(stories, name):
    story = stories(name)
    trials, runs = read_trials(story.store), read_sweep_runs(story.store)
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    ends = {TrialState.COMPLETE: "FINISHED", TrialState.PRUNED: "KILLED"}
    expected = {f"trial-{trial.number:04d}": ends[trial.state] for trial in trials} | {"tiny": "FINISHED"}
    assert {run_name: found.info.status for run_name, found in runs.items()} == expected


@pytest.mark.parametrize("name", ["calm", *DISTURBED])
def test_curve_is_whole_and_each_run_has_its_own_number_and_seed_when_done(stories, name):
    story = stories(name)
    runs = read_runs(story.store)
    for trial in read_trials(story.store):
        run_name = f"trial-{trial.number:04d}"
        found = runs[run_name]
        assert found.data.tags["cityopt.trial"] == str(trial.number)
        assert found.data.tags["cityopt.seed"] == str(derive_seed(0, "trial", trial.number))
        assert found.info.run_id == trial.user_attrs[RUN_ID]
        epochs = list(range(1, trial.last_step + 1))
        for metric, points in read_curves(story.store, run_name).items():
            assert [step for step, *_ in points] == epochs, (run_name, metric)
            times = [time for _, time, _ in points]
            assert times == sorted(times)
        assert [v for *_, v in read_curves(story.store, run_name)["train/loss/total"]] == list(
            trial.intermediate_values.values()
        )


@pytest.mark.parametrize("name", ["interrupted", "coordinator_killed"])
def test_cut_comes_in_mid_trial_and_leaves_it_to_the_next_start(stories, name):
    cut = stories(name).cut_trials
    assert [trial.state for trial in cut[:3]] == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.PRUNED]
    assert len(cut) == 4 and cut[3].state == TrialState.RUNNING and 1 <= cut[3].last_step < 4
    statuses = {run_name: found.info.status for run_name, found in stories(name).cut_runs.items()}
    assert statuses["trial-0003"] == ("KILLED" if name == "interrupted" else "RUNNING")
    assert (name == "interrupted") == ("RUNNING" not in statuses.values())


@pytest.mark.parametrize("name", ["stopped", "interrupted", "coordinator_killed"])
def test_finished_trials_are_untouched_when_a_study_goes_on(stories, name):
    story = stories(name)
    now, runs = read_trials(story.store), read_runs(story.store)
    finished = [trial for trial in story.cut_trials if trial.state.is_finished()]
    assert len(finished) == 3
    for trial in finished:
        assert now[trial.number] == trial  # settings, scores, attributes and times alike
        run_name = f"trial-{trial.number:04d}"
        if story.cut_runs[run_name].info.status != "RUNNING":  # else the kill came before MLflow had heard of the end
            assert runs[run_name].info.end_time == story.cut_runs[run_name].info.end_time
            assert read_curves(story.store, run_name) == story.cut_curves[run_name]


def test_interrupt_says_how_to_go_on_and_exits_with_130(stories):
    story = stories("interrupted")
    first, second = story.answers
    assert first.code == 130 and "The same command goes on" in first.output
    assert "Traceback" not in first.output + first.errors
    last = story.cut_trials[3].last_step  # the first, or one more, if it was done before the signal was heard
    assert "trial-0003 goes on" in second.output and f"trial-0003 epoch {last}/4" in second.output


def test_killed_worker_is_replaced_within_the_same_command(stories):
    (answer,) = stories("worker_killed").answers
    assert answer.code == 0
    assert "trial-0003: the worker ended: SIGKILL; it is tried again from its last epoch." in answer.output
    assert "trial-0003 goes on" in answer.output


def test_killed_trial_goes_on_from_its_checkpoint_when_the_coordinator_died(stories):
    first, second = stories("coordinator_killed").answers
    assert first.code == -9
    told = [line for line in second.output.splitlines() if "trial-0003 epoch" in line]
    last = stories("coordinator_killed").cut_trials[3].last_step
    assert told and f"epoch {last}/4" in told[0]  # that epoch is told again, none before it


def test_status_prints_one_document_of_the_agreed_shape_when_asked_for_json(stories):
    calm = stories("calm")
    answer = run("status", "--study", "tiny", "--store", calm.store, "--json")
    document = json.loads(answer.output)
    assert answer.code == 0 and not answer.errors
    assert list(document) == ["study", "metric", "direction", "best", "budget", "trials"]
    trials = read_trials(calm.store)
    best = min((t for t in trials if t.state == TrialState.COMPLETE), key=lambda trial: trial.value)
    assert document["best"] == {
        "number": best.number,
        "value": best.value,
        "params": best.params,
        "run_id": best.user_attrs[RUN_ID],
    }
    assert [row["number"] for row in document["trials"]] == [0, 1, 2, 3, 4]
    for row, trial in zip(document["trials"], trials, strict=True):
        assert set(row) == {"number", "state", "reason", "value", "params", "run_id", "seconds"}
        assert row["state"] == trial.state.name.lower() and row["seconds"] > 0


def test_status_shows_the_best_on_top_when_printed(stories):
    answer = run("status", "--study", "tiny", "--store", stories("calm").store)
    rows = [line.split("│")[1:4] for line in answer.output.splitlines() if line.startswith("│")]
    best = min((t for t in read_trials(stories("calm").store) if t.state == TrialState.COMPLETE), key=lambda t: t.value)
    assert [cell.strip() for cell in rows[0]] == [str(best.number), "complete", f"{best.value:.4f}"]
    assert len(rows) == 5


def test_every_run_carries_what_is_needed_to_repeat_it(stories):
    runs = read_runs(stories("calm").store)
    folder = stories("calm").store / "artifacts" / "tiny"
    for name, found in runs.items():
        artifacts = folder / found.info.run_id / "artifacts"
        names = {path.relative_to(artifacts).as_posix() for path in artifacts.rglob("*") if path.is_file()}
        assert {"cityopt.dataset_fingerprint", "cityopt.seed"} <= set(found.data.tags)
        is_promotion = found.data.tags["cityopt.kind"] == "promotion"  # which trains on more than the subset
        assert ("cityopt.subset_hash" in found.data.tags) != is_promotion
        if name == "tiny":
            assert {"study.yaml", "subset.txt", "holdout.txt", "anchors.json"} <= names
            continue
        assert found.data.tags["mlflow.parentRunId"] == runs["tiny"].info.run_id
        assert {"checkpoints/best.pt", "log.txt"} <= names
        assert any(part.startswith("overlays/") for part in names), names
        assert any("config" in part for part in names), names
        assert found.data.params["training.learning_rate"] and found.data.params["data.train_hash"]
        if not is_promotion:
            assert found.data.params["data.train_hash"] == found.data.tags["cityopt.subset_hash"]
        assert found.inputs.dataset_inputs
        assert any(metric.startswith("system/") for metric in found.data.metrics)
