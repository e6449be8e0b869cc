"""The conversation of ``chat`` and ``run``: lines in, answers out, commands that begin with a slash."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_native.cli.inline import split_images
from llava_native.cli.options import check_images, check_text, complain, report, write
from llava_native.errors import InvalidInputError, LlavaError
from llava_native.urls import is_data_url, is_web_url

if TYPE_CHECKING:
    from llava_native.llava import Llava

__all__ = ["Conversation", "question"]

DEFAULT_QUESTION = "Describe this image."
_HELP = """\
  /image PATH    show the model an image with the next question; a name in the question does the same
  /system TEXT   begin again, with these instructions to the model
  /clear         begin again
  /save FILE     write the conversation to a file
  /load FILE     go on with a conversation that was written
  /exit          leave; /quit, /bye and Ctrl-D do the same
  \"\"\"            a question of several lines begins and ends with this
Ctrl-C stops an answer."""
_COMMAND = re.compile(r"/[a-z?]+(?=\s|$)")
_QUOTES = '"""'


def question(text: str, *, only_words: bool = False, urls: bool = False) -> tuple[str, list[str]]:
    """Split what a user wrote into words and images.

    Parameters
    ----------
    text : str
    only_words : bool
        Look for no images.
    urls : bool
        Whether images may be fetched from the web.

    Returns
    -------
    str
        The words; where there are images only, a request to describe them.
    list of str
        Paths and URLs.
    """
    words, names = (text, []) if only_words else split_images(text)
    check_images(names, urls)
    check_text(words)
    return words or (DEFAULT_QUESTION if names else ""), names


class Conversation:
    """Reads questions until the input ends.

    Parameters
    ----------
    llava : Llava
    system : str, optional
    history : sequence of (str, str)
        Roles and texts that it begins with.
    options : dict
        Of every answer.
    images : sequence
        What the first question is about.
    only_words, urls : bool
        As `question` takes them.
    timings : bool
        Report on stderr how long each answer took.
    """

    def __init__(
        self,
        llava: Llava,
        *,
        system: str | None = None,
        history: Sequence[tuple[str, str]] = (),
        options: dict[str, Any] | None = None,
        images: Sequence[Any] = (),
        only_words: bool = False,
        urls: bool = False,
        timings: bool = False,
    ) -> None:
        self._llava = llava
        self._system = system
        self._history = history
        self._options = options or {}
        self._images = list(images)
        self._only_words = only_words
        self._urls = urls
        self._timings = timings
        self._typed = sys.stdin is not None and sys.stdin.isatty()
        self._failures = 0
        self._begin()

    def _begin(self) -> None:
        self._chat = begin_chat(self._llava, self._system, self._history)

    def run(self) -> int:
        """Answer until the input ends; return the exit status."""
        if self._typed:
            print("Ask about an image: /image PATH, or name it in the question. /help", file=sys.stderr)
        with _editing(self._typed):
            for line in self._lines():
                try:
                    if not self._take(line):
                        break
                except (LlavaError, OSError, ValueError, RuntimeError) as exc:  # bad paths are of all kinds
                    if isinstance(exc, BrokenPipeError):
                        raise
                    complain(exc)
                    self._failures += 1
        return 1 if self._failures and not self._typed else 0

    def _lines(self) -> Iterator[str]:
        """Give the questions; one of several lines begins and ends with three quotes."""
        while (line := self._read(">>> ")) is not None:
            text = line.strip()
            if text.startswith(_QUOTES):
                text = text[len(_QUOTES) :]
                while _QUOTES not in text:
                    more = self._read("... ")
                    if more is None:
                        break
                    text += "\n" + more
                text = text.partition(_QUOTES)[0].strip()
            if text:
                yield text

    def _read(self, prompt: str) -> str | None:
        """Return a line, None at the end."""
        if self._typed and sys.stdout.isatty():  # with editing and history
            try:
                return input(prompt)
            except EOFError:
                print(file=sys.stderr)
                return None
        if self._typed:
            print(prompt, end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline() if sys.stdin is not None else ""
        return line.rstrip("\n") if line else None

    def _take(self, text: str) -> bool:
        """Answer a question or do a command; return whether to go on."""
        command = _COMMAND.match(text)
        if command is None or Path(text.split()[0]).exists():
            self._answer(text)
            return True
        rest = text[command.end() :].strip()
        match command.group():
            case "/exit" | "/quit" | "/bye":
                return False
            case "/clear":
                self._images.clear()
                self._begin()
            case "/system":
                self._system = rest or None
                self._begin()
            case "/image":
                self._add_image(rest)
            case "/save":
                self._chat.save(_file(rest))
            case "/load":
                self._images.clear()
                self._chat = self._llava.load_chat(_file(rest))
            case "/help" | "/?":
                print(_HELP, file=sys.stderr)
            case other:
                raise InvalidInputError(f"there is no command {other}; /help shows those that there are")
        return True

    def _add_image(self, rest: str) -> None:
        from llava_native.images import open_image

        name = rest.strip("'\"")
        if not name:
            raise InvalidInputError("/image needs a path")
        check_images([name], self._urls)
        if is_web_url(name) or is_data_url(name):
            self._images.append(name)
            return
        path = Path(name).expanduser()
        open_image(path)  # refuses what is none now, not with the next question
        self._images.append(path)

    def _answer(self, text: str) -> None:
        words, images = question(text, only_words=self._only_words, urls=self._urls)
        shown: list[Any] = [*self._images, *images]
        self._images = []
        with self._chat.send(words, image=shown or None, **self._options) as stream:
            try:
                write(stream)
            except KeyboardInterrupt:
                if not self._typed:
                    raise
                print("\n(stopped)", file=sys.stderr)
        if self._timings:
            report(stream)


def _file(rest: str) -> Path:
    if not rest:
        raise InvalidInputError("/save and /load need a file's name")
    return Path(rest.strip("'\"")).expanduser()


def begin_chat(llava: Llava, system: str | None, history: Sequence[tuple[str, str]]) -> Any:
    """Return a chat that begins with these messages."""
    return llava.chat(system=system, messages=[{"role": r, "content": t} for r, t in history])


@contextlib.contextmanager
def _editing(typed: bool) -> Iterator[None]:
    """Edit lines and remember them, where somebody types."""
    if not typed:
        yield
        return
    try:
        import readline
    except ImportError:
        yield
        return
    from llava_native.store import home

    path = home() / "history"
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            readline.set_history_length(1000)
            readline.write_history_file(path)
            path.chmod(0o600)
