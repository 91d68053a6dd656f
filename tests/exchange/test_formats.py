"""The table of formats: what is in it is found, and adding to it takes one entry."""

from __future__ import annotations

import pytest

from adapterbank.errors import ConfigError, StorageError, UnknownNameError
from adapterbank.exchange import formats, own_file, peft_read


def test_an_unknown_format_is_told_the_known_ones(lora_bank, tmp_path):
    with pytest.raises(UnknownNameError, match="unknown format 'pefft'. Did you mean 'peft'.*Known: peft"):
        lora_bank.export("other", "pefft", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_new_format_is_one_entry(lora_bank, tmp_path, monkeypatch):
    def write(task, backbone, path, *, shout=False):
        path.write_text(task.name.upper() if shout else task.name)

    monkeypatch.setitem(formats.WRITERS, "name", write)
    lora_bank.export("other", "name", tmp_path / "a.txt", shout=True)
    assert (tmp_path / "a.txt").read_text() == "OTHER"


def test_a_folder_goes_to_peft_and_everything_else_to_our_own_files(lora_bank, tmp_path):
    (tmp_path / "file").write_text("?")
    for path, reader in ((tmp_path, peft_read), (tmp_path / "file", own_file), (tmp_path / "absent", own_file)):
        assert next(reader for reader in formats.READERS if reader.reads(path)) is reader
        with pytest.raises(StorageError):
            lora_bank.import_task(path)
    with pytest.raises(ConfigError, match="got labels for .*: that is for folders of peft"):
        lora_bank.import_task(tmp_path / "file", labels=["a"])
