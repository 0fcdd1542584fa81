"""Finalists with scripted workers and a real MLflow: who they are, what they train, who wins, a kill at every write."""

import shutil
import uuid
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
from scripted_executor import (
    AP,
    Killed,
    Life,
    MortalExecutor,
    MortalShipper,
    MortalStorage,
    MortalStore,
    Script,
    ScriptedSlots,
)
from small_studies import FACTS, FLAT, RATE, empty_database, make_config, open_hasty

from cityopt.data.cityscapes import FrameFacts
from cityopt.data.subset import hash_names
from cityopt.errors import ConfigError, DataError, StoreError, StudyError, TrainingError
from cityopt.search import single
from cityopt.search.finalist_plan import choose_trials, find_recipe, plan_finalists
from cityopt.search.finalist_result import FINALISTS, find_decided, read_last_finalists
from cityopt.search.finalists import FinalistTrainer, describe_cost, run_finalists, warn_of_sharing
from cityopt.search.observer import Observer
from cityopt.search.promote import needs_finalists, take_winner
from cityopt.search.single import SingleTraining
from cityopt.search.space import sample_settings, training_subset
from cityopt.search.status import RUN_ID, describe_trials
from cityopt.search.study import open_study
from cityopt.settings import replace_settings
from cityopt.store import run_folder
from cityopt.tracking.mlflow_store import MlflowStore
from cityopt.tracking.run_folder import BEST, begin_attempt, read_status, take_over
from cityopt.training.dataset import Survey, pick_facts

FRAMES = [
    FrameFacts(f"{city}_{n:06d}_000019", "train", city, (8, 8), (1,) * 8, 0, 1, "0")
    for city in "abcdefgh"
    for n in range(5)
]
SURVEY = Survey(Path("/nowhere"), {}, FRAMES, FACTS.fingerprint)
TRIALS = ((0.20, 0.01), (0.30, 0.02), (0.25, 0.03), (0.10, 0.04))
"""Value on the subset and learning rate; trial 0 is the standard recipe."""
MEANS = {0: 0.50, 1: 0.40, 2: 0.45, 3: 0.30}
"""On more data, where the lucky trial 1 is found out."""


def play(config, _):
    """Score by trial and seed; the best epoch is the first of two."""
    parts = config.name.split("-")
    trial, seed = int(parts[3]), int(parts[-1])
    value = MEANS[trial] + (0.002 if seed % 2 else -0.002)
    return Script((value, value - 0.1))


class Bench:
    """One study with complete trials; each `live` is a process's life."""

    def __init__(self, store: Path, database: Path, **promotion) -> None:
        self.store, self.database = store, database
        database.write_bytes(empty_database().read_bytes())
        config = make_config(
            name=f"f-{uuid.uuid4().hex[:8]}",
            training={"epochs": 2},
            space={RATE: FLAT[RATE]},
            baselines=[{RATE: TRIALS[0][1]}],
        )
        settings = {"finalists": 2, "seeds": 2, **promotion}
        changes = {f"promotion.{key}": value for key, value in settings.items()}
        self.config = replace_settings(config, {"data.num_images": 8, "data.num_holdout": 3, **changes})
        subset = [fact.name for fact in pick_facts(SURVEY, training_subset(self.config))]
        self.facts = replace(FACTS, subset_hash=hash_names(subset), num_subset=len(subset))
        study, _ = open_study(open_hasty(database), self.config, self.facts)
        for number, (value, rate) in enumerate(TRIALS):
            if number:  # the baseline waits in line already
                study.enqueue_trial({RATE: rate})
            trial = study.ask()
            sample_settings(trial, self.config.search.space)
            trial.set_user_attr(RUN_ID, uuid.uuid4().hex)
            trial.report(value, 1)
            study.tell(trial, value)
        self.trials = describe_trials(study, live=False)
        self.said: list[str] = []

    def plan(self, config=None, trials=None, **options):
        given = {"device": "cpu", "threads": 1, "store": self.store, **options}
        return plan_finalists(config or self.config, self.facts, trials or self.trials, SURVEY, **given)

    def live(self, play=play, *, life: Life | None = None, plan=None, executor=None, config=None):
        """Train finalists to their end, or until the life is over (Killed)."""
        storage, mlflow = open_hasty(self.database, MortalStorage), MortalStore(self.store)
        executor, observer = executor or MortalExecutor(play), Observer()
        observer.say = self.said.append
        study, _ = open_study(storage, self.config, self.facts)
        parent_id = mlflow.open_parent(self.config.name)
        begin_attempt(run_folder(self.store, parent_id), "parent")
        parent, shipper = take_over(run_folder(self.store, parent_id)), MortalShipper(mlflow)
        shipper.watch(parent_id, parent.folder)
        if life is not None:
            storage.life = mlflow.life = executor.life = shipper.life = life
        training = SingleTraining(self.store, executor, shipper, observer)
        try:
            trainer = FinalistTrainer(study, config or self.config, self.facts, plan or self.plan(), mlflow, training)
            return trainer.train(parent), executor
        finally:
            if life is None:
                shipper.drain(60)
            else:
                life.is_over = True
            shipper.close()

    @property
    def study(self):
        return optuna.load_study(study_name=self.config.name, storage=open_hasty(self.database))

    def runs(self):
        client = MlflowStore(self.store).client
        found = client.search_runs([client.get_experiment_by_name(self.config.name).experiment_id])
        runs = {run.info.run_name: run for run in found}
        assert len(runs) == len(found), sorted(run.info.run_name for run in found)
        return runs


