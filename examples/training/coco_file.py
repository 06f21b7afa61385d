"""A COCO annotation file as JSON, and how its offending records are named."""

from __future__ import annotations

import contextlib
import gc
import json
import reprlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

LISTED = 10  # offenders in a message
SHOWN_CHARACTERS = 80  # of an offending value

_shown = reprlib.Repr()
_shown.maxlist = _shown.maxdict = 8
_shown.maxlevel = 4
_shown.maxstring = _shown.maxother = _shown.maxlong = SHOWN_CHARACTERS


def refuse(
    path: Path,
    required: str,
    offenders: Sequence[int],
    describe: Callable[[int], str],
    error: type[Exception] = ValueError,
) -> NoReturn:
    """Raise an error with the file, what it must hold, and the first offenders.

    Args:
        required: a sentence without its full stop.
        offenders: places that ``describe`` turns into words, one at least.
    """
    listed = "; ".join(describe(int(place)) for place in offenders[:LISTED])
    more = len(offenders) - LISTED
    raise error(f"{path}: {required}; {listed}" + (f"; and {more} more" if more > 0 else ""))


def shown(value: Any) -> str:
    """A value of any size or depth in a few words; None, for a missing key, is ``nothing``."""
    if value is None:
        return "nothing"
    text = _shown.repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def load_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read, is no JSON in UTF-8, is nested too deeply, is no
            object, or one of its objects has a key twice, of which JSON readers keep one.
    """
    try:
        # Some Windows programs begin with a byte order mark.
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} does not exist") from error
    except OSError as error:
        raise ValueError(f"{path} must be a readable file: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be JSON in UTF-8: {error.reason}") from error
    try:
        with _without_collection():
            content = json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        end = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated")
        hint = "; the file ends too early" if end else ""
        raise ValueError(f"{path} must be a COCO file in JSON: {error}{hint}") from error
    except RecursionError as error:
        raise ValueError(f"{path} must be a COCO file in JSON: it is nested too deeply") from error
    except ValueError as error:  # a repeated key, or a number of more digits than Python reads
        raise ValueError(f"{path} must be a COCO file in JSON: {error}") from error
    if type(content) is not dict:
        raise ValueError(
            f"{path} must be a COCO file in JSON, an object with images, categories and "
            f"annotations; got {type(content).__name__}"
        )
    return content


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """Without garbage collection: a parser makes no cycles, and the search for them takes twice the
    time of parsing a large file."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"an object has the key {shown(twice)} twice")
    return content
