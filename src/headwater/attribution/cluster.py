"""Workers on a Ray cluster: an index built chunk by chunk on many machines, and scored chunk by chunk.

    driver    reads and encodes the rows, hands out tasks (checkpoint, chunks), writes the manifest last
    worker    one for each GPU (or CPU) of the cluster: keeps one checkpoint loaded, writes its chunks itself

A task is handed to a worker that is ready, and each worker has one at a time: nothing piles up. A worker that dies
costs the chunks of its task, which are handed out again one by one; a chunk in which DEATHS workers died is tried row
by row, as `quarantine` says. The bytes of the index are those of one process with as many threads as a worker has.

The folder of the index and the checkpoints must be seen from every machine under the same name.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from headwater import progress
from headwater.attribution.compute import Compute
from headwater.attribution.quarantine import DEATHS, Quarantine, find_deadly
from headwater.checkpoints import TrainingRun
from headwater.errors import HeadwaterError, ModelError, RunError, UsageError
from headwater.examples import Encoded
from headwater.index.folder import Folder
from headwater.index.manifest import IndexedLayer
from headwater.index.store import CheckpointStore, Shape

if TYPE_CHECKING:
    from headwater.attribution.models import Models, Place

RANGE = 4
"""Chunks of a task at most: what the death of a worker costs."""

PATIENCE = 120.0
"""Seconds without any worker after which the build ends; what is written is kept."""

STILLBORN = 8
"""So many workers in a row may die before they have done anything."""

STARTS = 3
"""So often a cluster of this machine is tried to be started."""

Piece = tuple[int, Sequence[Encoded], list[int]]
"""A chunk: its number, its rows, and which of them are left out."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker must know.

    Attributes:
        part: folder of the part, as a path or URL. fingerprints: of every checkpoint, as the driver sees it.
        batch_tokens: None until it is measured.
    """

    run: TrainingRun
    compute: Compute
    part: str
    fingerprints: Mapping[str, str]
    batch_tokens: int | None


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What the first worker measured: `half` as `Models.check_half` gives it."""

    batch_tokens: int
    half: float | None
    layers: tuple[IndexedLayer, ...]


