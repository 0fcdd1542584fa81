"""What a newcomer reads must be there and be true: README, study headers, help texts."""

import re
import shlex
import textwrap
from typing import Any

import click
import pytest
import typer.main

from cityopt.cli import app
from cityopt.study_file import load_study, sweeps_folder

README = sweeps_folder().parent / "README.md"
STUDIES = sorted(sweeps_folder().glob("*.yaml"))


def list_commands() -> dict[str, click.Command]:
    """Return every command by its words, such as `data check`."""
    root = typer.main.get_command(app)
    found: dict[str, click.Command] = {}
    for name, command in root.commands.items():
        if hasattr(command, "commands"):
            found |= {f"{name} {child}": leaf for child, leaf in command.commands.items()}
        else:
            found[name] = command
    return found


@pytest.mark.parametrize("name", list_commands())
def test_readme_shows_every_command(name):
    assert re.search(rf"\bcityopt {name}\b", README.read_text()), f"README.md lacks `cityopt {name}`"


def test_readme_names_every_option():
    text = README.read_text()
    options = {
        option
        for command in list_commands().values()
        for parameter in command.params
        for option in parameter.opts
        if option.startswith("--")
    }
    missing = sorted(option for option in options if not re.search(rf"{re.escape(option)}\b", text))
    assert not missing, f"README.md lacks the options {', '.join(missing)}"


def list_blocks() -> list[str]:
    """Return README's indented blocks, without their indent."""
    found = re.findall(r"(?:^ {4}.*\n|^\n(?= {4}))+", README.read_text(), re.MULTILINE)
    return [textwrap.dedent(block).strip("\n") for block in found]


def list_calls() -> list[tuple[str, ...]]:
    """Return the arguments of every `cityopt …` in README's blocks, as a shell would pass them."""
    lines = [line for block in list_blocks() for line in block.replace("\\\n", " ").splitlines()]
    found = []
    for line in lines:
        for part in line.split("&&") if re.search(r"(^|\s)cityopt ", line) else ():
            words = shlex.split(part, comments=True)
            if "cityopt" in words:
                found.append(tuple(words[words.index("cityopt") + 1 :]))
    return found


def parse_call(arguments: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """Return which command is meant and its parameters. Raises what typer does: it would not be understood."""
    commands = list_commands()
    words = next((w for w in (" ".join(arguments[:2]), arguments[0]) if w in commands), None)
    if words is None:
        raise LookupError(f"there is no command {arguments[0]!r}")
    context = commands[words].make_context(words, list(arguments[len(words.split()) :]))
    return words, context.params


@pytest.mark.parametrize("arguments", list_calls(), ids=" ".join)
def test_commands_of_the_readme_are_understood_and_their_settings_valid(arguments):
    words, given = parse_call(arguments)
    if "study" in given and given["study"] is not None:
        study = load_study(given["study"], settings=given.get("settings") or (), name=given.get("name"))
        assert study.name == (given.get("name") or given["study"]), words


def test_readme_shows_enough_commands_to_be_checked():
    calls = list_calls()
    assert ("data", "check") in calls and ("sweep", "--study", "demo") in calls
    (camvid,) = (call for call in calls if "camvid" in call)
    assert camvid.count("--set") > 20 and camvid[-1].startswith("search.baselines=[{")
    assert ("promote", "--study", "maskrcnn") in calls  # stands behind &&


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("swep",), "there is no command 'swep'"),
        (("sweep", "--study", "demo", "--nope"), "No such option.*--nope"),
        (("sweep",), "study"),
        (("data", "check", "extra"), "unexpected extra argument.*extra"),
    ],
)
def test_command_that_would_not_be_understood_is_noticed(arguments, problem):
    with pytest.raises(Exception, match=problem):
        parse_call(arguments)


def test_study_of_the_readme_loads(write_study):
    (text,) = (block for block in list_blocks() if block.startswith("extends: "))
    study = load_study(write_study(text))
    assert study.data.size == (512, 1024) and "model.freeze_depth" not in study.search.space


def test_readme_invents_no_command_or_option_in_passing():
    commands = {words.split()[0] for words in list_commands()}
    options = {"--help", *(o for c in list_commands().values() for p in c.params for o in p.opts)}
    code = re.findall(r"(?<!`)`[^`\n]+`(?!`)", README.read_text())
    calls = [call for part in code for call in re.findall(r"\bcityopt ([a-z]+)([^`#&|\n]*)", part)]
    assert calls
    for command, rest in calls:
        assert command in commands, f"README.md: cityopt {command}{rest}"
        for option in re.findall(r"(?<!\S)--[a-z-]+", rest):
            assert option in options, f"README.md: {option} in cityopt {command}{rest}"


def test_readme_links_to_files_that_exist():
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", README.read_text()):
        assert (README.parent / target).exists(), f"README.md links to {target}"


def test_readme_tells_every_module_folder():
    text = README.read_text()
    folders = [
        path.name for path in (README.parent / "cityopt").iterdir() if path.is_dir() and (path / "__init__.py").exists()
    ]
    assert folders and not [name for name in folders if f"{name}/" not in text]


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_shipped_study_loads_and_has_a_lab_note(path):
    study = load_study(path.stem)
    assert study.name == path.stem
    header = path.read_text().partition("\n\n")[0]
    lines = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert lines[0].startswith("# ") and lines[0].endswith(".") and header.startswith("#")
    for heading in ("Purpose", "Command", "Hours", "Result"):
        assert any(re.match(rf"#\s+{heading}\s+\S", line) for line in lines), f"{path.name} lacks `{heading}`"


def test_demo_needs_neither_data_nor_gpu_nor_download():
    demo = load_study("demo")
    assert demo.data.root == "synthetic" and demo.model.weights == "none"


def test_maskrcnn_searches_what_it_promises():
    study = load_study("maskrcnn")
    assert study.data.num_images == 372
    space = study.search.space
    rate, decay = space["training.learning_rate"], space["training.weight_decay"]
    assert (rate.low, rate.high, rate.log) == (1e-5, 1e-1, True)
    assert (decay.low, decay.high, decay.log) == (1e-6, 1e-2, True)
    assert (space["model.freeze_depth"].low, space["model.freeze_depth"].high) == (0, 5)
    first = study.search.baselines[0]
    assert (first["training.learning_rate"], first["training.weight_decay"]) == (0.01, 1e-4)
    assert first["model.freeze_depth"] == 2
