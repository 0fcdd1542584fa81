"""The `cityopt` command: its verbs by name; each parses, calls one function of the library and prints.

The verbs are in `commands/`. Heavy imports (torch, optuna, mlflow) wait inside them, so that `cityopt --help` answers
at once.
"""

import sys

import typer

from cityopt.commands import datasets, models, studies, sweeps
from cityopt.errors import CityoptError

app = typer.Typer(
    help="Find good training settings for Cityscapes segmentation on a small subset, then train the winner in full.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for verb in (
    sweeps.plan,
    sweeps.sweep,
    sweeps.worker,
    studies.promote,
    studies.trust,
    studies.crossval,
    models.evaluate,
    models.compare,
    studies.status,
    studies.stop,
    studies.retry,
    studies.report,
    studies.anchors,
    models.predict,
    models.transfer,
    studies.ui,
):
    app.command()(verb)

data_app = typer.Typer(help="Look at a dataset, or make one.", no_args_is_help=True)
data_app.command("check")(datasets.data_check)
data_app.command("stats")(datasets.data_stats)
data_app.command("synth")(datasets.data_synth)
app.add_typer(data_app, name="data")

weights_app = typer.Typer(help="Bring weights from elsewhere.", no_args_is_help=True)
weights_app.command("convert")(models.weights_convert)
app.add_typer(weights_app, name="weights")


def main() -> None:
    """Run the command line; an error that is meant for the user ends it with a message and exit code 1."""
    try:
        app()
    except CityoptError as error:
        print(f"Error: {error}" if error.exit_code == 1 else error, file=sys.stderr)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
