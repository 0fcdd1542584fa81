"""The MLflow run of a trial: made when the trial begins, found again when it goes on, or else made anew."""

from collections.abc import Callable
from datetime import UTC

import optuna

from cityopt.config import RunConfig
from cityopt.search.facts import StudyFacts
from cityopt.search.ownership import Ownership, SoleOwner
from cityopt.search.status import RETRY_OF, RUN_ID
from cityopt.search.tags import describe_data, describe_run
from cityopt.store import run_folder
from cityopt.tracking.deferred_run import DeferredRun, name_request
from cityopt.tracking.mlflow_shipper import Shipper
from cityopt.tracking.mlflow_store import MlflowStore
from cityopt.tracking.run_folder import write_dataset


class TrialRuns:
    """Opens the runs of a study's trials."""

    def __init__(
        self,
        mlflow: MlflowStore,
        shipper: Shipper,
        study: str,
        facts: StudyFacts,
        ownership: Ownership,
        say: Callable[[str], None],
    ) -> None:
        self._mlflow, self._shipper, self._study, self._facts = mlflow, shipper, study, facts
        self._say = say
        self._may_move = not isinstance(ownership, SoleOwner)

    def open(self, trial: optuna.Trial, config: RunConfig, *, resumed: bool) -> str:
        """Return the id of a trial's run, RUNNING. It never waits for a server that is away.

        One whose folder is in the store of another machine is given up: the trial begins anew, in a new run.
        """
        known, lost = trial.user_attrs.get(RUN_ID), None
        if known and self._may_move and not run_folder(self._mlflow.store, str(known)).is_dir():
            self._say(f"{config.name}: what it had is in the store of another machine; it begins again at epoch 1.")
            self._shipper.end(str(known), "KILLED", {"cityopt.state": "lost"})
            known, lost = None, known
        if known:
            run_id = str(known)
            self._mlflow.reopen_run(run_id)
        else:
            run_id = self._make(trial, config, lost, may_exist=resumed)  # made, and then came a kill
        if known != run_id:
            folder = run_folder(self._mlflow.store, run_id)
            write_dataset(folder, self._study, self._facts.subset_hash, self._facts.root)
            trial.set_user_attr(RUN_ID, run_id)
        return run_id

    def _make(self, trial: optuna.Trial, config: RunConfig, lost: str | None, *, may_exist: bool) -> str:
        """Return the id of a trial's first run, or of the one after the one that is lost."""
        tags = describe_data(self._facts) | describe_run(config) | {"cityopt.trial": trial.number}
        if RETRY_OF in trial.user_attrs:
            tags["cityopt.retry_of"] = trial.user_attrs[RETRY_OF]
        texts = {key: str(value) for key, value in tags.items()}
        run = DeferredRun(self._study, config.name, "trial", texts)
        start = trial.datetime_start and trial.datetime_start.astimezone(UTC)  # Optuna says it by the local clock
        request = name_request(self._study, trial.number, start, lost)
        return self._mlflow.open_run(request, run, may_exist=may_exist)
