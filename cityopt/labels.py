"""The Cityscapes label table: ids, training ids, categories and palette, the eight classes with instances; COCO's 80.

Stands on the lowest floor: data, models, evaluation and report all read it. Rasters hold `id`s (0 unlabeled …
33 bicycle, 26003 = fourth car of an image), models hold contiguous classes 1 … 8 with 0 for the background.

COCO's classes are contiguous too, 1 … 80 in the order of its categories, whose ids have gaps. Seven of them are
Cityscapes' under the same names; COCO has no rider: who rides is a person there.

Source: cityscapesScripts, helpers/labels.py, and the class definitions on cityscapes-dataset.com; the categories of
COCO's instances_*2017.json.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Label:
    """One row of the official table; `train_id` 255 means "not trained on", `color` is RGB in 0 … 255."""

    id: int
    name: str
    train_id: int
    category: str
    has_instances: bool
    ignore_in_eval: bool
    color: tuple[int, int, int]


LABELS: tuple[Label, ...] = (
    Label(0, "unlabeled", 255, "void", False, True, (0, 0, 0)),
    Label(1, "ego vehicle", 255, "void", False, True, (0, 0, 0)),
    Label(2, "rectification border", 255, "void", False, True, (0, 0, 0)),
    Label(3, "out of roi", 255, "void", False, True, (0, 0, 0)),
    Label(4, "static", 255, "void", False, True, (0, 0, 0)),
    Label(5, "dynamic", 255, "void", False, True, (111, 74, 0)),
    Label(6, "ground", 255, "void", False, True, (81, 0, 81)),
    Label(7, "road", 0, "flat", False, False, (128, 64, 128)),
    Label(8, "sidewalk", 1, "flat", False, False, (244, 35, 232)),
    Label(9, "parking", 255, "flat", False, True, (250, 170, 160)),
    Label(10, "rail track", 255, "flat", False, True, (230, 150, 140)),
    Label(11, "building", 2, "construction", False, False, (70, 70, 70)),
    Label(12, "wall", 3, "construction", False, False, (102, 102, 156)),
    Label(13, "fence", 4, "construction", False, False, (190, 153, 153)),
    Label(14, "guard rail", 255, "construction", False, True, (180, 165, 180)),
    Label(15, "bridge", 255, "construction", False, True, (150, 100, 100)),
    Label(16, "tunnel", 255, "construction", False, True, (150, 120, 90)),
    Label(17, "pole", 5, "object", False, False, (153, 153, 153)),
    Label(18, "polegroup", 255, "object", False, True, (153, 153, 153)),
    Label(19, "traffic light", 6, "object", False, False, (250, 170, 30)),
    Label(20, "traffic sign", 7, "object", False, False, (220, 220, 0)),
    Label(21, "vegetation", 8, "nature", False, False, (107, 142, 35)),
    Label(22, "terrain", 9, "nature", False, False, (152, 251, 152)),
    Label(23, "sky", 10, "sky", False, False, (70, 130, 180)),
    Label(24, "person", 11, "human", True, False, (220, 20, 60)),
    Label(25, "rider", 12, "human", True, False, (255, 0, 0)),
    Label(26, "car", 13, "vehicle", True, False, (0, 0, 142)),
    Label(27, "truck", 14, "vehicle", True, False, (0, 0, 70)),
    Label(28, "bus", 15, "vehicle", True, False, (0, 60, 100)),
    Label(29, "caravan", 255, "vehicle", True, True, (0, 0, 90)),
    Label(30, "trailer", 255, "vehicle", True, True, (0, 0, 110)),
    Label(31, "train", 16, "vehicle", True, False, (0, 80, 100)),
    Label(32, "motorcycle", 17, "vehicle", True, False, (0, 0, 230)),
    Label(33, "bicycle", 18, "vehicle", True, False, (119, 11, 32)),
    Label(-1, "license plate", -1, "vehicle", False, True, (0, 0, 142)),
)

BY_NAME: dict[str, Label] = {label.name: label for label in LABELS}

NUM_IDS = max(label.id for label in LABELS) + 1
"""Label ids of rasters are 0 … NUM_IDS - 1."""
INSTANCE_IDS = frozenset(label.id for label in LABELS if label.has_instances)
"""Of `id * 1000 + k`, single instances: caravans and trailers among them."""

CATEGORIES: tuple[str, ...] = tuple(dict.fromkeys(label.category for label in LABELS))
"""The eight categories; a category's place is its official id, and 0 is void."""

MIN_INSTANCE_PX = 100
"""Cityscapes' instance AP neither asks for smaller objects nor punishes finding them."""

VOID = 255
"""Training id of pixels that nothing is learned from."""

EVALUATED_LABELS: tuple[Label, ...] = tuple(label for label in LABELS if not label.ignore_in_eval)
"""The 19 classes that the semantic protocol averages; pixels of the others, void and its like, do not count."""

# Caravans and trailers are counted one by one in the rasters, but no protocol evaluates them.
THING_LABELS: tuple[Label, ...] = tuple(label for label in LABELS if label.has_instances and not label.ignore_in_eval)
THING_NAMES: tuple[str, ...] = tuple(label.name for label in THING_LABELS)
CLASS_OF_ID: dict[int, int] = {label.id: index for index, label in enumerate(THING_LABELS, start=1)}

COCO_NAMES: tuple[str, ...] = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear",
    "hair drier", "toothbrush",
)  # fmt: skip
_COCO_GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
COCO_IDS: tuple[int, ...] = tuple(number for number in range(1, 91) if number not in _COCO_GAPS)
"""Category ids of COCO's classes 1 … 80, in their order."""
RIDER = THING_NAMES.index("rider") + 1
"""Cityscapes' class that COCO lacks."""
THING_OF_COCO: dict[int, int] = {
    COCO_NAMES.index(name) + 1: index for index, name in enumerate(THING_NAMES, start=1) if index != RIDER
}
"""Cityscapes' classes of COCO's: person, car, truck, bus, train, motorcycle, bicycle."""
