"""A viewer on a free loopback port, in a thread of the test, and a client that asks it as the page does."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from headwater.viewer.app import Viewer, make_app
from headwater.viewer.opened import Opened, Place
from headwater.viewer.serving import bind, prepare_state

SYDNEY = {"prompt": "The capital of Australia is", "output": " Sydney.", "corrected": " Canberra."}


class Live:
    """A running viewer.

    Attributes:
        page: a client with the page's token.
    """

    def __init__(self, viewer: Viewer, url: str) -> None:
        self.viewer, self.url = viewer, url
        self.page = httpx.Client(base_url=url, timeout=60)
        found = re.search(r'name="headwater-token" content="([^"]+)"', self.page.get("/").text)
        assert found is not None
        self.page.headers["X-Headwater-Token"] = found.group(1)

    def get(self, path: str, **parameters: Any) -> Any:
        found = self.page.get(path, params=parameters)
        assert found.status_code == 200, found.text
        return found.json()

    def post(self, path: str, **body: Any) -> Any:
        found = self.page.post(path, json=body)
        assert found.status_code in (200, 202), found.text
        return found.json()

    def finished(self, job: dict[str, Any], seconds: float = 120) -> dict[str, Any]:
        """The job once it has ended."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            found: dict[str, Any] = self.get(f"/api/jobs/{job['id']}")
            if found["state"] not in ("queued", "running"):
                return found
            time.sleep(0.05)
        raise AssertionError(f"not finished in {seconds} s: {found}")

    def asked(self, *queries: dict[str, Any], **more: Any) -> str:
        """The id of an answer that is done."""
        found = self.post("/api/answers", queries=list(queries), **more)
        if found["job"]:
            job = self.finished(found["job"])
            assert job["state"] == "done", job
        return str(found["answer"])

    def view(self, answer: str, **parameters: Any) -> Any:
        return self.get(f"/api/answers/{answer}/view", **parameters)

    @contextmanager
    def events(self) -> Iterator[Iterator[tuple[str, Any]]]:
        """A stream of (event, data)."""
        with httpx.stream("GET", f"{self.url}/api/events", timeout=60) as stream:
            yield _events(stream.iter_lines())


def _events(lines: Iterator[str]) -> Iterator[tuple[str, Any]]:
    event = ""
    for line in lines:
        if line.startswith("event: "):
            event = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield event, json.loads(line.removeprefix("data: "))


@contextmanager
def live(folder: Path | str, **options: Any) -> Iterator[Live]:
    """A viewer of a folder, ended afterwards."""
    opened = Opened.open(Place(folder=str(folder), **options))
    prepare_state(opened)
    viewer = Viewer(opened, "token-of-this-start")
    with bind("127.0.0.1", 0) as bound:
        config = uvicorn.Config(
            make_app(viewer),
            log_level="error",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=1,
            ws="none",
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        one = Live(viewer, f"http://127.0.0.1:{bound.getsockname()[1]}")
        try:
            yield one
        finally:
            one.page.close()
            viewer.jobs.close()
            server.should_exit = True
            thread.join(30)
