"""Models from the Hugging Face hub, through ``huggingface_hub``: its cache, token and offline mode apply."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Literal, NamedTuple

from llava_native.errors import DownloadError, InvalidInputError
from llava_native.pairs import read_pair

__all__ = ["Downloaded", "download", "opening"]

_PREFERRED: Final = ("int4", "q4_k_m")  # as Ollama and llama.cpp choose
_OPTIONS: Final = ("quant", "revision", "token", "cache_dir", "offline")  # of download
_PART: Final = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


class Downloaded(NamedTuple):
    """Files of a model in the cache; `mmproj` is None where the model has none."""

    model: Path
    mmproj: Path | None


def download(
    repo: str,
    filename: str | None = None,
    mmproj: str | Literal[False] | None = None,
    *,
    quant: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    offline: bool = False,
) -> Downloaded:
    """Fetch a text model and its mmproj, or find them in the cache.

    Parameters
    ----------
    repo : str
        As "xtuner/llava-phi-3-mini-gguf".
    filename : str, optional
        The text model's file, or a pattern such as "*int4.gguf". Default: the only one, or the one of
        four bits.
    mmproj : str or False, optional
        The encoder's file, or a pattern. Default: the one of the repository with "mmproj" in its name;
        of several, the one in F16. False: none.
    quant : str, optional
        Instead of `filename`, a part of its name between separators: "int4", "f16", "Q4_K_M".
    revision, token, cache_dir
        As ``huggingface_hub.hf_hub_download`` takes them.
    offline : bool, default False
        Ask nobody; the cache must have the files. ``HF_HUB_OFFLINE=1`` does the same.

    Returns
    -------
    Downloaded
        Paths in the cache, of whole files that belong together.

    Raises
    ------
    DownloadError
        The hub cannot be reached, does not know the repository, refuses it, or the cache lacks a file.
    InvalidInputError
        No file of the repository, or more than one, is what was asked for; the files are listed.
    ImportError
        ``huggingface_hub`` is not installed: ``pip install "llava-native[hub]"``.
    ModelFormatError, EmbeddingMismatchError
        What came is no model; see ``pairs.read_pair``.
    """
    hub = _import_hub()
    offline = offline or bool(hub.constants.HF_HUB_OFFLINE)
    common: dict[str, Any] = {"repo_id": repo, "revision": revision, "token": token, "cache_dir": cache_dir}
    with _reported(hub, repo, offline):
        files = (
            _cached_files(hub, repo, revision, cache_dir)
            if offline
            else hub.HfApi(token=token).list_repo_files(repo, revision=revision)
        )
        wanted = _choose(repo, files, filename, quant)
        encoder = None if mmproj is False else _choose_mmproj(repo, files, mmproj, wanted)
        paths = {
            name: Path(hub.hf_hub_download(filename=name, local_files_only=offline, **common))
            for name in [*_parts(wanted), *([encoder] if encoder else [])]
        }
    found = Downloaded(paths[wanted], paths[encoder] if encoder else None)
    read_pair([path for path in found if path is not None])  # a file that was cut short shows here
    return found


def opening(
    repo: str, filename: str | None, mmproj: str | Literal[False] | None, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what ``Llava(**…)`` takes for a model of the hub; `options` are those of both."""
    others = {name: value for name, value in options.items() if name not in _OPTIONS}
    wanted = {name: value for name, value in options.items() if name in _OPTIONS}
    found = download(repo, filename, mmproj, **wanted)
    return {"model": found.model, "mmproj": found.mmproj, **others}


def _import_hub() -> ModuleType:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.partition(".")[0] != "huggingface_hub":
            raise
        raise ImportError(
            'downloads need huggingface_hub, which is not installed: pip install "llava-native[hub]"'
        ) from exc
    return huggingface_hub


def _cached_files(
    hub: ModuleType, repo: str, revision: str | None, cache_dir: str | os.PathLike[str] | None
) -> list[str]:
    """Return the files of a repository that are in the cache."""
    try:
        repos = hub.scan_cache_dir(cache_dir).repos
    except hub.errors.CacheNotFound:
        repos = frozenset()
    for cached in repos:
        if (cached.repo_type, cached.repo_id) != ("model", repo):
            continue
        for known in cached.revisions:
            if (revision or "main") in (*known.refs, known.commit_hash):
                folder = known.snapshot_path
                return [file.file_path.relative_to(folder).as_posix() for file in known.files]
    raise DownloadError(f"the cache has nothing of {repo}, and this is offline")


