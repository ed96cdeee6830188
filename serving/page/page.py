"""Answer `/` with the page, and `/page/classes/NAME` with the names of a model's classes.

The page's headers keep it from loading or sending anything but to its own server.
"""

import base64
import functools
import hashlib
import importlib.resources
import re
import urllib.parse
from typing import Any, NamedTuple

from serving.models.base_path import find_class_names
from serving.models.model import Models, Target

_PATH = "/"
_CLASSES = "/page/classes/"


def is_of_page(path: str) -> bool:
    """Return whether a path is the page's and not the API's."""
    return path == _PATH or path.startswith(_CLASSES)


def find_classes(models: Models, path: str) -> dict[str, Any]:
    """Return {"classes": names} of the newest version of the model in `path`, without names if they are not known.

    Raises RequestError (404) for a model that is not served.
    """
    with models.use(Target(urllib.parse.unquote(path.removeprefix(_CLASSES)))) as servable:
        return {"classes": find_class_names(servable.path)}


class Page(NamedTuple):
    """The bytes of the page and the headers of its answer."""

    content: bytes
    headers: dict[str, str]


@functools.cache
def read_page() -> Page:
    """Return the page; its Content-Security-Policy allows its own script and style, by their hashes, and no others."""
    content = (importlib.resources.files("serving.page") / "index.html").read_bytes()
    script, style = (_hash_of(tag, content) for tag in ("script", "style"))
    policy = (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src blob: data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return Page(
        content,
        {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"},
    )


def _hash_of(tag: str, content: bytes) -> str:
    match = re.search(rf"<{tag}>(.*?)</{tag}>".encode(), content, re.DOTALL)
    assert match is not None, f"the page has no <{tag}>"
    return f"'sha256-{base64.b64encode(hashlib.sha256(match[1]).digest()).decode()}'"
