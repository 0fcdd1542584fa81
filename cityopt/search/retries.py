"""Failed trials tried again: the same settings as a new trial, which takes the old one's place in the count."""

import optuna

from cityopt.search.status import RETRY_OF, describe_trials

ANY = "any"


def enqueue_failed(study: optuna.Study, reason: str) -> list[int]:
    """Enqueue the settings of the trials that failed for a reason, or for `any`; returns the numbers of those trials.

    One that was enqueued before is left out: to ask twice does no harm.
    """
    failed = [trial for trial in describe_trials(study, live=True) if trial.state == "failed" and not trial.is_retried]
    found = [trial for trial in failed if reason in (ANY, trial.reason)]
    for trial in found:
        study.enqueue_trial(trial.params, user_attrs={RETRY_OF: trial.number})
    return [trial.number for trial in found]