@pytest.fixture
def bench(mlflow_folder: Path, tmp_path: Path):
    return lambda **promotion: Bench(mlflow_folder, tmp_path / f"{uuid.uuid4().hex}.db", **promotion)


NAMES = [f"finalists-0001-trial-{trial:04d}-seed-{seed}" for trial in (1, 2, 0) for seed in (1, 2)]


def check_result(it, found):
    assert [finalist.trial for finalist in found.entrants] == [1, 2, 0]
    for finalist in found.entrants:
        mean = MEANS[finalist.trial]
        assert finalist.scores == pytest.approx((mean + 0.002, mean - 0.002)), "each at its best epoch"
        assert found.interval_of(finalist).mean == pytest.approx(mean)
    assert found.winner.trial == 0 and found.decision.tied == ()
    assert found.decision.noise == pytest.approx(np.sqrt(2) * 0.002)
    runs = it.runs()
    assert runs.keys() == {it.config.name, *NAMES}
    assert {runs[name].info.status for name in NAMES} == {"FINISHED"}
    assert {runs[name].data.tags["cityopt.kind"] for name in NAMES} == {"finalist"}
    parent = runs[it.config.name].data
    assert parent.tags["cityopt.finalists_winner"] == "trial-0000"
    assert parent.tags["cityopt.trust"] == "too few points" == found.trust.verdict
    assert parent.metrics["finalists/seed_noise"] == pytest.approx(found.decision.noise)


def test_standard_recipe_is_promoted_and_named_when_it_beats_the_best_trials(bench):
    it = bench()
    found, executor = it.live()
    check_result(it, found)
    assert "trial-0000, the standard recipe, wins by the best bound of its mean" in found.reason
    assert [job.config.name for job in executor.jobs] == NAMES
    assert len({job.config.seed for job in executor.jobs}) == len(NAMES)
    winner = take_winner(found, it.trials, it.store)
    assert (winner.number, winner.params) == (0, {RATE: 0.01})
    assert winner.run_id == found.winner.runs[0]  # the trial's run has no checkpoint here
    (run_folder(it.store, it.trials[0].run_id)).mkdir(exist_ok=True)
    (run_folder(it.store, it.trials[0].run_id) / BEST).write_bytes(b"a checkpoint")
    assert take_winner(found, it.trials, it.store).run_id == it.trials[0].run_id


def test_finalists_train_on_more_images_that_hold_the_trials_own_and_validate_on_their_holdout(bench):
    it = bench()
    own = {fact.name for fact in pick_facts(SURVEY, training_subset(it.config))}
    holdout = {fact.name for fact in pick_facts(SURVEY, it.plan().runs[0][0].validation_set)}
    for factor, count in ((1.0, 8), (2.5, 20), (3.0, 24), (9.0, 35)):
        plan = it.plan(replace_settings(it.config, {"promotion.subset_factor": factor}))
        for run in (run for seeds in plan.runs for run in seeds):
            names = {fact.name for fact in pick_facts(SURVEY, run.train_set)}
            assert own <= names and len(names) == count == plan.num_images and not names & holdout
            assert run.training.epochs == 2 and run.keep == "best" and run.metric == AP
        assert ("all outside the holdout" in plan.note) == (count in (8, 35))


