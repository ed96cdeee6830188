"""The page at `/`: what it is allowed to load and send, and the names of the classes that it shows."""

import base64
import hashlib
import re

import httpx
from brightness_export import CLASS_NAMES


def test_the_page_runs_its_own_script_and_asks_its_own_server_alone(http: httpx.Client) -> None:
    answer = http.get("/")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert (policy["default-src"], policy["connect-src"]) == ("'none'", "'self'")
    for tag in ("script", "style"):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
        assert policy[f"{tag}-src"] == f"'sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'"
    assert re.findall(r"""(?:https?:)?//[\w.-]+\.\w|\bon\w+=|<script [^>]*src""", answer.text) == []
    head = http.head("/")
    assert (head.status_code, head.content, head.headers["content-length"]) == (
        200,
        b"",
        answer.headers["content-length"],
    )


def test_the_classes_of_an_export_are_named_and_those_of_a_plain_model_are_not(
    http: httpx.Client, half_plus_two: httpx.Client
) -> None:
    assert http.get("/page/classes/brightness").json() == {"classes": CLASS_NAMES}
    assert half_plus_two.get("/page/classes/half_plus_two").json() == {"classes": []}
    assert http.get("/page/classes/nope").status_code == 404
    assert http.get("/page/classes/..%2f..%2fetc").status_code == 404
    assert http.post("/").status_code == 404
