"""The errors that cityopt raises on purpose.

Each prints as one message on stderr, without a traceback, and ends the command with exit code 1.
A message says what must hold, what was found and where, and what to do about it. Any other
exception is a bug of cityopt and keeps its traceback.
"""


class CityoptError(Exception):
    """Base of every error that is meant for the user."""

    exit_code = 1


class StoppedError(CityoptError):
    """The user stopped a command; the same command goes on where it was."""

    exit_code = 130


class ConfigError(CityoptError):
    """A study YAML, a `--set` or an option is wrong: unknown key, wrong type, impossible value."""


class DataError(CityoptError):
    """The dataset is missing or broken: no root, no label, wrong size, truncated or impossible file."""


class EvaluationError(CityoptError):
    """Predictions cannot be scored: an image twice or missing, another size, ids or masks that cannot be."""


class WeightsError(CityoptError):
    """Pretrained weights or a checkpoint cannot be had or do not fit the model."""


class StoreError(CityoptError):
    """The store is not writable, is locked by somebody else, or misses what a command needs."""


class ClusterError(CityoptError):
    """A cluster cannot be reached, or its nodes cannot train: nothing answers, or other versions are installed."""


class StudyError(CityoptError):
    """A study cannot go on: its stored settings differ, its objective is never reported, no trial is complete."""


class TrainingError(CityoptError):
    """Training cannot go on, for a `reason` that the study records."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
