"""The workload every tool is timed on, and the protocol of a runner.

Needs only torch, transformers and numpy: the runners import it inside the rivals' environments.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VOCAB = 8192
ROWS = 300
QUERIES = 8
SHORTEST, LONGEST = 16, 512
TOKENS_PER_BATCH = 2048
RANK = 16
PAD = 0
IGNORED = -100

VARIANTS = ("plain", "completion")
TASKS = ("collect", "exact8", "pertoken", "ekfac")


class Document(NamedTuple):
    """Token ids, and for each token whether it counts in the loss (the first one never does)."""

    input_ids: list[int]
    loss_mask: list[bool]

    @property
    def labels(self) -> list[int]:
        return [token if counts else IGNORED for token, counts in zip(self.input_ids, self.loss_mask, strict=True)]


class Collated(NamedTuple):
    """A right-padded batch; `labels` holds -100 where a token does not count."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor


def make_model(folder: Path) -> None:
    """Save the Llama of 8.4M parameters under `folder`, unless it is there."""
    from transformers import LlamaConfig, LlamaForCausalLM

    if (folder / "model.safetensors").exists():
        return
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=TOKENS_PER_BATCH,
        tie_word_embeddings=False,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
        dtype="float32",
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def load_model(work: Path) -> PreTrainedModel:
    """The model in float32, in evaluation mode."""
    from transformers import AutoModelForCausalLM

    make_model(work / "model")
    return AutoModelForCausalLM.from_pretrained(work / "model", dtype=torch.float32).eval()


def make_documents(count: int, variant: str, seed: int) -> list[Document]:
    """Zipf-distributed tokens; lengths from a log-normal clipped to 16..512, of mean about 150."""
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {VARIANTS}, not {variant!r}")
    generator = np.random.default_rng(seed)
    lengths = np.clip(np.rint(generator.lognormal(np.log(140), 0.6, count)), SHORTEST, LONGEST).astype(int)
    weights = 1 / np.arange(1, VOCAB)  # token 0 pads
    weights /= weights.sum()
    documents = []
    for length in lengths:
        ids = 1 + generator.choice(VOCAB - 1, size=length, p=weights)
        first = 1 if variant == "plain" else length - length // 4
        documents.append(Document(ids.tolist(), [position >= first for position in range(length)]))
    return documents


def load_documents(variant: str) -> list[Document]:
    """The 300 training documents."""
    return make_documents(ROWS, variant, seed=1)


def load_queries(variant: str) -> list[Document]:
    """The 8 queries."""
    return make_documents(QUERIES, variant, seed=2)


def make_batches(documents: Sequence[Document], limit: int = TOKENS_PER_BATCH) -> list[list[int]]:
    """Row numbers sorted by length, cut into batches of at most `limit` tokens once padded."""
    batches: list[list[int]] = []
    for row in sorted(range(len(documents)), key=lambda row: (len(documents[row].input_ids), row)):
        # Rows come in ascending length, so this row's length is the batch's padded length.
        if not batches or (len(batches[-1]) + 1) * len(documents[row].input_ids) > limit:
            batches.append([])
        batches[-1].append(row)
    return batches


def collate(documents: Sequence[Document]) -> Collated:
    """Right-pad the documents to the longest of them."""
    width = max(len(document.input_ids) for document in documents)
    ids = torch.full((len(documents), width), PAD)
    labels = torch.full((len(documents), width), IGNORED)
    mask = torch.zeros(len(documents), width, dtype=torch.long)
    for row, document in enumerate(documents):
        length = len(document.input_ids)
        ids[row, :length] = torch.tensor(document.input_ids)
        labels[row, :length] = torch.tensor(document.labels)
        mask[row, :length] = 1
    return Collated(ids, mask, labels)


def mean_losses(model: torch.nn.Module, batch: Collated) -> torch.Tensor:
    """Each document's mean loss over its counted tokens; the loss written out for tools that take a loss function."""
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1]
    labels = batch.labels[:, 1:]
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return losses.view_as(labels).sum(1) / (labels != IGNORED).sum(1)


def block_linears(model: torch.nn.Module) -> list[str]:
    """Names of the linear layers inside the blocks: all but the output head."""
    return [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and "layers." in name]


def freeze_all_but_embeddings(model: PreTrainedModel) -> None:
    """No weight gradients, but a graph through every layer: how bergson and dattri-llm say to run a probe."""
    model.requires_grad_(False)
    model.get_input_embeddings().requires_grad_(True)


