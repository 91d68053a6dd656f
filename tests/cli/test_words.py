"""What the library says of its keywords is said of the options of the command that ran."""

from __future__ import annotations

import pytest
from typer.main import get_command

from adapterbank.cli.app import app
from adapterbank.cli.words import in_words_of


@pytest.mark.parametrize(
    ("command", "said", "shown"),
    [
        ("train", 'Or pass on_error="skip" to read the others.', "Or pass --on-error skip to read the others."),
        ("train", "pass recursive=True: all clips", "pass --recursive: all clips"),
        ("train", "(or multilabel=True), but multilabel=False.", "(or --multilabel), but --single-label."),
        ("train", "got batch_size=0, expected 1; lr=-1e-3.", "got --batch-size 0, expected 1; --lr -1e-3."),
        ("train", "got clip_seconds=None and crop_seconds=2", "got clip_seconds=None and crop_seconds=2"),
        ("predict", 'pass on_error="skip"', 'pass on_error="skip"'),
        ("scan", "got window=1000.0, expected 0.1 to 120.", "got --window 1000.0, expected 0.1 to 120."),
        ("import", "or pass name=...", "or pass --name ..."),
        ("scan", "a_window=3, window", "a_window=3, window"),
    ],
)  # fmt: skip
def test_a_keyword_becomes_the_option_if_the_command_has_one(command, said, shown):
    assert in_words_of(get_command(app).commands[command], said) == shown


@pytest.mark.parametrize("command", ["train", "evaluate", "calibrate", "compare", "check"])
def test_every_command_that_reads_a_folder_has_the_options_that_its_errors_advise(command):
    names = {parameter.name for parameter in get_command(app).commands[command].params}
    assert {"on_error", "recursive", "label_separator"} <= names
