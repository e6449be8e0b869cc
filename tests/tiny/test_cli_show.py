"""show and list: files of strangers reach the terminal as what they are, whatever their metadata hold."""

from __future__ import annotations

import io
import json

import pytest
from support import damage

from llava_native import store
from llava_native.cli import main
from llava_native.errors import ModelNotFoundError

EVIL = "a\x1b[2J"
ODD = {"general.name": ["x", "y"], "general.file_type": [1, 2], "general.nan": float("nan"), "k\x1b[2J": EVIL}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLAVA_NATIVE_HOME", str(tmp_path / "home"))
    return tmp_path


class Terminal(io.StringIO):
    """A stdout that says it is one."""

    def isatty(self):
        return True


@pytest.mark.parametrize("options", [(), ("--metadata",), ("--json",), ("--metadata", "--json")])
def test_metadata_of_every_kind(folder, capsys, options):
    damage.good_text(folder / "odd.gguf", **ODD)
    assert main(["show", "odd.gguf", *options]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert ("\\x1b[2J" in out) == ("--metadata" in options and "--json" not in options)
    if "--json" in options:
        (file,) = json.loads(out, parse_constant=pytest.fail)["files"]
        assert file["called"] == ["x", "y"]
        assert "quantisation" not in file
        assert file.get("metadata", {"general.nan": "nan"})["general.nan"] == "nan"


def test_a_template_that_is_none(folder, capsys):
    damage.good_text(folder / "odd.gguf", **{"tokenizer.chat_template": 5})
    assert main(["show", "odd.gguf", "--template"]) == 0
    assert capsys.readouterr().out == "\n"


@pytest.mark.parametrize(("terminal", "expected"), [(True, "a\\x1b[2J\nb\n"), (False, "a\x1b[2J\nb\n")])
def test_a_template_is_itself_in_a_file_and_harmless_on_a_terminal(folder, monkeypatch, terminal, expected):
    damage.good_text(folder / "odd.gguf", **{"tokenizer.chat_template": EVIL + "\nb"})
    (folder / "Modelfile").write_text(f'FROM odd.gguf\nSYSTEM """{EVIL}\nb"""\n')
    assert main(["create", "odd"]) == 0
    for arguments in (("odd.gguf", "--template"), ("odd", "--system")):
        out = Terminal() if terminal else io.StringIO()
        monkeypatch.setattr("sys.stdout", out)
        assert main(["show", *arguments]) == 0
        assert out.getvalue() == expected


def test_list_shows_paths_as_they_are(folder, capsys):
    (folder / EVIL).mkdir()
    store.register("odd", damage.good_text(folder / EVIL / "text.gguf"))
    assert main(["list"]) == 0
    assert "/a\\x1b[2J/text.gguf\n" in capsys.readouterr().out


def test_list_passes_over_a_name_that_goes_meanwhile(folder, capsys, monkeypatch):
    path = damage.good_text(folder / "text.gguf")
    store.register("kept", path)
    monkeypatch.setattr(store, "names", lambda: ["gone", "kept"])
    with pytest.raises(ModelNotFoundError):
        store.find("gone")
    assert main(["list"]) == 0
    assert capsys.readouterr().out.split()[0] == "kept"
