"""The MLflow run of a trial: made when the trial begins, found again when it goes on, or else made anew."""

import optuna

from cityopt.config import RunConfig
from cityopt.search.facts import StudyFacts
from cityopt.search.ownership import Ownership, SoleOwner
from cityopt.search.status import RETRY_OF, RUN_ID
from cityopt.search.tags import describe_data, describe_run
from cityopt.store import run_folder
from cityopt.tracking.mlflow_shipper import Shipper
from cityopt.tracking.mlflow_store import MlflowStore
from cityopt.tracking.run_folder import write_dataset


class TrialRuns:
    """Opens the runs of a study's trials."""

    def __init__(
        self, mlflow: MlflowStore, shipper: Shipper, study: str, facts: StudyFacts, ownership: Ownership
    ) -> None:
        self._mlflow, self._shipper, self._study, self._facts = mlflow, shipper, study, facts
        self._may_move = not isinstance(ownership, SoleOwner)

    def open(self, trial: optuna.Trial, config: RunConfig, *, resumed: bool) -> str:
        """Return the id of a trial's run, RUNNING.

        One whose folder is in the store of another machine is given up: the trial begins anew, in a new run.
        """
        known = trial.user_attrs.get(RUN_ID) or (
            self._mlflow.find_run(self._study, config.name) if resumed else None  # made, and then came a kill
        )
        if known and self._may_move and not run_folder(self._mlflow.store, str(known)).is_dir():
            self._shipper.end(str(known), "KILLED", {"cityopt.state": "lost"})
            known = None
        if known:
            run_id = str(known)
            self._mlflow.reopen_run(run_id)
        else:
            run_id = self._create(trial, config)
        if trial.user_attrs.get(RUN_ID) != run_id:
            folder = run_folder(self._mlflow.store, run_id)
            write_dataset(folder, self._study, self._facts.subset_hash, self._facts.root)
            trial.set_user_attr(RUN_ID, run_id)
        return run_id

    def _create(self, trial: optuna.Trial, config: RunConfig) -> str:
        tags = describe_data(self._facts) | describe_run(config) | {"cityopt.trial": trial.number}
        if RETRY_OF in trial.user_attrs:
            tags["cityopt.retry_of"] = trial.user_attrs[RETRY_OF]
        return self._mlflow.create_run(self._study, config.name, "trial", tags)
