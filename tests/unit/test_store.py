"""Named models: what is written down, what is checked, and that nothing is half-written."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from support import damage
from support.gguf_file import write_gguf
from support.tiny_models import write_mmproj

from llava_native import store
from llava_native.errors import (
    EmbeddingMismatchError,
    InvalidInputError,
    ModelfileError,
    ModelFormatError,
    ModelNotFoundError,
    StoreError,
)
from llava_native.gguf import read_header

MODELFILE = (
    'FROM ./text.gguf\nFROM mmproj.gguf\nSYSTEM Be brief.\nPARAMETER num_ctx 512\nPARAMETER stop "#"\n'
)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAVA_NATIVE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "models"
    path.mkdir()
    damage.good_text(path / "text.gguf")
    damage.good_mmproj(path / "mmproj.gguf")
    (path / "Modelfile").write_text(MODELFILE)
    return path


def everything(home):
    return sorted(path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file())


def test_create_find_list_copy_remove(home, folder):
    made, warnings = store.create("Cat", folder / "Modelfile")
    assert warnings == ()
    assert store.find("cat") == store.find("CAT:latest") == made
    assert made.system == "Be brief."
    assert made.arguments() == {
        "model": str(folder / "text.gguf"),
        "mmproj": str(folder / "mmproj.gguf"),
        "n_ctx": 512,
    }
    assert made.answer == {"stop": ["#"]}
    assert made.size == sum((folder / name).stat().st_size for name in ("text.gguf", "mmproj.gguf"))
    store.copy("cat", "user/cat:int4")
    assert store.names() == ["cat", "user/cat:int4"]
    assert everything(home) == ["models/cat.json", "models/user%2Fcat%3Aint4.json"]
    store.remove("cat")
    assert store.names() == ["user/cat:int4"]
    assert store.find("user/cat:int4").model == made.model
    assert (folder / "text.gguf").exists()
    with pytest.raises(ModelNotFoundError, match="no model cat"):
        store.remove("cat")


def test_paths_begin_where_the_modelfile_lies(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    made, _ = store.create("a", "models/Modelfile")
    monkeypatch.chdir("/")
    assert store.find("a").arguments()["model"] == str(folder / "text.gguf") == made.model.path


def test_the_order_of_from_does_not_matter(folder):
    (folder / "Modelfile").write_text("FROM mmproj.gguf\nFROM text.gguf\n")
    made, _ = store.create("a", folder / "Modelfile")
    assert made.model.path.endswith("text.gguf")
    assert made.mmproj.path.endswith("mmproj.gguf")


def test_from_a_name(folder):
    store.create("base", folder / "Modelfile")
    (folder / "M2").write_text("FROM base\nPARAMETER num_ctx 256\nPARAMETER top_k 1\n")
    made, _ = store.create("new", folder / "M2")
    base = store.find("base")
    assert (made.model, made.mmproj, made.system) == (base.model, base.mmproj, "Be brief.")
    assert made.load == {"n_ctx": 256}
    assert made.answer == {"stop": ["#"], "top_k": 1}


def test_adapters(folder):
    n_in, n_out = read_header(folder / "text.gguf").tensors["blk.0.attn_q.weight"].shape
    halves = {"a": np.zeros((2, n_in), np.float32), "b": np.zeros((n_out, 2), np.float32)}
    tensors = {f"blk.0.attn_q.weight.lora_{half}": array for half, array in halves.items()}
    kv = {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"}
    write_gguf(folder / "lora.gguf", kv, tensors)
    (folder / "M2").write_text("FROM text.gguf\nADAPTER ./lora.gguf\n")
    made, warnings = store.create("a", folder / "M2")
    assert warnings == ()
    assert store.find("a") == made
    assert made.arguments() == {"model": str(folder / "text.gguf"), "lora": [str(folder / "lora.gguf")]}
    (folder / "M3").write_text("FROM a\n")
    assert store.create("b", folder / "M3")[0].adapters == made.adapters
    (folder / "lora.gguf").unlink()
    with pytest.raises(StoreError, match=r"lora\.gguf, of the model a, is gone"):
        store.find("a").arguments()
    for text, error, says in (
        ("FROM text.gguf\nADAPTER gone.gguf\n", ModelfileError, ":2: ADAPTER gone.gguf: there is no such"),
        ("FROM text.gguf\nADAPTER text.gguf\n", ModelFormatError, "no LoRA adapter"),
    ):
        with pytest.raises(error, match=says):
            store.create("c", bad(folder, text))
    assert store.names() == ["a", "b"]


def test_register(folder):
    made = store.register("a", folder / "text.gguf")
    assert store.find("a") == made
    assert made.arguments() == {"model": str(folder / "text.gguf")}


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "..", "../x", "a/../b", "/etc/passwd", "a/b/c", "-x", ".x", "a b", "a\0b", "a\n", "ä", "a:",
        "a:b:c", "x" * 200, "a\\b", "~", "a/", "/a", None, 3,
    ],
)  # fmt: skip
def test_names_cannot_leave_the_folder(home, folder, name):
    for call in (store.find, store.remove, lambda n: store.create(n, folder / "Modelfile")):
        with pytest.raises(InvalidInputError, match="no name for a model"):
            call(name)
    assert not home.exists()


def test_nothing_there_yet(home):
    assert store.names() == []
    with pytest.raises(ModelNotFoundError, match="created are: none yet"):
        store.find("a")
    assert not home.exists()


# -- refusals at create, each of which leaves the store as it was


def bad(folder, text):
    (folder / "Bad").write_text(text)
    return folder / "Bad"


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("FROM text.gguf\nFROM nowhere.gguf\n", ModelfileError, "Bad:2: FROM nowhere.gguf: there is no such"),
        ("FROM text.gguf\nFROM ../../../etc\n", ModelfileError, "Bad:2:"),
        ("FROM .\n", ModelfileError, "is a folder"),
        (f"FROM {'x' * 300}\n", ModelfileError, "Bad:1: FROM xxx"),
        (f"FROM text.gguf\nADAPTER {'x' * 300}\n", ModelfileError, "Bad:2: ADAPTER xxx"),
        ("FROM text.gguf\nADAPTER ~no-such-user/x\n", ModelfileError, "Bad:2: ADAPTER ~no-such-user/x: "),
        ("FROM mmproj.gguf\n", ModelFormatError, "0 text models and 1 image encoders"),
        ("FROM text.gguf\nFROM text.gguf\n", ModelFormatError, "2 text models"),
        ("FROM text.gguf\nFROM mmproj.gguf\nFROM mmproj.gguf\n", ModelFormatError, "2 image encoders"),
        ("FROM Bad\n", ModelFormatError, "not a GGUF file"),
        ("FROM cut.gguf\n", ModelFormatError, "cut short"),
        ("FROM text.gguf\nFROM cut-mmproj.gguf\n", ModelFormatError, "cut short"),
        ("FROM text.gguf\nFROM wide.gguf\n", EmbeddingMismatchError, "belongs to another model"),
        ("FROM text.gguf\nFROM mmproj.gguf\nSYSTEM x\nNONSENSE\n", ModelfileError, "Bad:4"),
    ],
)
def test_create_refuses_and_keeps_what_was(home, folder, text, error, says):
    store.create("a", folder / "Modelfile")
    before = (home / "models" / "a.json").read_bytes()
    write_mmproj(folder / "wide.gguf", n_embd_text=96)
    for name, cut in (("text.gguf", "cut.gguf"), ("mmproj.gguf", "cut-mmproj.gguf")):
        (folder / cut).write_bytes((folder / name).read_bytes()[:-64])
    with pytest.raises(error, match=says):
        store.create("a", bad(folder, text))
    with pytest.raises(error):
        store.create("b", bad(folder, text))
    assert everything(home) == ["models/a.json"]
    assert (home / "models" / "a.json").read_bytes() == before


@pytest.mark.parametrize("stage", ["os.fsync", "pathlib.Path.replace", "json.dumps"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_nothing(home, folder, monkeypatch, stage, error):
    store.create("a", folder / "Modelfile")
    before = (home / "models" / "a.json").read_bytes()

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(stage, fail)
    for name in ("a", "b"):
        with pytest.raises(type(error)):
            store.register(name, folder / "text.gguf")
    monkeypatch.undo()
    assert [path.name for path in (home / "models").iterdir()] == ["a.json"]
    assert (home / "models" / "a.json").read_bytes() == before


# -- files that changed


def test_a_file_that_is_gone(folder):
    made, _ = store.create("a", folder / "Modelfile")
    (folder / "mmproj.gguf").unlink()
    with pytest.raises(StoreError, match=r"mmproj\.gguf, of the model a, is gone"):
        made.arguments()


def test_a_file_that_changed(folder):
    made, _ = store.create("a", folder / "Modelfile")
    path = folder / "text.gguf"
    data = bytearray(path.read_bytes())
    data[-8:] = b"\x01\x02\x03\x04\x05\x06\x07\x08"
    path.write_bytes(data)
    os.utime(path, (1, 1))
    with pytest.raises(StoreError, match=r"text\.gguf, of the model a, was changed"):
        made.arguments()


def test_a_file_that_was_only_touched_or_moved_back(folder):
    made, _ = store.create("a", folder / "Modelfile")
    shutil.copy(folder / "text.gguf", folder / "copy")
    os.utime(folder / "copy", (1, 1))
    (folder / "copy").replace(folder / "text.gguf")
    assert made.arguments()["model"] == str(folder / "text.gguf")


# -- manifests that were not written by us


@pytest.mark.parametrize(
    "change",
    [
        lambda m: [m], lambda m: {"a": m}, lambda m: m | {"version": 99}, lambda m: m | {"model": None},
        lambda m: m | {"model": {"path": "x"}}, lambda m: m | {"messages": [1]}, lambda m: m | {"load": []},
        lambda m: m | {"load": {"kv_overrides": {}}}, lambda m: m | {"answer": {"image": 1}},
        lambda m: m | {"name": "b"}, lambda m: {k: v for k, v in m.items() if k != "answer"},
    ],
)  # fmt: skip
def test_a_damaged_manifest(home, folder, change):
    store.create("a", folder / "Modelfile")
    path = home / "models" / "a.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(StoreError, match=r"damaged|describes b"):
        store.find("a")
    store.remove("a")
    assert store.names() == []


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 100_000])
def test_a_manifest_that_is_no_json(home, folder, data):
    store.create("a", folder / "Modelfile")
    (home / "models" / "a.json").write_bytes(data)
    with pytest.raises(StoreError, match="damaged"):
        store.find("a")


def test_links_are_not_followed(home, folder, tmp_path):
    store.create("a", folder / "Modelfile")
    victim = tmp_path / "victim"
    path = home / "models" / "a.json"
    path.replace(victim)
    path.symlink_to(victim)
    kept = victim.read_bytes()
    assert store.names() == []
    with pytest.raises(StoreError, match="cannot be read"):
        store.find("a")
    store.create("a", folder / "Modelfile")  # takes the link's place, and leaves what it pointed to
    assert not path.is_symlink()
    path.unlink()
    path.symlink_to(victim)
    store.remove("a")
    assert victim.read_bytes() == kept
    os.mkfifo(path)
    with pytest.raises(StoreError, match="not a regular file"):
        store.find("a")


def test_the_folder_of_the_platform(monkeypatch, tmp_path):
    monkeypatch.delenv("LLAVA_NATIVE_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert store.home().name == "llava-native"
    assert store.home().is_absolute()


@pytest.mark.parametrize("file", ["x%2dy.json", "foo%3Alatest.json", "CAT.json"])
def test_files_that_no_name_has_are_not_listed(home, folder, file):
    store.create("cat", folder / "Modelfile")
    (home / "models" / file).write_text("{}")
    assert store.names() == ["cat"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"created": 5}, {"system": ["a"]}, {"chat_template": 1}, {"name": None}, {"load": {"n_ctx": "x"}},
        {"load": {"n_ctx": None}}, {"load": {"n_ctx": True}}, {"model": {"size": "5"}},
        {"model": {"path": 5}}, {"mmproj": {"fingerprint": 5}}, {"adapters": [5]},
    ],
)  # fmt: skip
def test_values_of_a_wrong_kind(home, folder, wrong):
    store.create("cat", folder / "Modelfile")
    path = home / "models" / "cat.json"
    data = json.loads(path.read_text())
    for key, value in wrong.items():
        data[key] = {**data[key], **value} if key in ("model", "mmproj") else value
    path.write_text(json.dumps(data))
    with pytest.raises(StoreError, match="damaged"):
        store.find("cat")


def test_a_home_of_nobody(monkeypatch):
    monkeypatch.setenv("LLAVA_NATIVE_HOME", "~no-such-user/x")
    with pytest.raises(StoreError, match="LLAVA_NATIVE_HOME=~no-such-user"):
        store.names()


def test_a_folder_of_any_bytes(folder):
    odd = folder.rename(folder.with_name(os.fsdecode(b"d\xff")))
    made, _ = store.create("a", odd / "Modelfile")
    assert store.find("a").arguments() == made.arguments()
    assert made.model.path == str(odd / "text.gguf")
