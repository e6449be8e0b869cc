"""Named models: what ``create`` wrote down, and how to open it.

A name is a small JSON file in the user's data folder. It refers to the model's files where they lie, by
absolute path, size and time of change; they are never copied or changed. Every write is a new file that
then takes the old one's place, so that a name is there whole or not at all.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote, unquote

from llava_native.errors import InvalidInputError, ModelfileError, ModelNotFoundError, StoreError
from llava_native.gguf import GGUFHeader, read_header
from llava_native.modelfile import ANSWER_OPTIONS, LOAD_OPTIONS, Instruction, Modelfile, read_modelfile
from llava_native.pairs import read_pair
from llava_native.preflight import check_adapter
from llava_native.writing import replacing

__all__ = [
    "FileRef",
    "NamedModel",
    "copy",
    "create",
    "find",
    "home",
    "names",
    "normalise",
    "register",
    "remove",
]

VERSION: Final = 1
MAX_BYTES: Final = 16 << 20
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]*(?:/[a-z0-9][a-z0-9._-]*)?(?::[a-z0-9][a-z0-9._-]*)?")
_ENDING: Final = ".json"


@dataclasses.dataclass(frozen=True)
class FileRef:
    """A file of a model, and how it was when the name was made.

    Attributes
    ----------
    path : str
        Absolute.
    size, mtime_ns : int
    fingerprint : str
        `GGUFHeader.fingerprint`: tells a changed file from one that was only touched or moved back.
    """

    path: str
    size: int
    mtime_ns: int
    fingerprint: str

    @classmethod
    def of(cls, header: GGUFHeader) -> Self:
        """Describe the file that a header was read from."""
        path = Path(header.path).absolute()
        info = path.stat()
        return cls(os.fspath(path), info.st_size, info.st_mtime_ns, header.fingerprint())

    def check(self, name: str) -> None:
        """Raise StoreError where the file is gone or another."""
        again = f"create {name} again"
        try:
            info = Path(self.path).stat()
        except OSError as exc:
            raise StoreError(f"{self.path}, of the model {name}, is gone ({exc.strerror}); {again}") from exc
        if (info.st_size, info.st_mtime_ns) == (self.size, self.mtime_ns):
            return
        if info.st_size != self.size or read_header(self.path).fingerprint() != self.fingerprint:
            raise StoreError(f"{self.path}, of the model {name}, was changed; {again} if that is meant")


@dataclasses.dataclass(frozen=True)
class NamedModel:
    """A model by its name.

    Attributes
    ----------
    name : str
    model, mmproj : FileRef
        The text model, and its image encoder or None.
    adapters : tuple of FileRef
        LoRA adapters of the text model.
    chat_template : str or None
        As ``Llava(chat_template=…)`` takes it.
    system : str or None
    messages : list of (str, str)
        Roles and texts that every conversation begins with.
    load, answer : dict
        Options of ``Llava``, and of its answers.
    licenses : list of str
    created : str
        UTC, ISO 8601.
    """

    name: str
    model: FileRef
    mmproj: FileRef | None = None
    adapters: tuple[FileRef, ...] = ()
    chat_template: str | None = None
    system: str | None = None
    messages: tuple[tuple[str, str], ...] = ()
    load: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    answer: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    licenses: tuple[str, ...] = ()
    created: str = ""

    def arguments(self) -> dict[str, Any]:
        """Return what ``Llava(**…)`` takes, after a look at the files.

        Raises
        ------
        StoreError
            A file is gone or changed.
        """
        self.model.check(self.name)
        found: dict[str, Any] = {"model": self.model.path, **self.load}
        if self.mmproj is not None:
            self.mmproj.check(self.name)
            found["mmproj"] = self.mmproj.path
        for adapter in self.adapters:
            adapter.check(self.name)
            found.setdefault("lora", []).append(adapter.path)
        if self.chat_template is not None:
            found["chat_template"] = self.chat_template
        return found

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(file.size for file in (self.model, self.mmproj, *self.adapters) if file)


def home() -> Path:
    """Return the folder of the names: ``$LLAVA_NATIVE_HOME``, or one of the user's data folder."""
    named = os.environ.get("LLAVA_NATIVE_HOME")
    if named:
        try:
            return Path(named).expanduser().absolute()
        except RuntimeError as exc:  # ~somebody who does not exist
            raise StoreError(f"LLAVA_NATIVE_HOME={named}: {exc}") from exc
    import platformdirs

    return platformdirs.user_data_path("llava-native")


