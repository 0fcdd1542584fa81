"""Studies from YAML: what is merged, what is refused, and that every refusal names the file, the key and the fix."""

import pytest
import yaml

from cityopt import config
from cityopt.config import (
    Dimension,
    RunConfig,
    StudyConfig,
    find_study,
    list_keys,
    load_study,
    parse_setting,
    replace_section,
    replace_settings,
    sweeps_folder,
)
from cityopt.errors import ConfigError

RATE = "training.learning_rate"
DEPTH = {"model.freeze_depth": {"type": "int", "low": 0, "high": 5}}


@pytest.fixture
def write(tmp_path):
    def write_study(content, name="street.yaml"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
        return str(path)

    return write_study


def search(space=None, **rest):
    return {"search": {"space": DEPTH if space is None else space, **rest}}


def test_study_takes_defaults_and_its_files_name_when_it_says_little(write):
    study = load_study(write({"training": {"epochs": 5}}))
    assert (study.name, study.training.epochs, study.training.batch_size) == ("street", 5, 8)
    assert study.data == config.DataConfig() and study.search.space == {}


def test_numbers_are_numbers_when_plain_yaml_reads_them_as_text(write):
    assert yaml.safe_load("[1e-5, 3E-2, -1e4]") == ["1e-5", "3E-2", "-1e4"]  # YAML 1.1 wants 1.0e-5
    text = """
        training: {learning_rate: 1e-5}
        search:
          space:
            training.learning_rate: {type: float, low: 1e-5, high: 1.e-1, log: true}
            training.clip_norm: {type: categorical, choices: [1e+1, 3E-2]}
          baselines: [{training.learning_rate: 2e-3}]
        promotion: {overrides: {training.weight_decay: 3e-4}}
    """
    study = load_study(write(text), settings=["training.weight_decay=1e-6"])
    assert (study.training.learning_rate, study.training.weight_decay) == (1e-5, 1e-6)
    assert study.search.space[RATE].examples() == (1e-5, 0.1)
    assert study.search.space["training.clip_norm"].choices == (10.0, 0.03)
    assert study.search.baselines == ({RATE: 2e-3},)
    assert study.promotion.overrides == {"training.weight_decay": 3e-4}


@pytest.mark.parametrize("text", ["seed: 1\nseed: 2", "training: {epochs: 3, epochs: 4}"])
def test_load_refuses_a_key_when_it_is_given_twice(write, text):
    with pytest.raises(ConfigError, match=r"street\.yaml is no valid YAML: '(seed|epochs)' is given twice"):
        load_study(write(text))


@pytest.mark.parametrize(
    ("content", "key", "rest"),
    [
        ({"trainng": {}}, "'trainng'", "Did you mean 'training'?"),
        ({"training": {"epoch": 3}}, "'training.epoch'", "Did you mean 'training.epochs'?"),
        ({"data": {"synthetic": {"seeds": 3}}}, "'data.synthetic.seeds'", "Did you mean 'data.synthetic.seed'?"),
        (search({"model.freeze_depth": {**DEPTH["model.freeze_depth"], "hi": 5}}), "freeze_depth.hi'", "mean 'high'?"),
        ({"training": {"epochs": "many"}}, "`training.epochs`", "'many'"),
        ({"training": {"epochs": True}}, "`training.epochs`", "True"),
        ({"training": {"epochs": "12"}}, "`training.epochs`", "'12'"),
        ({"training": {"epochs": 2.5}}, "`training.epochs`", "2.5"),
        ({"training": {"epochs": 0}}, "`training.epochs`", "greater than or equal to 1, but got 0"),
        ({"training": None}, "`training`", "but got None"),
        ({"training": {"learning_rate": float("inf")}}, "`training.learning_rate`", "finite"),
        ({"training": {"optimizer": "sdg"}}, "`training.optimizer`", "'sgd', 'adam' or 'adamw', but got 'sdg'"),
        ({"training": {"accumulation": 3}}, "`training`", "accumulation=3, batch_size=8"),
        ({"training": {"milestones": [0.5, 1.5]}}, "`training.milestones.1`", "1.5"),
        ({"training": {1: 2}}, "`training.1`", "strings"),
        ({"data": {"size": [256]}}, "`data.size.1`", "[256]"),
        ({"data": {"size": 256}}, "`data.size`", "256"),
        ({"data": {"root": 5}}, "`data.root`", "5"),
        ({"data": {"scale_jitter": [2, 1]}}, "`data`", "`0 < low <= high` must hold, but got scale_jitter=(2.0, 1.0)"),
        ({"model": {"freeze_depth": 7}}, "`model.freeze_depth`", "less than or equal to 5, but got 7"),
        ({"seed": -1}, "`seed`", "-1"),
        ({"name": "a b"}, "`name`", "'a b'"),
        ({"training": {"epochs": 2}}, "`search.pruner.min_epochs <= training.epochs`", "min_epochs=3, epochs=2"),
        ({"promotion": {"overrides": {"training.epoch": 9}}}, "`promotion.overrides`", "mean 'training.epochs'?"),
        ({"promotion": {"overrides": {"training.epochs": 0}}}, "`promotion.overrides`", "training.epochs=0"),
        ({"promotion": {"overrides": {"search.trials": 9}}}, "`promotion.overrides`", "'search.trials'"),
        ({"promotion": {"overrides": {"training": {"epochs": 9}}}}, "`promotion.overrides`", "'training'"),
    ],
)
def test_load_names_file_key_and_value_when_a_study_is_wrong(write, content, key, rest):
    with pytest.raises(ConfigError) as error:
        load_study(write(content))
    message = str(error.value)
    assert "street.yaml" in message and key in message and rest in message
    assert "\n" not in message and "pydantic" not in message


@pytest.mark.parametrize(
    ("space", "rest"),
    [
        ({RATE: {"type": "float", "low": 1, "high": 0.1}}, "`low <= high` must hold, but got low=1, high=0.1"),
        ({RATE: {"type": "float", "low": 0, "high": 0.1, "log": True}}, "`low > 0` must hold with `log: true`"),
        ({RATE: {"type": "float", "low": -1, "high": 0.1, "log": True}}, "got low=-1"),
        ({RATE: {"type": "float", "low": 0.1, "high": 1, "log": True, "step": 0.1}}, "exclude each other"),
        ({RATE: {"type": "float", "low": 0.1, "high": 1, "step": 0}}, "greater than 0, but got 0"),
        ({RATE: {"type": "float", "low": 0, "high": 1}}, "training.learning_rate=0.0"),  # fits no training
        ({RATE: {"type": "float", "low": 1}}, "`type: float` takes `low` and `high`, and no choices"),
        ({RATE: {"type": "float", "low": 1, "high": 2, "choices": [1]}}, "`type: float` takes `low` and `high`"),
        ({RATE: {"type": "floats", "low": 1, "high": 2}}, "'float', 'int' or 'categorical', but got 'floats'"),
        ({RATE: 0.1}, "but got 0.1"),
        ({"training.learning_rte": {"type": "float", "low": 1, "high": 2}}, "Did you mean 'training.learning_rate'?"),
        ({"search.trials": {"type": "int", "low": 1, "high": 2}}, "takes keys of data, model and training"),
        ({"model": {"freeze_depth": {"type": "int", "low": 1, "high": 2}}}, "search.space.model.type"),
        ({"model.freeze_depth": {"type": "int", "low": 0, "high": 7}}, "model.freeze_depth=6"),
        ({"model.freeze_depth": {"type": "int", "low": 0.5, "high": 3}}, "whole numbers"),
        ({"model.freeze_depth": {"type": "float", "low": 0.5, "high": 3}}, "model.freeze_depth=0.5"),
        ({"training.accumulation": {"type": "int", "low": 1, "high": 4}}, "training.accumulation=3"),  # 8 % 3
        ({"model.backbone": {"type": "categorical", "choices": []}}, "takes `choices`, at least one"),
        ({"model.backbone": {"type": "categorical", "choices": ["resnet5"]}}, "'resnet101', but got 'resnet5'"),
        ({"model.backbone": {"type": "categorical", "low": 1, "choices": ["resnet50"]}}, "no low, high, step or log"),
        ({**DEPTH, RATE: {"type": "float", "low": 1, "high": 2, "when": {"a": 1}}}, "another searched setting"),
        ({RATE: {"type": "float", "low": 1, "high": 2, "when": {RATE: 1}}}, "another searched setting"),
        ({**DEPTH, RATE: {"type": "float", "low": 1, "high": 2, "when": {"model.freeze_depth": 9}}}, "never 9"),
    ],
)
def test_load_refuses_a_search_space_when_it_is_impossible(write, space, rest):
    with pytest.raises(ConfigError) as error:
        load_study(write(search(space)))
    assert "street.yaml" in str(error.value) and "search.space" in str(error.value) and rest in str(error.value)


def test_space_admits_conditions_when_they_can_hold(write):
    optimizer = {"type": "categorical", "choices": ["sgd", "adam"]}
    momentum = {"type": "float", "low": 0.1, "high": 0.9, "when": {"training.optimizer": "sgd"}}
    study = load_study(write(search({"training.momentum": momentum, "training.optimizer": optimizer})))
    assert study.search.space["training.momentum"].when == {"training.optimizer": "sgd"}


@pytest.mark.parametrize(
    ("baseline", "rest"),
    [
        ({"model.freeze_depth": 6}, "baseline 1 must lie in the search space, but got model.freeze_depth=6"),
        ({"model.freeze_depth": 2.5}, "model.freeze_depth=2.5"),
        ({"model.freeze_depth": True}, "model.freeze_depth=True"),
        ({"model.freeze_depht": 2}, "which `search.space` lacks. Did you mean 'model.freeze_depth'?"),
    ],
)
def test_load_refuses_a_baseline_when_it_lies_outside_the_space(write, baseline, rest):
    with pytest.raises(ConfigError) as error:
        load_study(write(search(baselines=[{"model.freeze_depth": 2}, baseline])))
    assert "street.yaml" in str(error.value) and rest in str(error.value)


@pytest.mark.parametrize(
    ("dimension", "inside", "outside"),
    [
        (Dimension(type="float", low=0.1, high=1), [0.1, 1, 0.5], [0.05, 1.1, True, "0.5"]),
        (Dimension(type="int", low=1, high=3), [1, 2, 3, 2.0], [0, 4, 2.5, True]),
        (Dimension(type="categorical", choices=("sgd", 3)), ["sgd", 3], ["adam", 4]),
    ],
)
def test_dimension_admits_what_lies_in_it(dimension, inside, outside):
    assert all(map(dimension.admits, inside)) and not any(map(dimension.admits, outside))


def test_dimension_shows_all_its_values_when_they_are_few():
    assert Dimension(type="int", low=1, high=7, step=2).examples() == (1, 3, 5, 7)
    assert Dimension(type="int", low=1, high=1000).examples() == (1, 1000)
    assert Dimension(type="float", low=1, high=2).examples() == (1.0, 2.0)
    assert Dimension(type="categorical", choices=("a", "b")).examples() == ("a", "b")


TABLE = {"sizes": [[4.5] * 3, [9.0] * 3, [18.0] * 3, [36.0] * 3, [72.0] * 3], "ratios": [[0.5, 1, 2]] * 5}


def test_anchors_come_with_a_table_when_they_are_explicit(write):
    study = load_study(write({"model": {"anchors": "explicit", "anchor_table": TABLE}}))
    assert study.model.anchor_table is not None and study.model.anchor_table.sizes[0] == (4.5,) * 3


@pytest.mark.parametrize(
    ("model", "rest"),
    [
        ({"anchors": "explicit"}, "give both or neither"),
        ({"anchors": "kmeans", "anchor_table": TABLE}, "give both or neither"),
        ({"anchors": "explicit", "anchor_table": TABLE | {"sizes": TABLE["sizes"][:4]}}, "5 rows (P2..P6)"),
        ({"anchors": "explicit", "anchor_table": TABLE | {"ratios": [[1.0]] * 5}}, "one common length"),
        ({"anchors": "explicit", "anchor_table": TABLE | {"ratios": [[0.0, 1, 2]] * 5}}, "must be positive"),
        ({"anchors": "explicit", "anchor_table": {"sizes": TABLE["sizes"]}}, "`model.anchor_table.ratios`"),
        ({"anchors": "kmean"}, "'kmeans', 'default' or 'explicit', but got 'kmean'"),
    ],
)
def test_load_refuses_anchors_when_mode_and_table_disagree(write, model, rest):
    with pytest.raises(ConfigError) as error:
        load_study(write({"model": model}))
    assert "street.yaml" in str(error.value) and "model" in str(error.value) and rest in str(error.value)


def test_extends_merges_sections_and_takes_dimensions_out(write):
    rate = {"type": "float", "low": 0.001, "high": 0.1}
    write({"training": {"epochs": 5, "batch_size": 4}, **search({**DEPTH, RATE: rate}, trials=7)}, "base.yaml")
    child = {"extends": "base", "training": {"epochs": 6}, **search({"model.freeze_depth": None, RATE: {"high": 1}})}
    study = load_study(write(child))
    assert (study.name, study.training.epochs, study.training.batch_size) == ("street", 6, 4)
    assert list(study.search.space) == [RATE] and study.search.trials == 7
    assert (study.search.space[RATE].low, study.search.space[RATE].high) == (0.001, 1)
    grandchild = load_study(write({"extends": "street", "seed": 3}, "third.yaml"))
    assert (grandchild.name, grandchild.training, grandchild.seed) == ("third", study.training, 3)


@pytest.mark.parametrize("base", ["street", "nowhere"])
def test_extends_is_refused_when_it_goes_in_a_circle_or_nowhere(write, base):
    with pytest.raises(ConfigError, match=r"circle at .*street.yaml" if base == "street" else "no study 'nowhere'"):
        load_study(write({"extends": base}))


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just text", "a: [", "\x00"])
def test_load_names_the_file_when_it_holds_no_sections(write, text):
    with pytest.raises(ConfigError, match=r"street\.yaml (must hold a mapping|is no valid YAML)"):
        load_study(write(text))


def test_settings_come_over_the_file_and_extra_over_settings(write):
    study = load_study(
        write({"training": {"epochs": 5}, **search()}),
        settings=[
            "training.epochs=6",
            "data.size=[64, 128]",
            "data.root=a=b",
            "search.space.model.freeze_depth.low=1",
            "search.space.training.momentum={type: float, low: 0.5, high: 0.9}",
            "promotion.overrides.training.epochs=9",
            "seed=4",
        ],
        extra={"seed": 5},
        name="another",
    )
    assert (study.training.epochs, study.data.size, study.data.root) == (6, (64, 128), "a=b")
    assert (study.seed, study.name, study.promotion.overrides) == (5, "another", {"training.epochs": 9})
    assert {key: entry.low for key, entry in study.search.space.items()} == {
        "model.freeze_depth": 1,
        "training.momentum": 0.5,
    }


def test_setting_takes_a_dimension_out_when_it_is_null(write):
    assert load_study(write(search()), settings=["search.space.model.freeze_depth=null"]).search.space == {}


@pytest.mark.parametrize(
    ("setting", "rest"),
    [
        ("training.epoch=3", "there is no config key 'training.epoch'. Did you mean 'training.epochs'?"),
        ("epochs=3", "Did you mean 'training.epochs'?"),
        ("model.learning_rate=3", "Did you mean 'training.learning_rate'?"),
        ("training.epochs", "--set training.epochs=6"),
        ("=3", "`--set` takes key=value, but got '=3'"),
        ("training.epochs=[", "is no YAML"),
        ("training.epochs=", "`training.epochs`"),
        ("training.epochs=few", "but got 'few'"),
        ("promotion.overrides.training.epoch=5", "Did you mean 'training.epochs'?"),
        ("search.space.model.freeze_depth.low=9", "`low <= high` must hold, but got low=9, high=5"),
    ],
)
def test_setting_is_refused_when_key_or_value_is_wrong(write, setting, rest):
    with pytest.raises(ConfigError) as error:
        load_study(write(search()), settings=[setting])
    assert rest in str(error.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=[1, 2]", [1, 2]),
        ("a=null", None),
        ("a=true", True),
        ("a= x ", "x"),
        ("a=b=c", "b=c"),
        ("a={b: 1}", {"b": 1}),
    ],
)
def test_parse_setting_reads_values_as_yaml(text, value):
    assert parse_setting(text) == ("a", value)


@pytest.mark.parametrize("name", ["x/y", "", "-x", "a b", "é", "n" * 65])
def test_name_is_refused_when_it_could_be_no_file_name(write, name):
    with pytest.raises(ConfigError, match="`name`"):
        load_study(write({"seed": 1}), name=name)


def test_find_study_names_the_nearest_when_there_is_none_of_that_name():
    with pytest.raises(ConfigError, match=r"no study 'maskrcn'.*Did you mean 'maskrcnn'\?.*Studies: .*maskrcnn"):
        find_study("maskrcn")
    with pytest.raises(ConfigError, match=r"no file nowhere/some\.yaml"):
        find_study("nowhere/some.yaml")


@pytest.mark.parametrize("path", sorted(sweeps_folder().glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_studies_load_and_have_a_lab_note(path):
    study = load_study(path.stem)
    assert study.name == path.stem and study.search.baselines and study.search.space
    note = path.read_text(encoding="utf-8").split("\n\n")[0]
    assert all(line.startswith("#") for line in note.splitlines() if not line.startswith("extends"))
    assert all(word in note for word in ("Purpose", "Command"))


def test_maskrcnn_starts_with_detectron2s_recipe():
    study = load_study("maskrcnn")
    assert study.search.baselines[0] == {RATE: 0.01, "training.weight_decay": 1e-4, "model.freeze_depth": 2}
    rates, decays = study.search.space[RATE], study.search.space["training.weight_decay"]
    assert (rates.low, rates.high, rates.log) == (1e-5, 1e-1, True)
    assert (decays.low, decays.high, decays.log) == (1e-6, 1e-2, True)
    assert study.search.space["model.freeze_depth"].examples() == (0, 1, 2, 3, 4, 5)
    assert study.data.num_images == 372 and study.model.anchors == "kmeans"


def test_replace_settings_changes_what_is_named_and_nothing_else(write):
    study = load_study(write({"promotion": {"overrides": {"training.epochs": 20}}, **search()}))
    changed = replace_settings(study, {"data.root": "/data", "model.freeze_depth": 4})
    assert (changed.data.root, changed.model.freeze_depth) == ("/data", 4)
    assert changed.promotion.overrides == {"training.epochs": 20}
    assert replace_settings(changed, {"data.root": None, "model.freeze_depth": 2}) == study
    assert replace_settings(study, {}) is study
    with pytest.raises(ConfigError, match=r"`model.freeze_depth`.*but got 9"):
        replace_settings(study, {"model.freeze_depth": 9})


def test_replace_section_validates_again_when_a_field_changes():
    section = replace_section(config.TrainingConfig(), batch_size=6, accumulation=3)
    assert (section.batch_size, section.accumulation) == (6, 3)
    with pytest.raises(ConfigError, match="accumulation must divide batch_size"):
        replace_section(config.TrainingConfig(), accumulation=3)


def test_study_survives_when_it_travels_as_json(write):
    study = load_study(write({"model": {"anchors": "explicit", "anchor_table": TABLE}, **search()}))
    assert StudyConfig.model_validate_json(study.model_dump_json()) == study


def test_configs_cannot_be_changed_once_they_are_made(write):
    with pytest.raises(ValueError, match="frozen"):
        load_study(write({"seed": 1})).seed = 2


def test_list_keys_reaches_the_leaves():
    keys = list_keys()
    assert {"seed", "training", "training.epochs", "data.synthetic.seed", "model.anchor_table.sizes"} <= set(keys)
    assert len(keys) == len(set(keys))
    assert "train_set.part" in list_keys(RunConfig)
