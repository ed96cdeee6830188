"""Batches of a real SavedModel, over HTTP."""

import base64
import concurrent.futures
import random

import httpx
from brightness_export import CLASS_NAMES, jpeg


def test_simultaneous_requests_have_their_own_answers_and_errors(http: httpx.Client) -> None:
    chance = random.Random(17)
    requests = [[chance.choice([0, 128, 255, None]) for _ in range(chance.randint(1, 4))] for _ in range(60)]
    encoded = {
        level: base64.b64encode(b"no image" if level is None else jpeg(level)).decode() for level in (None, 0, 128, 255)
    }

    def ask(levels: list[int | None]) -> httpx.Response:
        # `unguarded` fails the whole batch for one bad image.
        body = {"signature_name": "unguarded", "instances": [{"b64": encoded[level]} for level in levels]}
        return http.post("/v1/models/brightness:predict", json=body)

    with concurrent.futures.ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(ask, requests))
    names = dict(zip((0, 128, 255), CLASS_NAMES, strict=True))
    for levels, answer in zip(requests, answers, strict=True):
        if None in levels:
            assert answer.status_code == 400
            assert "Unknown image file format" in answer.json()["error"]
        else:
            assert [row["label"] for row in answer.json()["predictions"]] == [
                names[level] for level in levels if level is not None
            ]