def test_epochs_are_the_studys_own_unless_others_are_asked_for(bench):
    it = bench()
    plan = it.plan(replace_settings(it.config, {"promotion.finalist_epochs": 5}))
    assert plan.runs[0][0].training.epochs == 5 and plan.candidates[0].settings == {RATE: 0.02}


def test_finalists_keep_the_micro_batches_that_their_trials_fitted_in(bench):
    it = bench()
    trials = [*it.trials[:1], replace(it.trials[1], accumulation=4), *it.trials[2:]]
    plan, before = it.plan(trials=trials), it.plan()
    pairs = zip(plan.candidates, plan.runs, strict=True)
    found = {candidate.name: runs[0].training.accumulation for candidate, runs in pairs}
    assert found == {"trial-0001": 4, "trial-0002": 1, "trial-0000": 1}
    assert plan.digest == before.digest  # it is the same training in other pieces


def test_changed_dataset_is_refused(bench):
    it = bench()
    for survey in (replace(SURVEY, fingerprint="g"), replace(SURVEY, facts=FRAMES[5:])):
        with pytest.raises(DataError, match=r"Restore"):
            plan_finalists(it.config, it.facts, it.trials, survey, device="cpu", threads=1, store=it.store)


@pytest.mark.parametrize(
    ("state", "count", "chosen"),
    [("complete", 2, [1, 2, 0]), ("pruned", 3, [1, 2, 3, 0]), ("waiting", 1, [1, 0]), ("failed", 2, [1, 2])],
)
def test_candidates_are_complete_trials_and_trial_0_unless_it_failed(bench, state, count, chosen):
    it = bench()
    trials = [replace(it.trials[0], state=state, value=0.9 if state == "pruned" else 0.0), *it.trials[1:]]
    assert [trial.number for trial in choose_trials(trials, it.config, count)] == chosen
    trials.append(replace(it.trials[1], number=4, state="pruned", value=0.99))
    assert [trial.number for trial in choose_trials(trials, it.config, count)] == chosen
    without = replace_settings(it.config, {"search.baselines": ()})
    expected = [number for number in chosen if number or state == "complete"][: max(count, 1)]
    assert [trial.number for trial in choose_trials(trials, without, count)] == expected


def test_standard_recipe_that_failed_is_a_candidate_once_a_retry_of_it_did_not(bench):
    it = bench()
    failed = replace(it.trials[0], state="failed", value=None, is_retried=True)
    first, second = (
        replace(it.trials[0], number=number, state=state, value=value, retry_of=retry_of)
        for number, state, value, retry_of in ((4, "failed", None, 0), (5, "complete", 0.05, 4))
    )
    trials = [failed, *it.trials[1:], first]
    assert [trial.number for trial in choose_trials(trials, it.config, 2)] == [1, 2]
    trials.append(second)
    assert [trial.number for trial in choose_trials(trials, it.config, 2)] == [1, 2, 5]
    assert find_recipe(trials, it.config).number == 5 and find_recipe([], it.config) is None
    assert find_recipe(trials, replace_settings(it.config, {"search.baselines": ()})) is None


def test_rescaled_rival_competes_beside_the_raw_setting_when_images_grow(bench):
    it = bench(finalists=1, seeds=1, rescale=["weight_decay", "learning_rate"])
    config = replace_settings(it.config, {"training.optimizer": "adamw", "training.weight_decay": 0.06})
    plan = it.plan(config)
    assert [candidate.name for candidate in plan.candidates] == [
        f"trial-000{number}{end}" for number in (1, 0) for end in ("", "-rescaled")
    ]
    raw, scaled = (seeds[0].training for seeds in plan.runs[:2])
    assert scaled.weight_decay == pytest.approx(raw.weight_decay / 3)
    assert scaled.learning_rate == pytest.approx(raw.learning_rate * 3**-0.32)
    assert any("2405.13698" in text for text in plan.candidates[1].rescaled)
    assert it.plan(replace_settings(config, {"promotion.subset_factor": 1.0})).candidates[1].rescaled == ()
    sgd = it.plan(replace_settings(config, {"training.optimizer": "sgd", "promotion.rescale": ["weight_decay"]}))
    assert [candidate.name for candidate in sgd.candidates] == ["trial-0001", "trial-0000"]


