"""Handing out of chunks to workers, with workers in this process instead of Ray's: deaths, and rows that cause them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_index import build, contents

import headwater as hw
import tiny
from headwater import progress
from headwater.attribution import cluster
from headwater.attribution.quarantine import Quarantine
from headwater.examples import Encoded
from headwater.index.folder import Folder
from headwater.index.store import Shape

ROWS = tiny.rows(((6, 2),) * 23)
SHAPE = Shape(23, 5, (("layer", 4),), "float16")
TODO = {"last": range(5), "base": range(1, 5)}


class Death(Exception):
    """What Ray raises where a worker died."""


class Answer:
    def __init__(self, value: Any) -> None:
        self.value = value


class FakeRay:
    def wait(self, answers: Sequence[Answer], timeout: float) -> tuple[list[Answer], list[Answer]]:
        return list(answers[-1:]), list(answers[:-1])

    def get(self, answer: Answer) -> Any:
        if isinstance(answer.value, Death):
            raise answer.value
        return answer.value

    def kill(self, actor: Actor) -> None:
        actor.alive = False


class Actor:
    """A worker that dies of some rows, and of what `unlucky` says."""

    def __init__(self, seen: Seen) -> None:
        self.seen, self.alive = seen, True
        for name in ("ready", "chunks", "survive"):
            setattr(self, name, SimpleNamespace(remote=lambda *given, name=name: self._called(name, *given)))

    def _called(self, name: str, *given: Any) -> Answer:
        assert self.alive, "a dead worker is given work"
        try:
            return Answer(getattr(self, f"_{name}")(*given))
        except Death as death:
            self.alive = False
            self.seen.deaths += 1
            return Answer(death)

    def _ready(self) -> bool:
        if self.seen.stillborn:
            raise Death
        return True

    def _chunks(self, name: str, pieces: Sequence[cluster.Piece]) -> list[tuple[int, list[int]]]:
        done: list[tuple[int, list[int]]] = []
        for number, encoded, left_out in pieces:
            if self.seen.unlucky(name, number):
                raise Death
            self._survive(name, [one for place, one in enumerate(encoded) if place not in left_out])
            self.seen.made.append((name, number))
            done.append((number, []))
        return done

    def _survive(self, name: str, encoded: Sequence[Encoded]) -> bool:
        if any(one is ROWS[row] for one in encoded for row in self.seen.deadly):
            raise Death
        return True


class Seen:
    def __init__(self, deadly: Sequence[int] = (), unlucky: Callable[[str, int], bool] = lambda name, chunk: False):
        self.deadly, self.unlucky, self.deaths, self.stillborn = deadly, unlucky, 0, False
        self.made: list[tuple[str, int]] = []


class Three(cluster.Cluster):
    def __init__(self, seen: Seen) -> None:
        self.ray, self.count, self._seen = FakeRay(), 3, seen

    def actor(self, job: Any) -> Actor:
        return Actor(self._seen)

    def died(self) -> tuple[type[BaseException], ...]:
        return (Death,)


def spread(seen: Seen, place: Path) -> Quarantine:
    """Makes all chunks; the rows that were left out."""
    three, train = Three(seen), hw.Examples.from_rows([{"prompt": f"a {n}", "completion": " b"} for n in range(23)])
    left_out = Quarantine(Folder(place), train, False)
    job: Any = SimpleNamespace(run=SimpleNamespace(last=SimpleNamespace(name="last")))
    cluster.Spread(three, job, SHAPE, ROWS, left_out, three.actor(job)).run(TODO, progress.Bar(None, 0))
    return left_out


def wanted() -> list[tuple[str, int]]:
    return sorted((name, chunk) for name, chunks in TODO.items() for chunk in chunks)


def test_every_chunk_is_made_once(tmp_path: Path) -> None:
    seen = Seen()
    assert spread(seen, tmp_path).records == {}
    assert sorted(seen.made) == wanted()


def test_chunks_of_a_dead_worker_are_handed_out_again(tmp_path: Path) -> None:
    fates = [("last", 2), ("base", 4), ("last", 0)]

    def unlucky(name: str, chunk: int) -> bool:
        if (name, chunk) in fates:
            fates.remove((name, chunk))
            return True
        return False

    seen = Seen(unlucky=unlucky)
    assert spread(seen, tmp_path).records == {}
    assert sorted(seen.made) == wanted() and seen.deaths == 3


@pytest.mark.parametrize("deadly", [[7], [0, 22], [10, 12]])
def test_rows_that_kill_workers_are_found(tmp_path: Path, deadly: list[int]) -> None:
    seen = Seen(deadly)
    assert sorted(spread(seen, tmp_path).records) == deadly
    assert sorted(set(seen.made)) == wanted()


def test_workers_that_never_live_end_the_build(tmp_path: Path) -> None:
    seen = Seen()
    seen.stillborn = True
    seen.unlucky = lambda name, chunk: True
    with pytest.raises(hw.RunError, match="workers died before they could work"):
        spread(seen, tmp_path)


class TrueActor:
    """A true worker, in this process."""

    alive = True

    def __init__(self, job: cluster.Job) -> None:
        worker = cluster.Worker(job)
        for name in ("ready", "prepare", "chunks", "survive"):
            setattr(self, name, SimpleNamespace(remote=partial(self._called, getattr(worker, name))))

    def _called(self, call: Callable[..., Any], *given: Any) -> Answer:
        return Answer(call(*given))


class Here(cluster.Cluster):
    def __init__(self, changed: dict[str, Any]) -> None:
        self.ray, self.count, self._changed = FakeRay(), 2, changed

    def actor(self, job: cluster.Job) -> TrueActor:
        return TrueActor(replace(job, **self._changed))

    def died(self) -> tuple[type[BaseException], ...]:
        return (Death,)


def here(monkeypatch: pytest.MonkeyPatch, **changed: Any) -> None:
    monkeypatch.setattr(cluster, "connected", lambda address, workers: nullcontext(Here(changed)))
    monkeypatch.setattr(progress, "set_quiet", lambda quiet: None)  # a worker's process says nothing; this one may


def test_workers_make_the_index_of_one_process(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here(monkeypatch)
    build(run_folder, tmp_path / "here", ray="local", workers=2)
    build(run_folder, tmp_path / "one")
    assert contents(tmp_path / "here") == contents(tmp_path / "one")


def test_a_worker_that_sees_another_model_ends_the_build(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here(monkeypatch, fingerprints={"base": "", "checkpoint-3": "", "checkpoint-6": ""})
    with pytest.raises(hw.ModelError, match="is another model on the machine of a worker"):
        build(run_folder, tmp_path / "index", ray="local", workers=2)
    assert not (tmp_path / "index" / "manifest.json").exists()