def _choose(repo: str, files: Sequence[str], filename: str | None, quant: str | None) -> str:
    """Return the text model that is meant."""
    if filename is not None and quant is not None:
        raise InvalidInputError("give filename or quant, not both")
    texts = [name for name in _ggufs(files) if "mmproj" not in name.lower() and _is_first(name)]
    if filename is not None:
        found = _matching(texts, filename) or _matching(_ggufs(files), filename)
        what = repr(filename)
    elif quant is not None:
        found, what = [name for name in texts if _has_quant(name, quant)], f"a model of {quant}"
    else:
        found, what = texts, "a text model (GGUF)"
        for kind in _PREFERRED if len(texts) > 1 else ():
            found = [name for name in texts if _has_quant(name, kind)] or found
            if found != texts:
                break
    return _only(repo, found, what, texts, "filename or quant")


def _choose_mmproj(repo: str, files: Sequence[str], mmproj: str | None, wanted: str) -> str | None:
    encoders = [name for name in _ggufs(files) if "mmproj" in name.lower() and name != wanted]
    if mmproj is not None:
        return _only(repo, _matching(_ggufs(files), mmproj), repr(mmproj), encoders, "mmproj")
    if len(encoders) > 1:
        folder = wanted.rpartition("/")[0]
        encoders = [name for name in encoders if name.rpartition("/")[0] == folder] or encoders
    if len(encoders) > 1:
        encoders = [name for name in encoders if _has_quant(name, "f16")] or encoders
    return _only(repo, encoders, "an mmproj", encoders, "mmproj") if encoders else None


def _only(repo: str, found: Sequence[str], what: str, candidates: Sequence[str], option: str) -> str:
    if len(found) == 1:
        return found[0]
    listed = ", ".join(found or candidates) or "no GGUF file"
    if not found:
        raise InvalidInputError(f"{repo} has not {what}; it has {listed}")
    raise InvalidInputError(f"{repo} has more than one that is {what}: {listed}; choose one with {option}")


def _ggufs(files: Sequence[str]) -> list[str]:
    return sorted(name for name in files if name.lower().endswith(".gguf"))


def _matching(files: Sequence[str], pattern: str) -> list[str]:
    if pattern in files:
        return [pattern]
    return [name for name in files if _is_first(name) and fnmatch.fnmatchcase(name, pattern)]


def _has_quant(name: str, quant: str) -> bool:
    pattern = rf"(?<![a-z0-9]){re.escape(quant.lower())}(?![a-z0-9]|_[a-z0-9])"
    return re.search(pattern, name.lower()) is not None


def _is_first(name: str) -> bool:
    part = _PART.search(name)
    return part is None or int(part[1]) == 1 <= int(part[2])


def _parts(wanted: str) -> list[str]:
    """Return all files of a split model."""
    part = _PART.search(wanted)
    if part is None:
        return [wanted]
    stem = wanted[: part.start()]
    return [f"{stem}-{n:05}-of-{part[2]}.gguf" for n in range(1, int(part[2]) + 1)]


@contextlib.contextmanager
def _reported(hub: ModuleType, repo: str, offline: bool) -> Iterator[None]:
    """Turn what huggingface_hub raises into DownloadError."""
    errors = hub.errors
    try:
        yield
    except errors.GatedRepoError as exc:
        raise DownloadError(f"{repo} wants an agreement on its page, and a token (HF_TOKEN)") from exc
    except errors.RepositoryNotFoundError as exc:
        what = f"the hub knows no {repo}, or it is private and wants a token (HF_TOKEN)"
        raise DownloadError(what) from exc
    except errors.RevisionNotFoundError as exc:
        raise DownloadError(f"{repo} has no such revision") from exc
    except errors.LocalEntryNotFoundError as exc:
        why = "this is offline" if offline else f"the hub cannot be reached ({exc.__cause__ or exc})"
        raise DownloadError(f"the cache lacks a file of {repo}, and {why}") from exc
    except errors.HFValidationError as exc:
        raise InvalidInputError(f"{repo!r} is not the name of a repository: {exc}") from exc
    except errors.HfHubHTTPError as exc:
        raise DownloadError(f"{repo} cannot be fetched: {exc}") from exc
    except (DownloadError, InvalidInputError):
        raise
    except (OSError, ValueError) as exc:  # some of its network errors are; ValueError: a name of a file
        raise DownloadError(f"{repo} cannot be fetched: {exc}") from exc
    except Exception as exc:
        if not type(exc).__module__.startswith(
            ("huggingface_hub", "httpx", "httpcore", "requests", "urllib3")
        ):
            raise
        raise DownloadError(f"{repo} cannot be fetched: {exc or type(exc).__name__}") from exc
