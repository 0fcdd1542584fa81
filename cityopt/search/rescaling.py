"""Settings that do not carry over as they are when images or epochs grow: rules with names and sources.

`promotion.rescale` names rules; each finalist then gets a rival whose settings follow them, and the seeds decide.
Nothing is rescaled otherwise. The rules were found on other networks than these, so none is on by default: a rival
doubles the finalists' cost, and only a study can say whether it pays. The learning rate follows the batch in any case
(`training/optim.py`).

Sources:
    weight_decay    Wang & Aitchison, "How to set AdamW's weight decay as you scale model and dataset size"
                    (2405.13698): at fixed learning rate and batch, the averaging time 1 / (learning rate x decay)
                    stays the same number of epochs, so the decay falls as 1 / images. AdamW alone.
    learning_rate   Bjorck et al., "Scaling Optimal LR Across Token Horizons" (2409.19913): the best rate falls as a
                    power of the horizon, with exponent .32 for language models. The horizon here is the number of
                    steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cityopt.config import TrainingConfig
from cityopt.promotion import Rescaling

HORIZON_EXPONENT = 0.32
_SOURCES: dict[Rescaling, tuple[str, str]] = {
    "weight_decay": ("training.weight_decay", "falls as 1 / images, arXiv 2405.13698"),
    "learning_rate": ("training.learning_rate", f"falls as steps^-{HORIZON_EXPONENT}, arXiv 2409.19913"),
}


@dataclass(frozen=True, slots=True)
class Growth:
    """How many times as much a finalist trains on, and how many times as long, as its trial did."""

    images: float
    steps: float


@dataclass(frozen=True, slots=True)
class Rescaled:
    """One setting that a rule changed."""

    rule: Rescaling
    key: str
    before: float
    after: float

    def __str__(self) -> str:
        return f"{self.key} {self.before:.3g} -> {self.after:.3g} ({_SOURCES[self.rule][1]})"


def rescale_settings(training: TrainingConfig, rules: Sequence[Rescaling], growth: Growth) -> list[Rescaled]:
    """Return what the rules change about a training; nothing where its data and length do not grow."""
    found = []
    for rule in dict.fromkeys(rules):
        factor = find_factor(rule, training, growth)
        key = _SOURCES[rule][0]
        before = float(getattr(training, key.rpartition(".")[2]))
        if factor != 1 and before:
            found.append(Rescaled(rule, key, before, before * factor))
    return found


def find_factor(rule: Rescaling, training: TrainingConfig, growth: Growth) -> float:
    """Return what a rule multiplies its setting by; 1 where it does not hold."""
    if rule == "weight_decay":
        return 1 / growth.images if training.optimizer == "adamw" and growth.images > 1 else 1.0
    return growth.steps**-HORIZON_EXPONENT if growth.steps > 1 else 1.0
