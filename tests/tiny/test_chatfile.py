"""Conversations on disk: the same answers as without a break, work that is spared, and files not to trust."""

from __future__ import annotations

import base64
import contextlib
import copy
import io
import json
import os
import signal
import zipfile

import numpy as np
import pytest
from PIL import Image

from llava_native import Context, Llava, Model
from llava_native._state import get_state, set_state
from llava_native.errors import ChatFileError, InvalidInputError

GREEDY = {"temperature": 0, "max_tokens": 6}


@pytest.fixture
def llava(pair):
    with Llava(pair.text.path, pair.mmproj.path, n_ctx=256, n_threads=1) as opened:
        yield opened


def begin(llava, picture):
    chat = llava.chat("Be brief.")
    for words, image in (("What is this?", picture), ("And this?", Image.new("RGB", (40, 20), "teal"))):
        with chat.send(words, image, **GREEDY) as stream:
            stream.result()
    return chat


def go_on(chat):
    with chat.send("Sure?", **GREEDY) as stream:
        return stream.result()


def edit(path, change):
    """Rewrite a saved conversation with its members changed."""
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    data = json.loads(members["chat.json"])
    change(members, data)
    members["chat.json"] = json.dumps(data).encode()
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("LLAVA_NATIVE_HOME", str(folder))
    return folder


@pytest.fixture
def saved(llava, picture, tmp_path):
    path = tmp_path / "talk.chat"
    begin(llava, picture).save(path)
    return path


def test_a_loaded_conversation_goes_on_as_if_there_had_been_no_break(pair, picture, tmp_path):
    path = tmp_path / "talk.chat"
    with Llava(pair.text.path, pair.mmproj.path, n_ctx=256, n_threads=1) as first:
        chat = begin(first, picture)
        chat.save(path)
        expected = go_on(chat)
    assert [p.name for p in tmp_path.iterdir()] == ["talk.chat"]
    assert path.stat().st_mode & 0o077 == 0
    with Llava(pair.text.path, pair.mmproj.path, n_ctx=256, n_threads=1) as second:
        loaded = second.load_chat(path)
        assert [m.role for m in loaded.messages] == ["system", *["user", "assistant"] * 2]
        found = go_on(loaded)
        stats = second.stats()
    assert (found.text, found.usage.prompt_tokens) == (expected.text, expected.usage.prompt_tokens)
    # neither image was encoded again, and what is left to evaluate is about the question
    assert stats.images_encoded == 0
    assert stats.cached_tokens >= found.usage.prompt_tokens - 40


def test_a_conversation_without_its_state_is_evaluated_again(llava, saved, pair):
    def drop(members, data):
        del members["state.bin"], data["state"]

    expected = go_on(llava.load_chat(saved)).text
    edit(saved, drop)
    with Llava(pair.text.path, pair.mmproj.path, n_ctx=256, n_threads=1) as other:
        assert go_on(other.load_chat(saved)).text == expected
        assert other.stats().images_encoded == 2


def test_only_this_conversation_is_saved(llava, picture, tmp_path):
    path = tmp_path / "talk.chat"
    chat = llava.chat()
    with chat.send("What is this?", picture, **GREEDY) as stream:
        stream.result()
    with llava.stream("What is this? My password is secret.", image=picture, **GREEDY) as stream:
        stream.result()
    chat.save(path)
    with zipfile.ZipFile(path) as file:
        content = json.loads(file.read("chat.json"))["state"]["content"]
    ids = [token for segment in content if isinstance(segment, dict) for token in segment["ids"]]
    assert "secret" not in llava.model.detokenize(ids)


def test_images_of_every_kind_are_kept(llava, picture, tmp_path):
    png = io.BytesIO()
    Image.new("RGB", (9, 5), "red").save(png, "PNG")
    file = tmp_path / "blue.png"
    Image.new("RGB", (6, 6), "blue").save(file)
    rows = llava.encoder.encode(picture)
    url = "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
    images = [picture, png.getvalue(), url, file, np.zeros((4, 4, 3), np.uint8), rows]
    chat = llava.chat()
    with chat.send("Compare.", images, **GREEDY) as stream:
        stream.result()
    chat.save(tmp_path / "talk.chat")
    expected = go_on(chat).text
    file.unlink()
    assert go_on(llava.load_chat(tmp_path / "talk.chat")).text == expected


