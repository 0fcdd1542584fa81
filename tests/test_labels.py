"""The label table against the official one."""

from cityscapesscripts.helpers.labels import labels as official_labels
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

from cityopt.labels import (
    BY_NAME,
    CATEGORIES,
    CLASS_OF_ID,
    COCO_IDS,
    COCO_NAMES,
    EVALUATED_LABELS,
    LABELS,
    RIDER,
    THING_LABELS,
    THING_NAMES,
    THING_OF_COCO,
)


def test_labels_equal_the_official_table_in_official_order() -> None:
    ours = [(x.name, x.id, x.train_id, x.category, x.has_instances, x.ignore_in_eval, x.color) for x in LABELS]
    official = [(x.name, x.id, x.trainId, x.category, x.hasInstances, x.ignoreInEval, x.color) for x in official_labels]
    assert ours == official


def test_thing_labels_are_the_evaluated_instance_classes_in_official_order() -> None:
    official = [x for x in official_labels if x.hasInstances and not x.ignoreInEval]
    assert list(THING_NAMES) == [x.name for x in official]
    assert [x.id for x in THING_LABELS] == [24, 25, 26, 27, 28, 31, 32, 33]


def test_class_of_id_counts_from_one_and_leaves_out_caravan_and_trailer() -> None:
    assert CLASS_OF_ID == {24: 1, 25: 2, 26: 3, 27: 4, 28: 5, 31: 6, 32: 7, 33: 8}


def test_by_name_finds_every_label() -> None:
    assert {name: label.id for name, label in BY_NAME.items()} == {x.name: x.id for x in official_labels}


def test_categories_stand_at_their_official_ids() -> None:
    assert dict(enumerate(CATEGORIES)) == {x.categoryId: x.category for x in official_labels}


def test_evaluated_labels_are_the_19_official_ones_in_order_of_their_training_ids() -> None:
    official = sorted((x.trainId, x.name) for x in official_labels if not x.ignoreInEval)
    assert [(label.train_id, label.name) for label in EVALUATED_LABELS] == official
    assert len(official) == 19


def test_cocos_classes_are_those_of_its_categories() -> None:
    listed = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    assert {number: name for number, name in enumerate(listed) if name not in ("__background__", "N/A")} == dict(
        zip(COCO_IDS, COCO_NAMES, strict=True)
    )


def test_every_thing_but_riders_is_a_class_of_cocos_under_the_same_name() -> None:
    assert {COCO_NAMES[coco - 1]: THING_NAMES[thing - 1] for coco, thing in THING_OF_COCO.items()} == {
        name: name for name in THING_NAMES if name != "rider"
    }
    assert THING_NAMES[RIDER - 1] == "rider" and "rider" not in COCO_NAMES