def test_finalist_whose_settings_diverge_is_out_and_the_others_go_on(bench):
    it = bench()

    def diverge(config, attempt):
        script = play(config, attempt)
        return replace(script, reason="nan") if "trial-0000-seed-2" in config.name else script

    found, _ = it.live(diverge)
    assert found.winner.trial == 2 and [finalist.name for finalist in found.dropped] == ["trial-0000"]
    assert found.dropped[0].failure.startswith("nan: ")
    assert it.runs()["finalists-0001-trial-0000-seed-2"].info.status == "FAILED"
    again, executor = it.live()
    assert again.winner == found.winner and executor.jobs == []  # it would diverge again


def test_nothing_wins_when_all_fail(bench):
    with pytest.raises(TrainingError, match=r"no finalist has scores\. it was nan"):
        bench().live(lambda *_: Script((0.1,), reason="nan"))


def test_other_failures_stop_the_promotion_and_the_same_command_goes_on(bench):
    it = bench()
    with pytest.raises(TrainingError, match="seed-2: it was crash"):
        it.live(lambda config, n: replace(play(config, n), reason="crash" if config.name.endswith("2") else ""))
    found, executor = it.live()
    check_result(it, found)
    assert NAMES[0] not in [job.config.name for job in executor.jobs]
    assert any("goes on: 1 of 6 trainings ended" in text for text in it.said)


@pytest.mark.parametrize("how", [{"reason": "crash"}, {"reason": "hung"}, {"lost_before": 2}])
def test_finalist_that_crashes_again_is_out_and_the_others_go_on(bench, how):
    it = bench()

    def fail(config, attempt):
        return replace(play(config, attempt), **(how if config.name.endswith("trial-0000-seed-1") else {}))

    with pytest.raises(TrainingError, match="trial-0000-seed-1: "):
        it.live(fail)
    found, _ = it.live(fail)
    assert found.winner.trial == 2
    assert [finalist.failure.split(":")[0] for finalist in found.dropped] == [how.get("reason", "crash")]
    assert it.live(fail)[1].jobs == []


def test_finalist_goes_on_in_smaller_pieces_when_memory_ran_out(bench):
    it = bench()
    seen = []

    def run_out(config, attempt):
        if not config.name.endswith("trial-0000-seed-1"):
            return play(config, attempt)
        seen.append(config.training.accumulation)
        if len(seen) == 2:
            raise Killed
        return replace(play(config, attempt), reason="oom" if config.training.accumulation == 1 else "")

    with pytest.raises(Killed):
        it.live(run_out)
    found, _ = it.live(run_out)
    check_result(it, found)
    assert seen == [1, 2, 2] and any("it is tried again with 4 images at once" in text for text in it.said)


def test_finalist_is_out_when_smaller_pieces_do_not_help(bench):
    it = bench()
    found, executor = it.live(
        lambda config, n: replace(play(config, n), reason="oom" if "trial-0000" in config.name else "")
    )
    assert [finalist.name for finalist in found.dropped] == ["trial-0000"] and found.winner.trial == 2
    pieces = [job.config.training.accumulation for job in executor.jobs if "trial-0000" in job.config.name]
    assert pieces == [1, 2, 1, 2]


def test_cost_of_finalists_follows_from_what_trials_took(bench):
    it = bench()
    trials = [replace(trial, seconds=60.0 * (1 + trial.number)) for trial in it.trials]  # 150 s in the middle
    plan = it.plan()  # 6 trainings on 24 images instead of 8
    assert describe_cost(plan, it.config, it.facts, trials, 2) == "; about 22.5 min, 6 trainings in all"
    assert describe_cost(plan, it.config, it.facts, it.trials, 2) == ""


def test_finalists_that_share_a_gpu_are_warned_of():
    said, observer = [], Observer()
    observer.say = said.append
    for slots in (("cpu", "cpu"), ("cuda:0", "cuda:1"), ("cuda:0", "cuda:1", "cuda:0")):
        warn_of_sharing(slots, observer)
    assert len(said) == 1 and "up to 2 finalists share the memory of a device" in said[0]


