"""The plan of a staged promotion: what each stage trains, on what, from where, and what is refused before any does."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from small_studies import DECAY, DEPTH, FACTS, RATE, make_config

from cityopt.data.synthetic import write_synthetic
from cityopt.errors import ConfigError, DataError, WeightsError
from cityopt.search.observer import Observer
from cityopt.search.plan import check_plan, describe_stage, pin_plan, plan_promotion
from cityopt.search.single import strip_place
from cityopt.search.status import TrialStatus
from cityopt.settings import replace_settings
from cityopt.training.dataset import survey_dataset

WINNER = TrialStatus(3, "complete", None, 0.2, {RATE: 0.02, DECAY: 0.05, DEPTH: 2}, "run-3", 1.0)
SMALL = {"backbone": "resnet18", "stem_channels": 8, "fpn_channels": 16, "box_head_channels": 16}
STAGES = [
    {
        "name": "pretrain",
        "model": "semantic_fpn",
        "split": "train_extra",
        "labels": "coarse",
        "num_images": 3,
        "epochs": 5,
        "freeze_depth": 0,
        "learning_rate": 0.1,
        "overrides": {DECAY: 0.5, "data.size": [32, 64]},
    },
    {"name": "heads", "start_from": "pretrain", "epochs": 2, "freeze_depth": 5, "learning_rate_factor": 0.5},
    {"name": "fine-tune", "start_from": "heads"},
]
PROMOTION = {"promotion.overrides": {"training.epochs": 9}, "promotion.stages": STAGES}


def make_staged(**changes):
    config = make_config(model=SMALL)
    return replace_settings(config, {"data.size": [64, 128], **PROMOTION, **changes})


def plan(config, settings=None, winner=WINNER, root=Path("/data"), store=Path("/store")):
    return plan_promotion(config, FACTS, winner, settings or {}, root=root, device="cpu", store=store)


def test_stages_take_the_trials_settings_and_then_their_own():
    pretrain, heads, tune = (stage.run for stage in plan(make_staged()))
    assert [run.training.epochs for run in (pretrain, heads, tune)] == [5, 2, 9]
    assert [run.training.learning_rate for run in (pretrain, heads, tune)] == [0.1, 0.01, 0.02]
    assert [run.training.weight_decay for run in (pretrain, heads, tune)] == [0.5, 0.05, 0.05]
    assert [run.model.freeze_depth for run in (pretrain, heads, tune)] == [0, 5, 2]
    assert [run.model.family for run in (pretrain, heads, tune)] == ["semantic_fpn", "mask_rcnn", "mask_rcnn"]
    assert [run.data.size for run in (pretrain, heads, tune)] == [(32, 64), (64, 128), (64, 128)]
    assert [list(row) for row in tune.model.anchor_table.sizes] == FACTS.anchors["sizes"]


def test_anchors_grow_with_the_images():
    """An object twice as high and as wide wants a box of twice the side; half the width, twice the slope."""
    config = replace_settings(make_config(model=SMALL), {"data.size": [64, 128]})
    sizes, ratios = FACTS.anchors["sizes"], FACTS.anchors["ratios"]
    (twice,) = plan(config, {"data.size": [128, 256]})
    assert [list(row) for row in twice.run.model.anchor_table.sizes] == [[2 * x for x in row] for row in sizes]
    assert [list(row) for row in twice.run.model.anchor_table.ratios] == ratios
    (narrow,) = plan(config, {"data.size": [64, 64]})
    for grown, row in zip(narrow.run.model.anchor_table.sizes, sizes, strict=True):
        assert list(grown) == pytest.approx([x * 0.5**0.5 for x in row])
    assert [list(row) for row in narrow.run.model.anchor_table.ratios] == [[2 * x for x in row] for row in ratios]
    facts = replace(FACTS, anchors=FACTS.anchors | {"adopted": "default"})
    (default,) = plan_promotion(
        config, facts, WINNER, {"data.size": [128, 256]}, root=Path("/data"), device="cpu", store=Path("/store")
    )
    assert [list(row) for row in default.run.model.anchor_table.sizes] == sizes


def test_only_the_last_stage_sees_val():
    pretrain, heads, tune = (stage.run for stage in plan(make_staged()))
    assert (pretrain.train_set.split, pretrain.train_set.labels, pretrain.train_set.num_images) == (
        "train_extra",
        "coarse",
        3,
    )
    assert heads.train_set == tune.train_set and (tune.train_set.split, tune.train_set.part) == ("train", "all")
    for run in (pretrain, heads):
        assert (run.validation_set.split, run.validation_set.part, run.kind) == ("train", "holdout", "stage")
    assert (tune.validation_set.split, tune.validation_set.part, tune.kind) == ("val", "all", "promotion")
    assert {run.keep for run in (pretrain, heads, tune)} == {"last"}
    assert (pretrain.metric, pretrain.direction) == ("val/semantic/miou", "maximize")
    assert heads.metric == tune.metric == "val/coco/segm/ap"


def test_network_moves_to_the_same_model_and_the_resnet_alone_to_another():
    stages = plan(make_staged())
    assert [(stage.start, stage.whole) for stage in stages] == [(None, True), ("pretrain", False), ("heads", True)]
    assert stages[0].run.model.weights == "none"


def test_network_goes_on_with_the_norm_that_it_has():
    """A ResNet alone comes with constant statistics; one that learned them from random values learns on."""
    norms = [stage.run.model.backbone_norm for stage in plan(make_staged())]
    assert norms == ["auto", "auto", "frozen"]
    skipped = plan(make_staged(**{"promotion.skip": ["pretrain"]}))
    assert [stage.run.model.backbone_norm for stage in skipped] == ["auto", "batch"]


def test_last_stage_is_the_promotion_in_one_go_but_for_what_it_starts_from():
    staged, (plain,) = plan(make_staged())[-1].run, plan(make_staged(**{"promotion.stages": []}))
    assert staged.model_copy(update={"model": plain.run.model}) == plain.run
    start = {"weights": "stage heads", "backbone_norm": "frozen"}
    assert staged.model == plain.run.model.model_copy(update=start)


def test_settings_of_the_command_line_hold_wherever_a_stage_has_none_of_its_own():
    runs = [stage.run for stage in plan(make_staged(), {"training.epochs": 1, RATE: 0.4, "training.batch_size": 2})]
    assert [run.training.epochs for run in runs] == [5, 2, 1]
    assert [run.training.learning_rate for run in runs] == [0.1, 0.2, 0.4]
    assert {run.training.batch_size for run in runs} == {2}
    config = make_staged(**{"promotion.stages.fine-tune.epochs": 4})
    with pytest.raises(ConfigError, match=r"`--set training\.epochs` must be heeded .*promotion\.stages\.fine-tune\."):
        plan(config, {"training.epochs": 1})
    with pytest.raises(ConfigError, match=r"`--set model\.weights`"):
        plan(make_staged(**{"promotion.stages.pretrain.overrides.model.weights": "none"}), {"model.weights": "none"})


def test_earlier_stages_are_the_same_training_for_another_trial_with_their_settings():
    other = TrialStatus(5, "complete", None, 0.3, {**WINNER.params, DEPTH: 1}, "run-5", 1.0)
    (first, _, last), (again, _, another) = plan(make_staged()), plan(make_staged(), winner=other)
    assert first.run == again.run and last.run.seed != another.run.seed
    assert len({stage.run.seed for stage in plan(make_staged())}) == 3


@pytest.fixture(scope="module", name="scenes")
def _scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes") / "tree"
    write_synthetic(root, num_images=12, size=(64, 128), seed=2, with_coarse=True)
    return root


class Listener(Observer):
    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


def test_plan_says_what_is_trained_on_how_many_images(scenes, tmp_path):
    listener = Listener()
    check_plan(plan(make_staged(), root=scenes, store=tmp_path), listener)
    (text,) = listener.said
    first, pretrain, heads, tune = text.splitlines()
    train = sum(fact.split == "train" for fact in survey_dataset(scenes, tmp_path / "cache").facts)
    assert "3 stages" in first
    for words, line in (
        (("1 pretrain", "semantic_fpn from random", "3 images of train_extra, coarse", "5 epochs"), pretrain),
        (("freeze depth 0", "learning rate 0.1", "32 x 64", "holdout"), pretrain),
        (
            (
                "2 heads",
                "the holdout of the trials, which it trains on too",
                "mask_rcnn from the ResNet of pretrain",
                f"{train} images of train, fine",
                "2 epochs",
            ),
            heads,
        ),
        (("freeze depth 5", "learning rate 0.01", "holdout"), heads),
        (("3 fine-tune", "the network of heads", "9 epochs", "freeze depth 2", "validates on val"), tune),
    ):
        assert all(word in line for word in words), line
    assert "trains on too" not in pretrain + tune  # train_extra has other images, and val chooses nothing


def test_plan_says_on_which_half_of_val_the_model_is_judged():
    tune = plan(make_staged(**{"data.val_halves": "count"}))[-1]
    assert describe_stage(tune, 9).endswith("validates on val, first half by count")


def test_plan_is_another_one_when_its_coarse_labels_or_weights_have_changed(scenes, tmp_path):
    tree, file = Path(shutil.copytree(scenes, tmp_path / "tree")), tmp_path / "start.pt"
    file.write_bytes(b"one")
    config = make_staged(**{"promotion.stages.pretrain.overrides.model.weights": str(file)})

    def pin():
        return [stage.run for stage in pin_plan(plan(config, root=tree, store=tmp_path / "store"))]

    first = pin()
    assert (
        pin() == first and first[1:] == [stage.run for stage in plan(config, root=tree, store=tmp_path / "store")][1:]
    )
    file.write_bytes(b"two")
    second = pin()
    assert strip_place(second[0].model_dump()) != strip_place(first[0].model_dump()) and second[1:] == first[1:]
    next((tree / "leftImg8bit" / "train_extra").rglob("*.png")).unlink()
    third = pin()
    assert third[0].weights_hash == second[0].weights_hash and third[1:] == first[1:]
    assert strip_place(third[0].model_dump()) != strip_place(second[0].model_dump())


def test_broken_fine_labels_are_no_reason_to_leave_a_stage_out(scenes, tmp_path):
    tree = Path(shutil.copytree(scenes, tmp_path / "tree"))
    next((tree / "gtFine" / "train").rglob("*_instanceIds.png")).write_bytes(b"no picture")
    with pytest.raises(DataError, match="cannot be read") as caught:
        check_plan(plan(make_staged(), root=tree, store=tmp_path), Observer())
    assert "leave it out" not in str(caught.value)


def test_plan_warns_when_frozen_layers_are_random(scenes, tmp_path):
    listener = Listener()
    check_plan(plan(make_staged(**{"promotion.skip": ["pretrain"]}), root=scenes, store=tmp_path), listener)
    assert "2 stages" in listener.said[0] and "freeze depth 5 (Warning: these are random" in listener.said[0]


@pytest.mark.parametrize("absent", ["gtCoarse", "leftImg8bit/train_extra"])
def test_plan_is_refused_with_the_way_around_when_a_stage_lacks_its_images(absent, scenes, tmp_path):
    tree = Path(shutil.copytree(scenes, tmp_path / "tree"))
    shutil.rmtree(tree / absent)
    with pytest.raises(DataError) as caught:
        check_plan(plan(make_staged(), root=tree, store=tmp_path), Observer())
    message = str(caught.value)
    assert str(tree / absent) in message
    assert "--set promotion.skip=[pretrain]" in message and "--set promotion.stages=null" in message
    check_plan(plan(make_staged(**{"promotion.skip": ["pretrain"]}), root=tree, store=tmp_path), Observer())


def test_plan_is_refused_when_a_stage_has_another_backbone_than_it_starts_from(scenes, tmp_path):
    config = make_staged(**{"promotion.stages.pretrain.overrides.model.backbone": "resnet50"})
    with pytest.raises(WeightsError, match=r"(?s)stage 'pretrain', from which 'heads' starts,.*layer1\.0\.bn3\.bias"):
        check_plan(plan(config, root=scenes, store=tmp_path), Observer())


def test_plan_is_refused_when_the_weights_of_a_stage_are_absent(scenes, tmp_path):
    config = make_staged(**{"promotion.stages.pretrain.overrides.model.weights": str(tmp_path / "absent.pt")})
    with pytest.raises(WeightsError, match=r"absent\.pt"):
        check_plan(plan(config, root=scenes, store=tmp_path), Observer())
