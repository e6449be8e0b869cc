"""Files that are there whole or not at all."""

from __future__ import annotations

import errno

import pytest

from llava_native.writing import named, replacing


def test_the_file_takes_the_place_of_another_and_of_a_link(tmp_path):
    victim, path = tmp_path / "victim", tmp_path / "file"
    victim.write_text("kept")
    path.symlink_to(victim)
    with replacing(path) as file:
        file.write(b"new")
        (other,) = (found for found in tmp_path.iterdir() if found not in (victim, path))
        assert other.stat().st_mode & 0o777 == 0o600
        assert path.read_text() == "kept"
    assert not path.is_symlink()
    assert (path.read_text(), victim.read_text()) == ("new", "kept")
    assert sorted(found.name for found in tmp_path.iterdir()) == ["file", "victim"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_what_fails_leaves_nothing(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(type(error)) as caught, replacing(path):
        raise error
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("file", "old")]
    assert isinstance(error, KeyboardInterrupt) or str(path) in str(caught.value)


def test_errors_name_the_file_that_was_asked_for(tmp_path):
    path = tmp_path / "nowhere" / "file"
    with pytest.raises(FileNotFoundError) as caught, replacing(path):
        pytest.fail("there is no such folder")
    assert str(caught.value).endswith(f"'{path}'")
    with pytest.raises(FileNotFoundError) as caught, named(path):
        (tmp_path / "other").read_bytes()
    assert str(caught.value).endswith(f"'{tmp_path / 'other'}'")
