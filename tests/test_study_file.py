"""Studies from YAML: found, read, merged, and settings from the command line on top."""

import pytest
import yaml

from cityopt import config
from cityopt.errors import ConfigError
from cityopt.study_file import find_study, load_study, name_study, parse_setting, sweeps_folder

RATE = "training.learning_rate"
DEPTH = {"model.freeze_depth": {"type": "int", "low": 0, "high": 5}}


def search(space=None, **rest):
    return {"search": {"space": DEPTH if space is None else space, **rest}}


def test_study_takes_defaults_and_its_files_name_when_it_says_little(write_study):
    study = load_study(write_study({"training": {"epochs": 5}}))
    assert (study.name, study.training.epochs, study.training.batch_size) == ("street", 5, 8)
    assert study.data == config.DataConfig() and study.search.space == {}


def test_numbers_are_numbers_when_plain_yaml_reads_them_as_text(write_study):
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
    study = load_study(write_study(text), settings=["training.weight_decay=1e-6"])
    assert (study.training.learning_rate, study.training.weight_decay) == (1e-5, 1e-6)
    assert study.search.space[RATE].examples() == (1e-5, 0.1)
    assert study.search.space["training.clip_norm"].choices == (10.0, 0.03)
    assert study.search.baselines == ({RATE: 2e-3},)
    assert study.promotion.overrides == {"training.weight_decay": 3e-4}


@pytest.mark.parametrize("text", ["seed: 1\nseed: 2", "training: {epochs: 3, epochs: 4}"])
def test_load_refuses_a_key_when_it_is_given_twice(write_study, text):
    with pytest.raises(ConfigError, match=r"street\.yaml is no valid YAML: '(seed|epochs)' is given twice"):
        load_study(write_study(text))


def test_extends_merges_sections_and_takes_dimensions_out(write_study):
    rate = {"type": "float", "low": 0.001, "high": 0.1}
    write_study({"training": {"epochs": 5, "batch_size": 4}, **search({**DEPTH, RATE: rate}, trials=7)}, "base.yaml")
    child = {"extends": "base", "training": {"epochs": 6}, **search({"model.freeze_depth": None, RATE: {"high": 1}})}
    study = load_study(write_study(child))
    assert (study.name, study.training.epochs, study.training.batch_size) == ("street", 6, 4)
    assert list(study.search.space) == [RATE] and study.search.trials == 7
    assert (study.search.space[RATE].low, study.search.space[RATE].high) == (0.001, 1)
    grandchild = load_study(write_study({"extends": "street", "seed": 3}, "third.yaml"))
    assert (grandchild.name, grandchild.training, grandchild.seed) == ("third", study.training, 3)


@pytest.mark.parametrize("base", ["street", "nowhere"])
def test_extends_is_refused_when_it_goes_in_a_circle_or_nowhere(write_study, base):
    with pytest.raises(ConfigError, match=r"circle at .*street.yaml" if base == "street" else "no study 'nowhere'"):
        load_study(write_study({"extends": base}))


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just text", "a: [", "\x00"])
def test_load_names_the_file_when_it_holds_no_sections(write_study, text):
    with pytest.raises(ConfigError, match=r"street\.yaml (must hold a mapping|is no valid YAML)"):
        load_study(write_study(text))


def test_settings_come_over_the_file_and_extra_over_settings(write_study):
    study = load_study(
        write_study({"training": {"epochs": 5}, **search()}),
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


def test_setting_takes_a_dimension_out_when_it_is_null(write_study):
    assert load_study(write_study(search()), settings=["search.space.model.freeze_depth=null"]).search.space == {}


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
def test_setting_is_refused_when_key_or_value_is_wrong(write_study, setting, rest):
    with pytest.raises(ConfigError) as error:
        load_study(write_study(search()), settings=[setting])
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
def test_name_is_refused_when_it_could_be_no_file_name(write_study, name):
    with pytest.raises(ConfigError, match="`name`"):
        load_study(write_study({"seed": 1}), name=name)


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


@pytest.mark.parametrize("name", ["a/b", "", "../up", "-x", "a" * 65])
def test_name_that_no_study_can_have_is_refused(name):
    with pytest.raises(ConfigError, match="a study's name has up to 64 letters"):
        name_study("demo", name)
