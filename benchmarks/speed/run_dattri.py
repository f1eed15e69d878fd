"""dattri-llm on the workload, through its attributors and its gradient streamer."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import dattri_llm
import numpy as np
import torch
from dattri_llm import (
    AttributionArguments,
    AttributionScore,
    AttributionTask,
    EKFACAttributor,
    GradientStorageManager,
    GradientStreamer,
    HookManagerConfig,
    TracInAttributor,
    hash_sample,
)
from dattri_llm.attribution import BaseInnerProductAttributor
from dattri_llm.attribution.utils import collect_gradients
from workload import (
    RANK,
    Collated,
    Document,
    Job,
    Result,
    block_linears,
    freeze_all_but_embeddings,
    mean_losses,
    run_tool,
)

Batch = dict[str, torch.Tensor]
PROJECTION = {"style": "logra", "proj_dim": RANK, "proj_max_batch_size": 8, "proj_type": "rademacher"}
DAMPING = 0.1  # times the mean eigenvalue


def loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Summed over the documents, so that each one's gradient is that of its own mean loss."""
    return mean_losses(model, Collated(**batch)).sum()


def streamer(job: Job, batches: list[Batch], **settings: Any) -> GradientStreamer:
    """An item of the data set is a whole batch, so the loader's batches of one item are the workload's batches."""
    return GradientStreamer(
        job.model,
        batches,
        arguments(job),
        batch_size=1,
        loss_fn=loss,
        collate_fn=lambda items: items[0],
        **settings,
    )


class Batched(BaseInnerProductAttributor):
    """Overrides the hooks that make the gradient sources, to stream the workload's batches."""

    job: Job

    def generate_train_rep(
        self, train_dataset: list[Batch], *, hook_config: HookManagerConfig | None = None, **_: Any
    ) -> GradientStreamer:
        return streamer(self.job, train_dataset, config=hook_config)

    def generate_test_rep(
        self,
        test_dataset: list[Batch],
        *,
        hook_config: HookManagerConfig | None = None,
        hook_manager: Any = None,
        **_: Any,
    ) -> GradientStreamer:
        return streamer(self.job, test_dataset, config=hook_config, hook_manager=hook_manager)


class TracIn(TracInAttributor, Batched):
    """Dot products."""


class EKFAC(EKFACAttributor, Batched):
    """EK-FAC."""


def arguments(job: Job) -> AttributionArguments:
    """The batch size, which its cost rule reads, is the mean of the batches'."""
    return AttributionArguments(
        output_dir=str(job.scratch / "scores"),
        per_device_train_batch_size=max(1, round(len(job.documents) / len(job.batches))),
        per_device_eval_batch_size=len(job.queries),
        use_cpu=True,
    )


def hooks(job: Job, **settings: Any) -> HookManagerConfig:
    """The blocks' linear layers of a frozen model, which its documentation advises: no weight gradients are made."""
    freeze_all_but_embeddings(job.model)
    names = dict.fromkeys(block_linears(job.model), "linear_io")
    return HookManagerConfig(hook_types=names, include_frozen=True, **settings)


def attribute(kind: type[Batched], job: Job, note: str, **settings: Any) -> Result:
    """Run an attributor live on both sides."""
    config = hooks(job)
    attributor = kind(arguments(job), task=AttributionTask(loss, job.model))
    attributor.job = job
    train, test = [batch._asdict() for batch in job.train()], [batch._asdict() for batch in job.test()]
    return Result(ordered(attributor.attribute(train, test, hook_config=config, **settings), job), note)


def ordered(score: AttributionScore, job: Job) -> np.ndarray:
    """Scores [queries, rows], found by hash; the positions of a token-level score are added up."""
    rows = {identity(document): row for row, document in enumerate(job.documents)}
    columns = {identity(query): column for column, query in enumerate(job.queries)}
    by_row = np.zeros((len(job.documents), len(job.queries)))
    order = np.argsort([columns[name] for name in score.test_ids])
    np.add.at(by_row, [rows[name] for name in score.row_train_ids], score.scores.double().numpy()[:, order])
    return by_row.T


def identity(document: Document) -> str:
    """The hash the tool gives a document: of what the loss calls the model with, without padding."""
    ids = torch.tensor(document.input_ids)
    return hash_sample({"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def collect(job: Job) -> Result:
    config = hooks(job, capture_style="auto", projection_kwargs={"__default__": PROJECTION})
    source = streamer(job, [batch._asdict() for batch in job.train()], config=config)
    collect_gradients(source, GradientStorageManager(str(job.scratch / "train")))
    return Result(None, f"logra projection of rank {RANK} on both sides, written to its store on disk")


def exact8(job: Job) -> Result:
    return attribute(TracIn, job, "TracIn attributor, live")


def pertoken(job: Job) -> Result:
    note = "TracIn attributor, live, token granularity; saved: sums over each document"
    return attribute(TracIn, job, note, attribution_granularity="token")


def ekfac(job: Job) -> Result:
    note = "empirical Fisher, damping 0.1 of the mean eigenvalue; training gradients kept in memory"
    return attribute(EKFAC, job, note, gradient_cache_residency="memory", damping=DAMPING, relative_damping=True)


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    run_tool(
        "dattri",
        dattri_llm.__version__,
        {"collect": collect, "exact8": exact8, "pertoken": pertoken, "ekfac": ekfac},
    )