def test_an_isolated_model_saves_and_loads_what_was_evaluated(pair, picture, saved, llava, tmp_path):
    def isolated():
        return Llava(pair.text.path, pair.mmproj.path, n_ctx=256, n_threads=1, isolate=True)

    expected = go_on(llava.load_chat(saved)).text
    with isolated() as first:
        chat = first.load_chat(saved)
        chat.save(tmp_path / "again.chat")  # the state that was loaded: nothing was evaluated
        assert go_on(chat).text == expected
        assert first.stats().images_encoded == 0
    with isolated() as second:
        assert go_on(second.load_chat(tmp_path / "again.chat")).text == expected
        assert second.stats().images_encoded == 0
    with isolated() as third:
        begin(third, picture).save(tmp_path / "third.chat")
    with Llava(pair.text.path, pair.mmproj.path, n_ctx=256, n_threads=1) as other:
        assert go_on(other.load_chat(tmp_path / "third.chat")).text == expected
        assert other.stats().images_encoded == 0


def test_a_dead_childs_conversation_is_saved_without_its_state(pair, picture, llava, tmp_path):
    expected = go_on(begin(llava, picture)).text
    with Llava(pair.text.path, pair.mmproj.path, n_ctx=256, n_threads=1, isolate=True) as isolated:
        chat = begin(isolated, picture)
        os.kill(isolated.engine.pid, signal.SIGKILL)
        chat.save(tmp_path / "talk.chat")
    with zipfile.ZipFile(tmp_path / "talk.chat") as file:
        assert "state.bin" not in file.namelist()
    assert go_on(llava.load_chat(tmp_path / "talk.chat")).text == expected


def test_another_model_is_refused(saved, tiny_pair):
    other = tiny_pair(dtype="f16")
    with (
        Llava(other.text.path, other.mmproj.path, n_ctx=256, n_threads=1) as llava,
        pytest.raises(ChatFileError, match="with another model"),
    ):
        llava.load_chat(saved)


def test_a_damaged_state_is_not_used(llava, saved, pair, caplog):
    def damage(members, _data):
        state = bytearray(members["state.bin"])
        state[16:20] = (2**31 - 1).to_bytes(4, "little")  # the first position
        members["state.bin"] = bytes(state)

    expected = go_on(llava.load_chat(saved)).text
    edit(saved, damage)
    with Llava(pair.text.path, pair.mmproj.path, n_ctx=256, n_threads=1) as other:
        assert go_on(other.load_chat(saved)).text == expected
    assert "a saved state is not used" in caplog.text


def test_a_strangers_state_is_not_used(llava, saved, pair, caplog, monkeypatch, tmp_path):
    """Whose content could be another conversation's beginning, and whose keys and values anything."""
    expected = go_on(llava.load_chat(saved))
    assert expected.timings.cached_tokens
    for elsewhere in ("other", "file/in/the/way"):
        (tmp_path / "file").touch()
        monkeypatch.setenv("LLAVA_NATIVE_HOME", str(tmp_path / elsewhere))
        caplog.clear()
        with Llava(pair.text.path, pair.mmproj.path, n_ctx=256, n_threads=1) as other:
            found = go_on(other.load_chat(saved))
            assert (found.text, found.timings.cached_tokens) == (expected.text, 0)
        assert "not saved by this user" in caplog.text


def test_a_state_is_bound_to_what_it_is_of(llava, saved, pair, caplog):
    def change(_members, data):
        data["state"]["content"][0]["ids"][1] += 1

    edit(saved, change)
    with Llava(pair.text.path, pair.mmproj.path, n_ctx=256, n_threads=1) as other:
        assert go_on(other.load_chat(saved)).timings.cached_tokens == 0
    assert "not saved by this user" in caplog.text


@pytest.mark.usefixtures("saved")
def test_the_secret_is_the_users_alone(home):
    assert (home / "chat.key").stat().st_mode & 0o777 == 0o600


