"""Atomic writes, locks, and files of others: read with limits, refused with a reason."""

from __future__ import annotations

import hashlib
import os
import threading

import pytest

from adapterbank.errors import BackboneError, StorageError
from adapterbank.files import (
    check_digest,
    lock,
    open_atomically,
    read_json,
    sha256,
    sync_folder,
    write_atomically,
    write_folder_atomically,
)


def test_a_file_is_replaced_as_a_whole_and_leaves_nothing_beside_it(tmp_path):
    file = tmp_path / "a.json"
    for content in (b"first", b"second, and longer"):
        write_atomically(file, content)
        assert file.read_bytes() == content
    assert list(tmp_path.iterdir()) == [file]
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "absent" / "a.json", b"x")


def test_a_file_that_is_written_piece_by_piece_appears_at_the_end_or_not_at_all(tmp_path):
    file = tmp_path / "a.bin"
    with open_atomically(file) as out:
        out.write(b"on")
        assert not file.exists()
        out.write(b"e")
    assert file.read_bytes() == b"one"
    killed = open_atomically(file)
    killed.__enter__().write(b"two")
    assert not killed.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert file.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [file]


def test_the_folder_is_synced_after_the_replace_unless_the_caller_does_it(tmp_path, monkeypatch):
    done = []
    # What a power cut leaves behind cannot be seen from here, so the calls are.
    for name in ("replace", "fsync"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, real=real: (done.append(name), real(*args))[1])
    write_atomically(tmp_path / "a", b"x")
    assert done == ["fsync", "replace", "fsync"]
    done.clear()
    write_atomically(tmp_path / "a", b"x", sync=False)
    assert done == ["fsync", "replace"]


def test_a_folder_that_cannot_be_opened_is_not_synced(tmp_path):
    sync_folder(tmp_path / "absent")


def test_a_folder_appears_complete_or_not_at_all(tmp_path):
    files = {"a.json": b"{}", "b.txt": b"text"}
    write_folder_atomically(tmp_path / "new", files)
    (tmp_path / "empty").mkdir()
    write_folder_atomically(tmp_path / "empty", files)
    for folder in ("new", "empty"):
        assert {file.name: file.read_bytes() for file in (tmp_path / folder).iterdir()} == files
    with pytest.raises(StorageError, match="exists and is no empty folder; name a new one"):
        write_folder_atomically(tmp_path / "new", files)
    with pytest.raises(StorageError, match="cannot write .*Nothing was left there"):
        write_folder_atomically(tmp_path / "other", {"a": b"x", "no/such/place": b"x"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "new"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "cannot read .*a.json"),
        (b"\xff", "cannot read .*a.json"),
        (b"[" * 100_000, "cannot read .*a.json"),
        (b"[1]", "holds a list, expected a JSON object"),
        (b"null", "holds a NoneType, expected a JSON object"),
        (b'{"a": "' + 1000 * b"x" + b'"}', "has 1,009 bytes, expected JSON of at most 1,000"),
    ],
)
def test_json_that_is_damaged_or_too_large_is_an_error_of_the_kind_that_was_asked_for(content, message, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    for kind in (BackboneError, StorageError):
        with pytest.raises(kind, match=f"{message}.* Do this."):
            read_json(path, kind, "Do this.", limit=1000 if b"x" in content else 10**6)


def test_json_that_is_absent_is_told(tmp_path):
    with pytest.raises(StorageError, match="cannot read .*No such file.* Fetch the file again"):
        read_json(tmp_path / "a.json", StorageError)


def test_a_digest_is_that_of_the_content(tmp_path):
    (tmp_path / "a").write_bytes(b"content")
    assert sha256(b"content") == hashlib.sha256(b"content").hexdigest()
    check_digest(tmp_path / "a", sha256(b"content"))
    for file, expected in (("a", "0" * 64), ("absent", sha256(b"content"))):
        with pytest.raises(BackboneError, match="Reinstall"):
            check_digest(tmp_path / file, expected)


def test_a_lock_lets_one_in_at_a_time_and_makes_its_folder(tmp_path):
    path, order = tmp_path / "new" / "store.db", []

    def enter(name):
        with lock(path):
            order.append(name)

    with lock(path):
        other = threading.Thread(target=enter, args=("second",))
        other.start()
        other.join(0.2)
        order.append("first")
    other.join()
    assert order == ["first", "second"]
    assert not path.exists()