class Worker:
    """What runs on a worker; every method returns a HeadwaterError instead of raising it."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._models: Models | None = None
        self._place: Place | None = None
        progress.set_quiet(True)

    def ready(self) -> bool:
        """Whether the worker lives."""
        return True

    def prepare(self, encoded: Sequence[Encoded], sampled: Sequence[Encoded]) -> Prepared | HeadwaterError:
        """Measures what `Models.measure` and `Models.check_half` measure.

        Args:
            encoded: the longest row. sampled: rows that half precision is checked with.
        """
        from headwater.attribution.building import layers_of

        try:
            models = self._opened(encoded)
            tokens = models.measure(encoded, self._job.batch_tokens)
            half = None
            if self._job.compute.dtype == "bfloat16" and sampled:
                half = models.check_half(sampled, (), ("dot", "layer_cosine"))
            self._job = replace(self._job, batch_tokens=tokens)
            place = self._loaded(self._job.run.last.name)
            return Prepared(batch_tokens=tokens, half=half, layers=layers_of(place))
        except HeadwaterError as error:
            return error

    def chunks(self, name: str, pieces: Sequence[Piece]) -> list[tuple[int, list[int]]] | HeadwaterError:
        """Makes and writes chunks of a checkpoint. (chunk, rows of it whose gradient is not finite); a chunk with such
        rows is not written."""
        from headwater.attribution.chunks import ChunkGradients
        from headwater.attribution.quarantine import not_finite
        from headwater.index.store import encode_chunk

        try:
            place, tokens = self._loaded(name), self._job.batch_tokens
            assert tokens is not None
            store = CheckpointStore.open(Folder(self._job.part), name)
            done = []
            for number, encoded, left_out in pieces:
                gradients = ChunkGradients(place, encoded, tokens)
                with gradients.hooks.attached():
                    g_CF, loss_C = gradients(0, len(encoded), progress.Bar(None, 0), left_out)
                broken = not_finite(g_CF, loss_C)
                if not broken:
                    store.write_encoded(number, *encode_chunk(g_CF, loss_C, store.shape, left_out))
                done.append((number, broken))
            return done
        except HeadwaterError as error:
            return error

    def survive(self, name: str, encoded: Sequence[Encoded]) -> bool | HeadwaterError:
        """Computes gradients of rows and forgets them."""
        from headwater.attribution.chunks import ChunkGradients

        try:
            gradients = ChunkGradients(self._loaded(name), encoded, self._job.batch_tokens or 1)
            with gradients.hooks.attached():
                gradients(0, len(encoded), progress.Bar(None, 0))
            return True
        except HeadwaterError as error:
            return error

    def _opened(self, encoded: Sequence[Encoded]) -> Models:
        from headwater.attribution.models import Models

        if self._models is None:
            self._models = Models(self._job.run, self._job.compute, encoded, {"layers": ""})
        return self._models

    def _loaded(self, name: str) -> Place:
        if self._place is None or self._place.name != name:
            self._place = None  # its memory is needed now
            checkpoint = self._job.run.named(name)
            if checkpoint.fingerprint() != self._job.fingerprints[name]:
                raise ModelError(
                    f"{checkpoint.location} is another model on the machine of a worker",
                    expected="the same files on every machine",
                    cause="a local copy that is older",
                    fix="put the checkpoints where every machine sees the same files",
                )
            self._place = self._opened(()).load(name)
        return self._place


@dataclass
class _Task:
    name: str
    chunks: list[int]
    deaths: int = 0


class Cluster:
    """A connected Ray cluster and its workers. Use it in a with block of `connected`.

    Args:
        workers: how many; by default one for each GPU of the cluster, or each CPU where it has none.
    """

    def __init__(self, ray: Any, workers: int | None) -> None:
        self.ray = ray
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        self.count = workers or gpus or max(1, int(resources.get("CPU", 1)))
        self.options = {"num_gpus": 1, "num_cpus": 0} if gpus else {"num_cpus": 1}

    def actor(self, job: Job) -> Any:
        """A new worker; it may have to wait for a place."""
        return self.ray.remote(Worker).options(max_restarts=0, **self.options).remote(job)

    def ask(self, actor: Any, method: str, *given: Any) -> Any:
        """The answer of a worker; raises the HeadwaterError that it gives."""
        return self.sound(self.ray.get(getattr(actor, method).remote(*given)))

    @staticmethod
    def sound(answer: Any) -> Any:
        """The answer, unless it is an error: that is raised."""
        if isinstance(answer, HeadwaterError):
            raise answer
        return answer

    def died(self) -> tuple[type[BaseException], ...]:
        """What is raised where a worker died."""
        from ray import exceptions

        return (exceptions.RayActorError, exceptions.WorkerCrashedError, exceptions.NodeDiedError,
                exceptions.OutOfMemoryError, exceptions.ActorUnschedulableError)  # fmt: skip

    def prepare(self, job: Job, encoded: Sequence[Encoded], sampled: Sequence[Encoded]) -> tuple[Prepared, Any]:
        """What one worker measures, and that worker: the last checkpoint is loaded."""
        actor = self.actor(job)
        try:
            return self.ask(actor, "prepare", encoded, sampled), actor
        except self.died() as error:
            raise RunError(
                f"a worker died while it loaded {job.run.last.name} ({type(error).__name__})",
                expected="workers that can hold the model and one row",
                cause="too little memory on its machine",
                fix="give the workers more memory, or a smaller --max-length",
            ) from None


@contextmanager
def connected(address: str, workers: int | None = None) -> Iterator[Cluster]:
    """A connection to a Ray cluster.

    Args:
        address: "auto" for the cluster that this machine belongs to, "local" for a new one on this machine, or an
            address such as ray://head:10001 or head:6379.

    Raises:
        UsageError: ray is not installed, or there is no cluster at this address. RunError: none starts here.
    """
    try:
        import ray
    except ImportError:
        raise UsageError(
            "--ray and ray is not installed",
            expected="the package ray",
            fix="pip install 'headwater[ray]', or leave --ray out",
        ) from None
    ours = not ray.is_initialized()
    if ours:
        try:
            _join(ray, address, workers)
        except (
            Exception,
            SystemExit,
        ) as error:  # ray raises plain ones, too, and exits where a cluster does not answer
            said = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
            if address == "local":
                raise RunError(
                    f"Ray does not start on this machine ({said})",
                    expected="a cluster of this machine alone",
                    cause="too little memory or disk for its processes, or a machine that is too busy",
                    fix="run the same command again, or leave --ray out",
                ) from None
            raise UsageError(
                f"no Ray cluster at {address} ({said})",
                expected="a running cluster",
                fix="start one with `ray start --head`, give its address, or --ray local for this machine alone",
            ) from None
    try:
        yield Cluster(ray, workers)
    finally:
        if ours:
            ray.shutdown()


def _join(ray: Any, address: str, workers: int | None) -> None:
    """Connects to a cluster, or makes one of this machine: without a dashboard, and without a word to Ray's makers.

    Ray gives its processes 30 seconds to start, which is too short on a busy machine: then it is tried again.
    """
    given: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": "ERROR"}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        given |= {"num_cpus": workers, "include_dashboard": False}
    elif address != "auto":
        host, _, port = address.rpartition("://")[2].rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()  # ray itself waits for minutes
    for left in reversed(range(STARTS if address == "local" else 1)):
        try:
            ray.init(**given)
            return
        except (Exception, SystemExit):
            ray.shutdown()
            if not left:
                raise


class Spread:
    """Hands chunks out to workers until all are made.

    Args:
        encoded: all rows. left_out: rows that are not computed; those that are found on the way are added.
        first: a worker that has loaded the last checkpoint.
    """

    def __init__(
        self, cluster: Cluster, job: Job, shape: Shape, encoded: Sequence[Encoded], left_out: Quarantine, first: Any
    ) -> None:
        self._cluster, self._job, self._shape = cluster, job, shape
        self._encoded, self._left_out = encoded, left_out
        self._waiting: list[_Task] = []
        self._suspects: list[_Task] = []
        self._idle: dict[Any, str | None] = {first: job.run.last.name}  # worker -> the checkpoint that it has loaded
        self._starting: dict[Any, Any] = {}  # answer that says that it lives -> worker
        self._stillborn = 0
        self._working: dict[Any, tuple[Any, _Task]] = {}

    def run(self, todo: Mapping[str, Sequence[int]], bar: progress.Bar) -> None:
        """Makes the chunks of every checkpoint.

        Raises:
            HeadwaterError: what a worker says; RunError: no worker is left.
        """
        ray = self._cluster.ray
        for name, chunks in todo.items():
            size = max(1, min(RANGE, len(chunks) // (4 * self._cluster.count)))
            self._waiting += [_Task(name, list(chunks[i : i + size])) for i in range(0, len(chunks), size)]
        for _ in range(min(self._cluster.count, len(self._waiting)) - 1):
            self._start()
        alive = time.monotonic()
        try:
            while self._waiting or self._working or self._suspects:
                while self._suspects and self._idle:
                    self._try_apart(self._suspects.pop())
                while self._waiting and self._idle:
                    self._hand_out()
                done, _ = ray.wait([*self._working, *self._starting], timeout=5.0)
                if done or self._working:
                    alive = time.monotonic()
                elif time.monotonic() - alive > PATIENCE:
                    raise RunError(
                        f"no worker of the Ray cluster for {PATIENCE:.0f} seconds",
                        expected="at least one machine with a free GPU or CPU",
                        cause="all machines were lost, or others use them",
                        fix="bring machines back and run the same command again: what is written is kept",
                    )
                for answer in done:
                    self._take(answer, bar)
        finally:
            for actor in [*self._idle, *self._starting.values(), *(actor for actor, _ in self._working.values())]:
                ray.kill(actor)

    def _start(self) -> None:
        actor = self._cluster.actor(self._job)
        self._starting[actor.ready.remote()] = actor

    def _hand_out(self) -> None:
        """A waiting task to an idle worker: of the checkpoint that it has loaded, else of the one with most left for
        each worker that has it."""
        actor, loaded = next(
            ((a, name) for a, name in self._idle.items() if any(task.name == name for task in self._waiting)),
            next(iter(self._idle.items())),
        )
        del self._idle[actor]
        at_work = [task.name for _, task in self._working.values()]
        left = [task.name for task in self._waiting]
        if loaded in left:
            name = loaded
        else:
            name = max(dict.fromkeys(left), key=lambda one: left.count(one) / (1 + at_work.count(one)))
        task = next(task for task in self._waiting if task.name == name)
        self._waiting.remove(task)
        pieces: list[Piece] = []
        for chunk in task.chunks:
            start, stop = self._shape.chunk_range(chunk)
            pieces.append((chunk, self._encoded[start:stop], self._left_out.inside(start, stop)))
        self._working[actor.chunks.remote(task.name, pieces)] = (actor, task)

    def _take(self, answer: Any, bar: progress.Bar) -> None:
        """What a worker answered, or its death."""
        ray, died = self._cluster.ray, self._cluster.died()
        if answer in self._starting:
            actor = self._starting.pop(answer)
            try:
                ray.get(answer)
                self._idle[actor] = None
                self._stillborn = 0
            except died as error:
                self._stillborn += 1
                if self._stillborn > STILLBORN:
                    raise RunError(
                        f"{self._stillborn} workers died before they could work ({type(error).__name__})",
                        expected="workers that start",
                        cause="headwater is not installed on their machines, or their memory is full",
                        fix="install the same version there, or use other machines",
                    ) from None
                self._start()
            return
        actor, task = self._working.pop(answer)
        try:
            found = self._cluster.sound(ray.get(answer))
        except died:
            self._buried(task)
            return
        self._idle[actor] = task.name
        for chunk, broken in found:
            start, stop = self._shape.chunk_range(chunk)
            if broken:
                self._left_out.broken([start + row for row in broken], stop - start, task.name)
                self._waiting.insert(0, _Task(task.name, [chunk]))
            else:
                bar.advance(sum(one.length for one in self._encoded[start:stop] if one.targets))

    def _buried(self, task: _Task) -> None:
        """The chunks of a dead worker are handed out again, one by one; where others died before, row by row."""
        self._start()
        if len(task.chunks) > 1:
            self._waiting[:0] = [_Task(task.name, [chunk]) for chunk in task.chunks]
            return
        task.deaths += 1
        (self._suspects if task.deaths >= DEATHS else self._waiting).insert(0, task)

    def _try_apart(self, task: _Task) -> None:
        """Finds the rows of a chunk that kill a worker, with an idle one; a dead one leaves its place to the next."""
        actor = self._idle.popitem()[0]
        start, stop = self._shape.chunk_range(task.chunks[0])
        rows = [row for row in range(start, stop) if self._encoded[row].targets and row not in self._left_out]

        def survives(some: Sequence[int]) -> bool:
            nonlocal actor
            try:
                return bool(self._cluster.ask(actor, "survive", task.name, [self._encoded[row] for row in some]))
            except self._cluster.died():
                actor = self._cluster.actor(self._job)
                return False

        try:
            find_deadly(task.name, rows, survives, self._left_out)
        finally:
            self._starting[actor.ready.remote()] = actor
        self._waiting.insert(0, task)