def test_an_old_picture_is_saved(llava, picture, tmp_path):
    path = tmp_path / "old.png"
    picture.save(path)
    os.utime(path, (0, 0))  # before 1980, which a zip cannot say
    chat = llava.chat()
    chat.send("What?", path, **GREEDY).result()
    chat.save(tmp_path / "old.chat")
    assert llava.load_chat(tmp_path / "old.chat").messages


@pytest.mark.parametrize(
    "change",
    [
        lambda _, data: data.update(format="llava_native chat 99"),
        lambda _, data: data.update(messages=[{"role": 1}]),
        lambda _, data: data["messages"][1].update(content=[7]),
        lambda _, data: data["messages"][1].update(content=[-1]),
        lambda _, data: data.update(images=[{"kind": "rows", "shape": [10**9, 1], "fingerprint": ""}]),
        lambda members, _: members.pop("image-0"),
        lambda _, data: data.pop("model"),
    ],
)
def test_what_is_damaged_is_refused(llava, saved, change):
    edit(saved, change)
    with pytest.raises(ChatFileError):
        llava.load_chat(saved)


def test_what_is_no_conversation_is_refused(llava, tmp_path, saved):
    path = tmp_path / "x.chat"
    for content in (b"", b"hello", saved.read_bytes()[:-30], saved.read_bytes()[30:]):
        path.write_bytes(content)
        with pytest.raises(ChatFileError):
            llava.load_chat(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("chat.json", b" " * 10**6)
    with pytest.raises(ChatFileError, match="compressed"):
        llava.load_chat(path)
    with pytest.raises(FileNotFoundError):
        llava.load_chat(tmp_path / "none.chat")


# -- the state itself


@pytest.fixture
def contexts(pair):
    with Model(pair.text.path) as model:
        made = [Context(model, n_ctx=64, n_seq_max=2, n_threads=1) for _ in range(2)]
        yield made
        for context in made:
            context.close()


def test_a_state_gives_another_context_the_same_logits(contexts):
    one, other = contexts
    one.eval([1, 2, 3, 4, 5], seq=1)
    set_state(other, get_state(one, 1), 5)
    assert other.n_past() == 5
    one.eval([6], seq=1)
    other.eval([6])
    np.testing.assert_array_equal(np.asarray(one.logits), np.asarray(other.logits))


def test_every_cut_of_a_state_is_refused(contexts):
    one, other = contexts
    one.eval([1, 2, 3], seq=0)
    state = get_state(one)
    for n in (0, 1, 15, 16, 40, 52, len(state) // 2, len(state) - 1):
        with pytest.raises(InvalidInputError):
            set_state(other, state[:n], 3)
        assert other.n_past() == 0
    with pytest.raises(InvalidInputError):
        set_state(other, state + b"x", 3)
    with pytest.raises(InvalidInputError, match="not the state of 2 tokens"):
        set_state(other, state, 2)
    set_state(other, state, 3)
    with pytest.raises(InvalidInputError, match="holds 3 tokens"):
        set_state(other, state, 3)


def test_every_changed_byte_of_a_states_head_is_refused_or_harmless(contexts):
    one, other = contexts
    one.eval([1, 2, 3], seq=0)
    state = get_state(one)
    for at in range(16 + 3 * 12 + 40):
        changed = bytearray(state)
        changed[at] ^= 0xFF
        with contextlib.suppress(InvalidInputError):
            set_state(other, bytes(changed), 3)
        other.truncate_sequence(0, 0)
    other.eval([1, 2, 3])
    one.clear()
    one.eval([1, 2, 3])
    np.testing.assert_array_equal(np.asarray(one.logits), np.asarray(other.logits))


def test_an_empty_sequence_has_no_state(contexts):
    with pytest.raises(InvalidInputError, match="empty"):
        get_state(contexts[0], 1)
    with pytest.raises(InvalidInputError):
        get_state(contexts[0], 2)


def test_parts_that_are_larger_than_the_whole_are_refused(llava, saved):
    """Members of a zip may share their bytes: a small file that is many times its size in memory."""
    with zipfile.ZipFile(saved, "a") as file:
        big = file.getinfo("state.bin")
        file.filelist += [copy.copy(big) for _ in range(50)]
        file._didModify = True
    assert saved.stat().st_size < 2 * big.file_size
    with pytest.raises(ChatFileError, match="larger than the whole"):
        llava.load_chat(saved)
