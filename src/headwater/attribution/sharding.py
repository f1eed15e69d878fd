"""One model over the processes of a torchrun: FSDP2 splits the weights of its blocks, embeddings and head stay whole.

    rank 0                                         the others
    "load": a checkpoint, and keeps its share      load it and keep theirs
    "batch": a forward and a backward pass         the same pass; what it gives is thrown away
    "end": the result, or what went wrong          return or raise it

A pass gathers the weights of a block where it needs them and forgets them again. All processes must therefore make the
same passes in the same order: rank 0 alone reads rows, decides and writes, the others do what it says. Weights are
frozen, so that no gradient is ever reduced; inputs and output gradients of the layers are the same everywhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import distributed, nn

from headwater import progress
from headwater.attribution.compute import Compute
from headwater.checkpoints import TrainingRun
from headwater.errors import HeadwaterError, ModelError, UsageError
from headwater.gradients.batches import Batch
from headwater.gradients.factors import blocks_of

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")

PATIENCE = timedelta(days=1)
"""How long the others wait for what rank 0 says next: in the meantime it reads rows and files. Within a pass the usual
limits of torch hold."""


def is_follower() -> bool:
    """Whether torchrun started this process, and not as the one that reads and writes."""
    return int(os.environ.get("RANK", "0")) > 0


def shared_out(run: TrainingRun, compute: Compute, work: Callable[[Crew], T]) -> T:
    """Does `work` with models that are split over the processes of a torchrun; each of them calls this.

    Returns:
        what `work` returned on rank 0, on every rank.

    Raises:
        UsageError: torchrun did not start this process, or the models cannot be split.
        HeadwaterError: what `work` raised, on every rank.
    """
    with _crew(run, compute) as crew:
        if crew.rank:
            return _follow(run, compute, crew)  # type: ignore[no-any-return]
        try:
            result = work(crew)
        except torch.OutOfMemoryError:  # the others are in the middle of a pass: torchrun ends them
            raise ModelError(
                "a batch does not fit in the accelerator's memory beside this process's share of the model",
                expected="room for a batch",
                cause="long rows, or large batches",
                fix="lower --batch-tokens or --max-length, add --recompute, or start more processes",
            ) from None
        except HeadwaterError as error:
            crew.say("end", error)
            raise
        crew.say("end", result)
        return result


@dataclass(frozen=True)
class Crew:
    """The processes of a torchrun.

    Attributes:
        rank: of this one. size: how many there are. turns: processes on one machine, at most.
        device: of this one.
    """

    rank: int
    size: int
    turns: int
    device: torch.device
    mesh: DeviceMesh
    group: Any

    def say(self, *what: Any) -> None:
        """Rank 0 tells the others what to do; the others say nothing."""
        if self.rank == 0:
            distributed.broadcast_object_list([what], 0, group=self.group)

    def heard(self) -> tuple[Any, ...]:
        """What rank 0 says next."""
        found: list[Any] = [None]
        distributed.broadcast_object_list(found, 0, group=self.group)
        return found[0]  # type: ignore[no-any-return]

    def say_batch(self, trim: bool, batch: Batch) -> None:
        """Rank 0 is about to run a batch."""
        if self.rank == 0:
            self.say("batch", trim, _moved(batch, torch.device("cpu")))

    def in_turn(self, work: Callable[[], T]) -> T:
        """Does `work` in one process of each machine after the other, so that a machine holds one whole model.

        Raises:
            HeadwaterError: what it raised anywhere, on every rank.
        """
        mine, result = int(os.environ["LOCAL_RANK"]), list[T]()
        for turn in range(self.turns):
            _agreed(lambda: result.append(work()) if turn == mine else None, self.size, self.group)  # noqa: B023
        return result[0]

    def shard(self, model: nn.Module) -> None:
        """Keeps this process's share of the weights of the model's blocks, on its device, and all other weights.

        Raises:
            ModelError: the model has no blocks.
        """
        from torch.distributed.fsdp import fully_shard

        blocks = blocks_of(model)
        if not blocks:
            raise ModelError(
                "a model without a list of blocks",
                expected="blocks whose weights can be split over processes",
                fix="leave --shard out, or give --device-map auto",
            )
        model.requires_grad_(False)
        inside = {id(parameter) for block in blocks for parameter in block.parameters()}
        whole = {parameter for parameter in model.parameters() if id(parameter) not in inside}
        for parameter in whole:
            parameter.data = parameter.data.to(self.device)
        for block in blocks:
            fully_shard(block, mesh=self.mesh, reshard_after_forward=True)
        fully_shard(_around(model, blocks), mesh=self.mesh, ignored_params=whole)  # for the order of its blocks


def _around(model: nn.Module, blocks: Sequence[nn.Module]) -> nn.Module:
    """The innermost module that holds all blocks and computes something."""
    names = {id(module): name.split(".") for name, module in model.named_modules()}
    paths = [names[id(block)][:-1] for block in blocks]
    path = paths[0]
    while path and (
        isinstance(model.get_submodule(".".join(path)), nn.ModuleList)
        or any(other[: len(path)] != path for other in paths)
    ):
        path = path[:-1]
    return model.get_submodule(".".join(path))


def _follow(run: TrainingRun, compute: Compute, crew: Crew) -> Any:
    """What all ranks but 0 do."""
    from headwater.attribution.models import Models, Place

    progress.set_quiet(True)
    models = Models(run, compute, (), {}, crew)
    place: Place | None = None
    while True:
        what, *given = crew.heard()
        if what == "end":
            if isinstance(given[0], HeadwaterError):
                raise given[0]
            return given[0]
        if what == "load":
            place = None  # its memory is needed
            with suppress(HeadwaterError):  # rank 0 has it too, and ends
                place = models.load_as(*given)
        elif place is not None:
            trim, batch = given
            with place.hooks(trim=trim).attached() as hooks:
                hooks.backward(_moved(batch, crew.device), lambda number, a_BTI, d_BTO: None)


@contextmanager
def _crew(run: TrainingRun, compute: Compute) -> Iterator[Crew]:
    if not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR"} <= set(os.environ):
        raise UsageError(
            "--shard in a process that torchrun did not start",
            expected="as many processes as the model is to be split over",
            fix="torchrun --nproc-per-node 8 -m headwater index ... --shard",
        )
    if compute.device_map is not None:
        raise UsageError("--shard with --device-map", expected="one of them", fix="leave --device-map out")
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 7):
        raise UsageError(f"--shard with torch {torch.__version__}", expected="torch 2.7 or later", fix="install it")
    if run.quantization is not None:
        raise UsageError(
            f"--shard with a base in {run.quantization}",
            expected="weights in float32, float64 or bfloat16",
            fix="leave --quantization out, or --shard",
        )
    from torch.distributed.device_mesh import init_device_mesh

    mine = not distributed.is_initialized()
    if mine:
        distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    size, group = distributed.get_world_size(), distributed.new_group(backend="gloo", timeout=PATIENCE)
    device = _agreed(lambda: _own_device(compute.device), size, group)
    turns: list[Any] = [None] * size
    distributed.all_gather_object(turns, int(os.environ["LOCAL_WORLD_SIZE"]), group=group)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    mesh = init_device_mesh(device.type, (size,))
    yield Crew(distributed.get_rank(), size, max(turns), device, mesh, group)
    if mine:  # not after an error: other processes may be in the middle of a pass
        distributed.destroy_process_group()


def _agreed(work: Callable[[], T], size: int, group: Any) -> T:
    """Does `work` everywhere, and waits for all. What it raised anywhere is raised on every rank."""
    result: list[T] = []
    error = None
    try:
        result.append(work())
    except HeadwaterError as found:
        error = found
    errors: list[Any] = [None] * size
    distributed.all_gather_object(errors, error, group=group)
    for raised in errors:
        if raised is not None:
            raise raised
    return result[0]


def _own_device(name: str) -> torch.device:
    """The device of this process: the accelerator of its own number on this machine, or the CPU."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    number = int(os.environ["LOCAL_RANK"])
    if name not in ("auto", "cuda") or number >= torch.cuda.device_count():
        raise UsageError(
            f"--device {name} for process {number} of this machine, which has {torch.cuda.device_count()} CUDA devices",
            expected="auto, cpu or cuda, and a device for each process",
            fix="leave --device out, and start as many processes as there are devices",
        )
    return torch.device("cuda", number)


def _moved(batch: Batch, device: torch.device) -> Batch:
    tensors: dict[str, Any] = {k: v.to(device) for k, v in vars(batch).items() if isinstance(v, torch.Tensor)}
    return replace(batch, **tensors)