@dataclass(frozen=True)
class Job:
    """One task on one variant: what a runner's task function is given."""

    work: Path
    task: str
    variant: str
    model: PreTrainedModel
    documents: list[Document]
    queries: list[Document]
    batches: list[list[int]]
    query_batches: list[list[int]]
    scratch: Path

    def train(self) -> list[Collated]:
        return [collate([self.documents[row] for row in batch]) for batch in self.batches]

    def test(self) -> list[Collated]:
        return [collate([self.queries[row] for row in batch]) for batch in self.query_batches]

    @property
    def order(self) -> list[int]:
        """Row numbers in the order of the batches."""
        return [row for batch in self.batches for row in batch]

    @property
    def query_order(self) -> list[int]:
        return [row for batch in self.query_batches for row in batch]

    def small(self) -> Job:
        """The warm-up: four documents in one batch, two queries, a copy of the model."""
        rows, queries = self.documents[:4], self.queries[:2]
        return replace(
            self,
            model=copy.deepcopy(self.model),
            documents=rows,
            queries=queries,
            batches=make_batches(rows),
            query_batches=make_batches(queries),
            scratch=self.scratch / "warm",
        )


def make_job(work: Path, task: str, variant: str) -> Job:
    """Load everything a task needs."""
    documents, queries = load_documents(variant), load_queries(variant)
    return Job(
        work=work,
        task=task,
        variant=variant,
        model=load_model(work),
        documents=documents,
        queries=queries,
        batches=make_batches(documents),
        query_batches=make_batches(queries),
        scratch=work / "scratch" / f"{os.getpid()}",
    )


class Result(NamedTuple):
    """What a task function returns: scores [queries, rows] (None where it has none) and a remark."""

    scores: np.ndarray | None
    note: str = ""


TaskFunction = Callable[[Job], Result]


def unsort(scores: torch.Tensor | np.ndarray, job: Job) -> np.ndarray:
    """Scores [queries, rows] in the order of the batches, put into the order of the documents."""
    given = np.asarray(scores, dtype=np.float64)
    out = np.empty((len(job.queries), len(job.documents)))
    out[np.ix_(job.query_order, job.order)] = given
    return out


def cpu_seconds() -> float:
    """User and system seconds of this process and its ended children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def run_tool(tool: str, version: str, tasks: Mapping[str, TaskFunction]) -> None:
    """A runner's main program: parse the arguments, warm up, time the task, save its scores, print one JSON line."""
    parser = argparse.ArgumentParser(description=f"Time {tool} on one task.")
    parser.add_argument("--work", type=Path, required=True, help="folder of the model and the outputs")
    parser.add_argument("--task", required=True, choices=sorted(tasks))
    parser.add_argument("--variant", default="plain", choices=VARIANTS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=1, help="time the task this often; the fastest counts")
    given = parser.parse_args()

    torch.set_num_threads(given.threads)
    job = make_job(given.work.resolve(), given.task, given.variant)
    function = tasks[given.task]
    _timed(function, job.small())
    times, walls = [], []
    result = Result(None)
    for _ in range(given.repeat):
        cpu, wall, result = _timed(function, replace(job, model=copy.deepcopy(job.model)))
        times.append(cpu)
        walls.append(wall)
    if result.scores is not None:
        out = given.work / "out"
        out.mkdir(parents=True, exist_ok=True)
        np.save(out / f"{tool}-{given.task}-{given.variant}.npy", result.scores.astype(np.float32))
    line = {
        "tool": tool,
        "version": version,
        "task": given.task,
        "variant": given.variant,
        "cpu_s": round(min(times), 4),
        "wall_s": round(min(walls), 4),
        "tokens": sum(len(document.input_ids) for document in job.documents),
        "note": result.note,
        "torch": torch.__version__,
        "transformers": sys.modules["transformers"].__version__,
        "python": sys.version.split()[0],
    }
    print(json.dumps(line))


def _timed(function: TaskFunction, job: Job) -> tuple[float, float, Result]:
    """CPU and wall seconds of one call in an empty scratch folder, and its result."""
    shutil.rmtree(job.scratch, ignore_errors=True)
    job.scratch.mkdir(parents=True)
    try:
        cpu, wall = cpu_seconds(), time.perf_counter()
        result = function(job)
        return cpu_seconds() - cpu, time.perf_counter() - wall, result
    finally:
        shutil.rmtree(job.scratch, ignore_errors=True)