def _folder() -> Path:
    return home() / "models"


def normalise(name: str) -> str:
    """Return a name in the form it is kept under: small letters, without ``:latest``.

    Raises
    ------
    InvalidInputError
        It is no name: letters, digits, ``.``, ``_`` and ``-``; before it a ``user/``, after it a ``:tag``.
    """
    plain = name.lower().removesuffix(":latest") if isinstance(name, str) else ""
    if len(plain) > 128 or not _NAME.fullmatch(plain):
        raise InvalidInputError(
            f"{name!r} is no name for a model: use letters, digits, '.', '_' and '-', as in llava-phi3:int4"
        )
    return plain


def _path(name: str) -> Path:
    return _folder() / (quote(name, safe="") + _ENDING)


def create(name: str, modelfile: str | os.PathLike[str] | Modelfile) -> tuple[NamedModel, tuple[str, ...]]:
    """Give a name to what a Modelfile describes; an older model of that name is replaced.

    Parameters
    ----------
    name : str
    modelfile : path-like or Modelfile
        Its relative paths start where it lies. ``FROM`` may also be a name.

    Returns
    -------
    NamedModel
    tuple of str
        Warnings, each with a line of the Modelfile.

    Raises
    ------
    InvalidInputError
        It is no name.
    ModelfileError
        A line of the Modelfile makes no sense, or names no file.
    ModelFormatError, EmbeddingMismatchError, OSError
        As `read_pair`.

    Notes
    -----
    Nothing is written before everything was checked.
    """
    name = normalise(name)
    read = modelfile if isinstance(modelfile, Modelfile) else read_modelfile(modelfile)
    base, paths = _sources(read)
    load = {**(base.load if base else {}), **read.load}
    made = _made(
        name,
        paths,
        _adapters(read) or ([Path(a.path) for a in base.adapters] if base else []),
        chat_template=read.chat_template or (base.chat_template if base else None),
        system=read.system if read.system is not None else (base.system if base else None),
        messages=read.messages or (base.messages if base else ()),
        load=load,
        answer={**(base.answer if base else {}), **read.answer},
        licenses=read.licenses or (base.licenses if base else ()),
    )
    _write(made)
    return made, read.warnings


def register(
    name: str, model: str | os.PathLike[str], mmproj: str | os.PathLike[str] | None = None
) -> NamedModel:
    """Give a name to two files, without a Modelfile; raises as `create` does."""
    made = _made(normalise(name), [model] if mmproj is None else [model, mmproj], [])
    _write(made)
    return made


def _made(name: str, paths: list[Any], adapters: list[Path], **said: Any) -> NamedModel:
    pair = read_pair(paths)
    mmproj = FileRef.of(pair.mmproj) if pair.mmproj else None
    headers = [read_header(path) for path in adapters]
    for header in headers:
        check_adapter(header, pair.text)
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    refs = tuple(map(FileRef.of, headers))
    return NamedModel(name, FileRef.of(pair.text), mmproj, refs, created=created, **said)


def _where(read: Modelfile, line: Instruction) -> str:
    return f"{read.path}:{line.line}: {line.command} {line.value}"


def _beside(read: Modelfile, line: Instruction) -> Path:
    """Return the path that a line of a Modelfile means."""
    try:
        path = Path(read.path).parent / Path(line.value).expanduser()
        path.exists()
    except (OSError, RuntimeError) as exc:  # too long, or ~somebody who does not exist
        raise ModelfileError(f"{_where(read, line)}: {getattr(exc, 'strerror', exc)}") from exc
    return path


def _adapters(read: Modelfile) -> list[Path]:
    """Return the files of the ADAPTER lines."""
    paths = []
    for line in read.adapters:
        path = _beside(read, line)
        if not path.is_file():
            raise ModelfileError(f"{_where(read, line)}: there is no such GGUF file")
        paths.append(path)
    return paths


