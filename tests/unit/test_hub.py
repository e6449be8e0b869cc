"""Downloads: which files are chosen, and a whole download from a server that speaks the hub's API."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import damage
from support.hub_server import hub as running_hub
from support.tiny_models import write_mmproj

from llava_native import hub
from llava_native.errors import DownloadError, EmbeddingMismatchError, InvalidInputError, ModelFormatError

REPO = "xtuner/llava-phi-3-mini-gguf"
STEM = "llava-phi-3-mini"
CARD = [
    ".gitattributes", "OLLAMA_MODELFILE_F16", "OLLAMA_MODELFILE_INT4", "README.md", f"{STEM}-f16.gguf",
    f"{STEM}-int4.gguf", f"{STEM}-mmproj-f16.gguf",
]  # fmt: skip
COMMAND = [sys.executable, "-m", "llava_native"]


# -- which files


def choose(files, filename=None, quant=None, mmproj=None):
    wanted = hub._choose("r", files, filename, quant)
    return wanted, hub._choose_mmproj("r", files, mmproj, wanted)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, "int4"), ({"quant": "int4"}, "int4"), ({"quant": "F16"}, "f16"),
        ({"filename": f"{STEM}-f16.gguf"}, "f16"), ({"filename": "*int4.gguf"}, "int4"),
    ],
)  # fmt: skip
def test_of_the_seeds_repository(options, wanted):
    assert choose(CARD, **options) == (f"{STEM}-{wanted}.gguf", f"{STEM}-mmproj-f16.gguf")


@pytest.mark.parametrize(
    ("files", "options", "expected"),
    [
        (["a.gguf"], {}, ("a.gguf", None)),
        (["a.gguf", "mmproj.gguf"], {}, ("a.gguf", "mmproj.gguf")),
        (["m-Q4_K_S.gguf", "m-Q4_K_M.gguf"], {}, ("m-Q4_K_M.gguf", None)),
        (["m-Q4_K_M.gguf", "m-Q4_K.gguf"], {"quant": "q4_k"}, ("m-Q4_K.gguf", None)),
        (["m.gguf", "mmproj-f32.gguf", "mmproj-F16.gguf"], {}, ("m.gguf", "mmproj-F16.gguf")),
        (["m.gguf", "mmproj-f32.gguf", "mmproj-f16.gguf"], {"mmproj": "*f32*"},
         ("m.gguf", "mmproj-f32.gguf")),
        (["a/m.gguf", "b/n.gguf", "a/mmproj.gguf", "b/mmproj.gguf"], {"filename": "b/n.gguf"},
         ("b/n.gguf", "b/mmproj.gguf")),
        (["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"], {}, ("m-00001-of-00002.gguf", None)),
        (["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"], {"filename": "m-*"},
         ("m-00001-of-00002.gguf", None)),
    ],
)  # fmt: skip
def test_of_other_repositories(files, options, expected):
    assert choose(files, **options) == expected


@pytest.mark.parametrize(
    ("files", "options", "says"),
    [
        (CARD, {"filename": "*.gguf"}, "more than one that is .*choose one with filename or quant"),
        (CARD, {"filename": "nowhere.gguf"}, "has not 'nowhere.gguf'; it has .*int4"),
        (CARD, {"quant": "q8_0"}, "has not a model of q8_0; it has .*f16.gguf, .*int4.gguf"),
        (CARD, {"quant": "int4", "filename": "x"}, "not both"),
        (["README.md"], {}, "it has no GGUF file"),
        (["a.gguf", "b.gguf"], {}, "more than one that is a text model"),
        (["a.gguf", "mmproj-a.gguf", "mmproj-b.gguf"], {}, "choose one with mmproj"),
        (["a.gguf"], {"mmproj": "x*"}, "has not 'x\\*'"),
    ],
)
def test_what_is_not_clear_is_asked_back(files, options, says):
    with pytest.raises(InvalidInputError, match=says):
        choose(files, **options)


def test_all_parts_of_a_split_model():
    assert hub._parts("a/m-00001-of-00003.gguf") == [f"a/m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]


# -- a fake huggingface_hub


@pytest.fixture
def repo(tmp_path):
    folder = tmp_path / "repo"
    folder.mkdir()
    damage.good_text(folder / f"{STEM}-int4.gguf")
    (folder / f"{STEM}-f16.gguf").hardlink_to(folder / f"{STEM}-int4.gguf")
    damage.good_mmproj(folder / f"{STEM}-mmproj-f16.gguf")
    (folder / "README.md").write_text("card")
    return folder


@pytest.fixture
def fake(repo, monkeypatch):
    """Functions of huggingface_hub that read a folder; returns the calls."""
    import huggingface_hub

    calls = []

    def list_repo_files(self, repo_id, *, revision=None):
        calls.append(("list", repo_id, self.token, revision))
        return [path.name for path in repo.iterdir()]

    def hf_hub_download(filename, **options):
        calls.append((filename, options))
        return str(repo / filename)

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", list_repo_files)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    return calls


def test_download(fake, repo):
    found = hub.download(REPO, "*int4.gguf", token="t", revision="v1", cache_dir="/c")
    assert found == (repo / f"{STEM}-int4.gguf", repo / f"{STEM}-mmproj-f16.gguf")
    options = {"repo_id": REPO, "revision": "v1", "token": "t", "cache_dir": "/c", "local_files_only": False}
    assert fake == [("list", REPO, "t", "v1"), *((path.name, options) for path in found)]


def test_without_an_encoder(fake, repo):
    assert hub.download(REPO, mmproj=False) == (repo / f"{STEM}-int4.gguf", None)
    assert len(fake) == 2


def test_what_came_is_checked(fake, repo):
    write_mmproj(repo / f"{STEM}-mmproj-f16.gguf", n_embd_text=96)
    with pytest.raises(EmbeddingMismatchError, match="another model"):
        hub.download(REPO)
    path = repo / f"{STEM}-mmproj-f16.gguf"
    path.write_bytes(path.read_bytes()[:-64])
    with pytest.raises(ModelFormatError, match=r"cut short: .*64 missing"):
        hub.download(REPO)


@pytest.mark.parametrize("stage", ["list_repo_files", "hf_hub_download"])
@pytest.mark.parametrize("kind", ["ConnectionError", "httpx2.ConnectError", "LocalEntryNotFoundError"])
def test_a_hub_that_cannot_be_reached(fake, monkeypatch, stage, kind):
    import huggingface_hub.errors

    foreign = type("ConnectError", (Exception,), {"__module__": "httpx2._exceptions"})
    known = {"ConnectionError": ConnectionError, "httpx2.ConnectError": foreign}
    error = known.get(kind, huggingface_hub.errors.LocalEntryNotFoundError)

    def fail(*_, **__):
        raise error("nobody answers")

    owner = huggingface_hub.HfApi if stage == "list_repo_files" else huggingface_hub
    monkeypatch.setattr(owner, stage, fail)
    with pytest.raises(DownloadError, match=r"cannot be (fetched|reached).*nobody answers"):
        hub.download(REPO)


def test_errors_that_are_not_the_hubs_stay_what_they_are(fake, monkeypatch):
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        hub.download(REPO)


def test_without_huggingface_hub(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r'pip install "llava-native\[hub\]"'):
        hub.download(REPO)


# -- a server on loopback, in a process of its own: huggingface_hub reads its settings at import


@pytest.fixture
def server(repo):
    with running_hub() as running:
        running.repos[REPO] = repo
        yield running


@pytest.fixture
def pull(server, tmp_path):
    def start(*arguments, **settings):
        environment = {
            **os.environ, "HF_ENDPOINT": server.endpoint, "HF_HOME": str(tmp_path / "hf"),
            "LLAVA_NATIVE_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*",
            "HF_HUB_DISABLE_TELEMETRY": "1", **settings,
        }  # fmt: skip
        environment = {key: value for key, value in environment.items() if key != "HF_TOKEN" or settings}
        return subprocess.run(
            [*COMMAND, *map(str, arguments)],
            env=environment, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path,
        )  # fmt: skip

    return start


def test_pull_finds_the_pair_and_gives_it_a_name(pull, server, repo, tmp_path):
    done = pull("pull", REPO)
    assert done.returncode == 0, done.stderr
    paths = [Path(line) for line in done.stdout.splitlines()]
    assert [path.name for path in paths] == [f"{STEM}-int4.gguf", f"{STEM}-mmproj-f16.gguf"]
    assert all(path.read_bytes() == (repo / path.name).read_bytes() for path in paths)
    assert "llava-native run llava-phi-3-mini-int4" in done.stderr
    listed = pull("list")
    assert listed.stdout.startswith("llava-phi-3-mini-int4 ")
    assert str(paths[0]) in listed.stdout

    server.log.clear()
    offline = pull("pull", REPO, "--offline", "--name", "second")
    assert offline.stdout == done.stdout, offline.stderr
    assert pull("pull", REPO, HF_HUB_OFFLINE="1").stdout == done.stdout
    assert server.log == []
    missing = pull("pull", REPO, "--offline", "--quant", "f16")
    assert missing.returncode == 1
    assert "has not a model of f16" in missing.stderr
    assert [line.split()[0] for line in pull("list").stdout.splitlines()] == [
        "llava-phi-3-mini-int4",
        "second",
    ]


def test_a_name_stays_that_of_the_first_repository(pull, server, repo):
    first = pull("pull", REPO).stdout.splitlines()[0]
    server.repos["other/one"] = repo
    second = pull("pull", "other/one")
    assert second.returncode == 1
    assert f"is that of {first}: give another one with --name" in second.stderr
    assert first in pull("list").stdout
    assert pull("pull", "other/one", "--name", "second").returncode == 0


def test_a_connection_that_is_cut_goes_on_where_it_was(pull, server, repo):
    # larger than the pieces of 10 MiB that huggingface_hub writes
    write_mmproj(repo / f"{STEM}-mmproj-f16.gguf", n_embd=512, n_ff=2048, n_layer=4)
    server.cut[f"{STEM}-mmproj-f16.gguf"] = 11 << 20
    done = pull("pull", REPO)
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.splitlines()[1])
    assert path.read_bytes() == (repo / path.name).read_bytes()
    assert any(line.endswith(f"bytes={10 << 20}-") for line in server.log), server.log


def test_a_model_that_is_damaged_at_the_hub_gets_no_name(pull, server, repo):
    path = repo / f"{STEM}-mmproj-f16.gguf"
    path.write_bytes(path.read_bytes()[:-64])
    done = pull("pull", REPO)
    assert done.returncode == 1
    assert "cut short" in done.stderr
    assert done.stdout == ""
    assert pull("list").stdout == ""


def test_a_token_opens_a_private_repository(pull, server):
    server.private = REPO
    refused = pull("pull", REPO)
    assert refused.returncode == 1
    assert "private and wants a token (HF_TOKEN)" in refused.stderr
    assert pull("pull", REPO, "--token", "right").returncode == 0
    assert pull("pull", REPO, HF_TOKEN="right").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("pull", "nobody/nothing"), "knows no nobody/nothing"),
        (("pull", "not//a name"), "not the name of a repository"),
        (("pull", REPO, "nowhere.gguf"), "has not 'nowhere.gguf'; it has"),
        (("pull", REPO, "--revision", "v9"), "has no such revision"),
        (("pull", REPO, "--name", "../x"), "no name for a model"),
        (("pull", REPO, "--offline"), "this is offline"),
    ],
)
def test_failures_of_pull(pull, arguments, says):
    done = pull(*arguments)
    assert done.returncode == 1
    assert done.stdout == ""
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [(), ("r", "a", "b", "c"), ("r", "a", "b", "--mmproj", "c")])
def test_usage_of_pull(pull, arguments):
    done = pull("pull", *arguments)
    assert done.returncode == 2
    assert "Usage" in done.stderr


def test_the_errors_class():
    assert issubclass(DownloadError, OSError)


def test_what_llava_opens(fake, repo):
    wanted = {"model": repo / f"{STEM}-f16.gguf", "mmproj": repo / f"{STEM}-mmproj-f16.gguf", "n_ctx": 512}
    assert hub.opening(REPO, None, None, {"quant": "f16", "n_ctx": 512}) == wanted


def test_a_pattern_means_a_text_model_first():
    assert choose(CARD, filename="*f16.gguf") == (f"{STEM}-f16.gguf", f"{STEM}-mmproj-f16.gguf")


def test_a_part_of_nothing_is_no_model():
    with pytest.raises(InvalidInputError, match="has not a text model"):
        choose(["x-00001-of-00000.gguf"])


def test_a_name_that_leaves_the_cache_is_refused(fake, monkeypatch):
    import huggingface_hub

    def refuse(**_):
        raise ValueError("Invalid filename: '../x.gguf'")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(DownloadError, match="Invalid filename"):
        hub.download(REPO)
