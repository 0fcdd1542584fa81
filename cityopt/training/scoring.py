"""Score a finished checkpoint on images of the dataset: what promotion and comparison stand on."""

from pathlib import Path

from cityopt.config import ImageSet, RunConfig
from cityopt.evaluation.evaluate import choose_batch_size, evaluate_model
from cityopt.runtime import repeatable, resolve_device, set_threads
from cityopt.training.checkpoint import load_model
from cityopt.training.dataset import OnCount, open_images, pick_facts, survey_dataset


def score_checkpoint(
    checkpoint: Path, config: RunConfig, image_set: ImageSet, *, prefix: str, on_count: OnCount | None = None
) -> dict[str, float]:
    """Return the COCO metrics of a checkpoint as `<prefix>/coco/…`, NaN where the images hold nothing to find.

    `config` says where the data lies, at which size it is judged and on which device. Raises DataError, WeightsError.
    """
    assert config.data.root is not None
    device = resolve_device(config.device)
    set_threads(config.threads)
    survey = survey_dataset(config.data.root, Path(config.cache))
    cache = open_images(survey, pick_facts(survey, image_set), config, on_count)
    model = load_model(checkpoint)[0].to(device)
    seen = iter(range(1, len(cache) + 1))
    with repeatable(device):
        return evaluate_model(
            model,
            cache,
            range(len(cache)),
            device=device,
            batch_size=choose_batch_size(config.data.size),
            prefix=prefix,
            on_image=lambda *_: on_count(next(seen), len(cache)) if on_count else None,
        )