def test_several_workers_find_the_same(bench):
    it, executor = bench(), ScriptedSlots(play, 2)
    found, _ = it.live(executor=executor)
    check_result(it, found)
    assert executor.most_at_once == 2


def test_more_finalists_take_over_what_is_trained(bench):
    it = bench()
    first, _ = it.live()
    config = replace_settings(it.config, {"promotion.finalists": 4, "promotion.seeds": 3})
    more, executor = it.live(plan=it.plan(config), config=config)
    assert len(more.entrants) == 4 and len(executor.jobs) == 4 * 3 - 6
    assert more.entrants[0].runs[:2] == first.entrants[0].runs
    assert more.trust.verdict == "enlarge the subset"  # four points, and the lucky one among them
    same, executor = it.live(plan=it.plan(config), config=config)
    assert executor.jobs == [] and same.winner == more.winner
    assert find_decided(it.store, it.study, it.config).name == "finalists-0002"


@pytest.mark.slow
def test_result_is_as_if_nothing_happened_when_killed_at_any_write(bench, monkeypatch):
    lives: list[Life] = []

    def write_status(folder, status):
        if lives:
            lives[-1].write("write_status")
        written(folder, status)

    written = single.write_status
    monkeypatch.setattr(single, "write_status", write_status)
    options = {"finalists": 1, "seeds": 1}
    calm = bench(**options)
    lives.append(Life())
    expected, _ = calm.live(life=lives[-1])
    writes = lives.pop().writes
    assert {"write_status", "RDBStorage.set_study_user_attr", "MlflowStore.create_run", "Shipper.end"} <= set(writes)
    for limit, write in enumerate(writes):
        it, where = bench(**options), f"killed before write {limit}, {write}"
        lives.append(Life(limit))
        with pytest.raises(Killed):
            it.live(life=lives[-1])
        lives.clear()
        entries = it.study.user_attrs.get(FINALISTS, [])
        runs = [place["run_id"] for e in entries for candidate in e["candidates"] for place in candidate["runs"]]
        ended = [run for run in runs if run and read_status(run_folder(it.store, run)) is not None]
        found, executor = it.live()
        assert [f.scores for f in found.entrants] == [f.scores for f in expected.entrants], where
        assert found.winner.name == expected.winner.name and len(it.study.user_attrs[FINALISTS]) == 1, where
        assert not {job.run_id for job in executor.jobs} & set(ended), where
        assert {run.info.status for name, run in it.runs().items() if "seed" in name} == {"FINISHED"}, where


def test_workers_are_refused_when_there_are_none():
    with pytest.raises(ConfigError, match="`--workers` must be at least 1, but got 0"):
        run_finalists(*[None] * 3, root=None, device="cpu", workers=0, mlflow=None, observer=Observer())


def test_trust_is_refused_with_the_command_when_there_are_no_finalists(bench, tmp_path):
    it = bench()
    it.database.rename(tmp_path / "optuna.db")
    with pytest.raises(StudyError, match="cityopt promote --study f-"):
        read_last_finalists(tmp_path, it.config.name)


def test_result_names_the_winner_whose_runs_are_gone(bench):
    it = bench(finalists=1, seeds=1)
    found, _ = it.live()
    shutil.rmtree(run_folder(it.store, found.winner.runs[0]))
    with pytest.raises(StoreError, match=r"finalists-0001 was won by trial-0000, whose runs must be complete"):
        find_decided(it.store, it.study, it.config)


def test_only_candidate_is_promoted_without_finalists(bench):
    it = bench()
    study, said, observer = it.study, [], Observer()
    observer.say = said.append
    alone = replace_settings(it.config, {"promotion.finalists": 1, "search.baselines": ()})
    assert needs_finalists(study, it.config, observer) and not said
    assert not needs_finalists(study, alone, observer)
    assert said == ["trial 1 is the only candidate: it is promoted without finalists"]
    assert needs_finalists(study, replace_settings(alone, {"promotion.rescale": ("weight_decay",)}), observer)
    plain = replace_settings(it.config, {"promotion.finalists": 1, "promotion.seeds": 1})
    assert not needs_finalists(study, plain, observer) and len(said) == 1