def _sources(read: Modelfile) -> tuple[NamedModel | None, list[Path]]:
    """Return the named model that a Modelfile builds on, if it does, and its files."""
    base: NamedModel | None = None
    paths: list[Path] = []
    for source in read.sources:
        path, where = _beside(read, source), _where(read, source)
        if path.is_dir():
            raise ModelfileError(f"{where}: is a folder; name a GGUF file")
        if path.exists():
            paths.append(path)
            continue
        try:
            base = find(source.value)
        except (InvalidInputError, ModelNotFoundError):
            raise ModelfileError(f"{where}: there is no such file, nor a model of that name") from None
        paths += [Path(base.model.path)] + ([Path(base.mmproj.path)] if base.mmproj else [])
    return base, paths


def find(name: str) -> NamedModel:
    """Return a model by its name.

    Raises
    ------
    ModelNotFoundError
        There is none.
    StoreError
        Its file is damaged, or a link.
    """
    name = normalise(name)
    path = _path(name)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        known = ", ".join(names()) or "none yet"
        raise ModelNotFoundError(f"there is no model {name}; created are: {known}") from None
    except OSError as exc:
        raise StoreError(f"{path} cannot be read: {exc.strerror}") from exc
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise StoreError(f"{path} is not a regular file")
        data = file.read(MAX_BYTES)
    try:
        made = _from_json(json.loads(data))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as exc:
        raise StoreError(f"{path} is damaged ({exc}); remove {name} and create it again") from exc
    if made.name != name:
        raise StoreError(f"{path} describes {made.name}, not {name}")
    return made


def names() -> list[str]:
    """Return the names that there are, sorted."""
    try:
        found = [entry for entry in os.scandir(_folder()) if entry.is_file(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    plain = {unquote(entry.name.removesuffix(_ENDING)): entry.name for entry in found}
    return sorted(
        name for name, file in plain.items() if _NAME.fullmatch(name) and _path(normalise(name)).name == file
    )


def copy(name: str, new: str) -> NamedModel:
    """Give a model a second name, in the place of whatever had it."""
    made = dataclasses.replace(find(name), name=normalise(new))
    _write(made)
    return made


def remove(name: str) -> None:
    """Forget a name; the model's files stay.

    Raises
    ------
    ModelNotFoundError
        There is none.
    """
    name = normalise(name)
    try:
        _path(name).unlink()
    except FileNotFoundError:
        raise ModelNotFoundError(f"there is no model {name}") from None


def _write(made: NamedModel) -> None:
    """Write a manifest, in the place of an older one."""
    path = _path(made.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"version": VERSION, **dataclasses.asdict(made)}, indent=1)
    with replacing(path) as file:
        file.write(content.encode() + b"\n")


def _ref(found: Mapping[str, Any]) -> FileRef:
    ref = FileRef(**found)
    for field, kind in (("path", str), ("size", int), ("mtime_ns", int), ("fingerprint", str)):
        if type(getattr(ref, field)) is not kind:
            raise TypeError(f"{field} of a file is not understood")
    return ref


def _from_json(found: Mapping[str, Any]) -> NamedModel:
    if found["version"] != VERSION:
        raise ValueError(f"version {found['version']!r}; this package reads {VERSION}")
    refs: dict[str, Any] = {key: found[key] and _ref(found[key]) for key in ("model", "mmproj")}
    fields = {field.name for field in dataclasses.fields(NamedModel)}
    said = {key: value for key, value in found.items() if key in fields and key not in refs}
    said["adapters"] = tuple(map(_ref, said.get("adapters", ())))
    for key in ("name", "created", "system", "chat_template"):
        if not isinstance(said[key], str) and not (said[key] is None and key in ("system", "chat_template")):
            raise TypeError(f"{key} is no text")
    for key, options in (("load", LOAD_OPTIONS), ("answer", ANSWER_OPTIONS)):
        if not isinstance(said[key], dict) or not set(said[key]) <= options:
            raise TypeError(f"{key} is not understood")
    if not all(
        type(value) is int or (key, value) == ("n_threads", None) for key, value in said["load"].items()
    ):
        raise TypeError("load is not understood")
    said["messages"] = tuple((str(role), str(text)) for role, text in said["messages"])
    said["licenses"] = tuple(map(str, said["licenses"]))
    if not isinstance(refs["model"], FileRef):
        raise TypeError("it names no model")
    return NamedModel(**refs, **said)
