"""What a newcomer reads must be there and be true: README, study headers, help texts."""

import re

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


def test_readme_invents_no_command_or_option():
    commands = {words.split()[0] for words in list_commands()}
    options = {"--help", *(o for c in list_commands().values() for p in c.params for o in p.opts)}
    text = README.read_text()
    code = re.findall(r"```.*?```", text, re.DOTALL) + re.findall(r"(?<!`)`[^`\n]+`(?!`)", text)
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
