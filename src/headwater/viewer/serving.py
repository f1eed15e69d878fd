"""The server from its socket to its end: one line for what cannot be, a quick and clean end on Ctrl-C."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import secrets
import socket
import threading
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from headwater import progress
from headwater.errors import UsageError
from headwater.run import LOCK
from headwater.viewer.opened import Opened, Place

PORT = 8642
CLOSING = 2
"""Seconds that open requests have at the end."""


@dataclass(frozen=True, kw_only=True)
class Listening:
    """Where the server is reached.

    Attributes:
        host: address or name to bind to. port: 0 for any that is free.
        names: further host names under which it is reached, such as behind a proxy.
        browser: whether to open the page.
    """

    host: str = "127.0.0.1"
    port: int = PORT
    names: tuple[str, ...] = ()
    browser: bool = False


def serve(place: Place, listening: Listening, said: Callable[[str], None]) -> None:
    """Serves the page until Ctrl-C.

    Args:
        said: shows a line.

    Raises:
        HeadwaterError: nothing to open, a port that is taken, an address that is not ours.
    """
    require_viewer()
    bound = bind(listening.host, listening.port)
    try:
        opened = Opened.open(place)
        with own_state(opened):
            address = _address(listening.host, bound.getsockname()[1])
            if opened.why:
                progress.note(f"New questions cannot be asked: {opened.why}")
            if not is_loopback(listening.host):
                progress.note(
                    f"Warning: {listening.host} is not the loopback interface: whoever reaches this port can read the "
                    "training rows and ask the model."
                )
            said(f"{opened.name}: {len(opened.train):,} rows. Open {address} (Ctrl-C ends).")
            run(opened, bound, listening, address if listening.browser else None)
    finally:
        bound.close()
    said("Stopped.")


def run(opened: Opened, bound: socket.socket, listening: Listening, browser: str | None = None) -> None:
    """Serves what was opened on a bound socket, until a signal."""
    import uvicorn

    from headwater.viewer.app import Viewer, make_app
    from headwater.viewer.guard import own_names

    viewer = Viewer(opened, secrets.token_urlsafe(32))
    remote = not is_loopback(listening.host)
    names = {*listening.names, listening.host, *(own_names() if remote else ())}
    app = make_app(viewer, names=names, addresses=remote)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=CLOSING, ws="none"
    )

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if opened.kind == "index":
                viewer.jobs.warm()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            viewer.jobs.close()
            viewer.events.close()
            await super().shutdown(sockets)

    if browser is not None:
        threading.Timer(0.5, webbrowser.open, [browser]).start()
    server = Server(config)
    try:
        server.run(sockets=[bound])
    except (KeyboardInterrupt, asyncio.CancelledError):
        pass  # uvicorn hands the signal on once it has ended
    finally:
        viewer.jobs.close()


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        UsageError: the port is taken or not allowed, or the address is not one of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            bound.listen(128)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UsageError(
                f"port {port} of {host} is taken",
                expected="a free port",
                cause="another headwater serve",
                fix="give --port 0 for any free one",
            ) from None
        raise UsageError(
            f"{host} port {port} cannot be used ({error.strerror or error})",
            expected="an address of this machine and a port from 1024 to 65535",
            fix="leave --host and --port out",
        ) from None
    bound.set_inheritable(False)
    return bound


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def prepare_state(opened: Opened) -> None:
    """Makes the viewer's folder.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        opened.state.mkdir(parents=True, exist_ok=True)
        (opened.state / "worker.log").touch()
    except OSError as error:
        raise UsageError(
            f"{opened.state} cannot be written ({error.strerror})",
            expected="a folder for answers and marks",
            fix="give another one with --state",
        ) from None


@contextmanager
def own_state(opened: Opened) -> Iterator[None]:
    """Keeps the viewer's folder to this server: two would overwrite each other's marks.

    Raises:
        UsageError: it cannot be written, or another server has it.
    """
    from filelock import FileLock, Timeout

    from headwater.viewer.answers import Answers

    prepare_state(opened)
    lock = FileLock(opened.state / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(
            f"{opened.state} is in use by another headwater serve",
            expected="one server for each folder of answers and marks",
            fix="open that one, end it, or give another folder with --state",
        ) from None
    try:
        Answers(opened).tidy()
        yield
    finally:
        lock.release()


def require_viewer() -> None:
    """Raises UsageError where the packages of the extra are missing."""
    missing = [name for name in ("fastapi", "uvicorn") if not _installed(name)]
    if missing:
        raise UsageError(
            f"headwater serve without {' and '.join(missing)}",
            expected="the packages of the extra `viewer`",
            fix='pip install "headwater[viewer]"',
        )


def _installed(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


def _address(host: str, port: int) -> str:
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}/"
