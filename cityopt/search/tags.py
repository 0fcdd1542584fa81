"""The tags of runs in MLflow: which images they stand on, and by which protocol they are judged."""

from typing import Any

from cityopt.config import RunConfig
from cityopt.search.facts import StudyFacts


def describe_data(facts: StudyFacts) -> dict[str, Any]:
    """Return the tags that say which images a study stands on."""
    return {
        **describe_dataset(facts),
        "cityopt.subset_hash": facts.subset_hash,
        "cityopt.holdout_hash": facts.holdout_hash,
    }


def describe_dataset(facts: StudyFacts) -> dict[str, Any]:
    """Return the tag that says which dataset a study stands on, for runs that train on other images than its trials."""
    return {"cityopt.dataset_fingerprint": facts.fingerprint}


def describe_run(config: RunConfig) -> dict[str, Any]:
    """Return the tags that say how a run was made and by which protocol it is judged."""
    return {
        "cityopt.seed": config.seed,
        "cityopt.threads": config.threads,
        "cityopt.protocol": "coco" if config.model.task == "instance" else "cityscapes semantic",
        "cityopt.eval_size": "x".join(map(str, config.data.size)),
    }
