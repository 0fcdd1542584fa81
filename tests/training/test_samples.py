import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cityopt.config import RunConfig
from cityopt.data.cityscapes import FrameFacts
from cityopt.models.build import build_model
from cityopt.tracking.run_folder import RunFolder
from cityopt.training.dataset import prepare_data
from cityopt.training.samples import choose_samples, write_overlays


def facts(*counts: tuple[int, ...]) -> list[FrameFacts]:
    rows = [count + (0,) * (8 - len(count)) for count in counts]
    return [FrameFacts(f"image-{i}", "train", "aachen", (8, 8), row, 0, 1, None) for i, row in enumerate(rows)]


def test_choose_samples_prefers_many_classes_then_many_instances_and_leaves_out_empty_images() -> None:
    assert choose_samples(facts((9,), (), (1, 1), (1, 2), (0, 9), (3,))) == [3, 2, 0, 4]
    assert choose_samples(facts((), ())) == []


def test_write_overlays_draws_the_very_images(config: RunConfig, tmp_path: Path) -> None:
    data = prepare_data(config)
    model = build_model(config.model)
    write_overlays(RunFolder(tmp_path), model, data.train, [4, 1], torch.device("cpu"))
    paths = sorted((tmp_path / "artifacts" / "overlays").iterdir())
    assert [path.stem for path in paths] == [data.train.names[1], data.train.names[4]]
    picture = Image.open(io.BytesIO(paths[0].read_bytes())).convert("RGB")
    right = np.asarray(picture.crop((picture.width // 2, 26, picture.width, picture.height)).resize((128, 64)), int)
    image = data.train.images[1].astype(int)
    background = data.train.instances[1] < 1000
    assert np.abs(right[background] - image[background]).mean() < 25
