"""How vendor/llama.cpp is filled, as far as it needs no network."""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "vendor"))

import fetch


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "package.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name in ("package-1/setup.py", "package-1/vendor/llama.cpp/LICENSE"):
            entry = tarfile.TarInfo(name)
            entry.size = len(name)
            tar.addfile(entry, io.BytesIO(name.encode()))
    return path


def test_only_llama_cpp_is_unpacked(archive, tmp_path):
    tree = fetch.unpack(archive, "vendor/llama.cpp", tmp_path)
    assert (tree / "LICENSE").read_text() == "package-1/vendor/llama.cpp/LICENSE"
    assert not (tmp_path / "package-1" / "setup.py").exists()


@pytest.mark.parametrize("knows_filters", [True, False])
def test_debian_12s_python_has_no_filters(archive, tmp_path, monkeypatch, knows_filters):
    """Its 3.11.2 refuses the keyword; where there are filters, one is used."""
    given = []
    monkeypatch.setattr(tarfile.TarFile, "extractall", lambda *_, **options: given.append(options))
    if knows_filters:
        monkeypatch.setattr(tarfile, "data_filter", None, raising=False)
    else:
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
    fetch.unpack(archive, "vendor/llama.cpp", tmp_path)
    assert [options.get("filter") for options in given] == ["data" if knows_filters else None]
