"""bergson on the workload, through the Python interface that its commands call with a loaded model and data."""

from __future__ import annotations

import logging

import bergson
import numpy as np
import torch
from bergson import CollectorComputer, GradientProcessor, InMemoryCollector, Scorer, collect_gradients
from bergson.config import HessianConfig, InversionConfig
from bergson.config.config import IndexConfig
from bergson.hessians.hessian_approximations import fit_factored_hessians
from bergson.hessians.preconditioner import FactoredPreconditioner
from bergson.score.score_writer import InMemorySequenceScoreWriter, InMemoryTokenScoreWriter, ScoreWriter
from datasets import Dataset, disable_progress_bars
from workload import RANK, TOKENS_PER_BATCH, Document, Job, Result, block_linears, freeze_all_but_embeddings, run_tool

DAMPING = 0.1  # times the mean eigenvalue; bergson's default


def dataset(documents: list[Document]) -> Dataset:
    return Dataset.from_dict(
        {
            "input_ids": [document.input_ids for document in documents],
            "labels": [document.labels for document in documents],
            "length": [len(document.input_ids) for document in documents],
        }
    )


def config(job: Job, name: str, rank: int = 0, per_token: bool = False) -> IndexConfig:
    """The mean of a document's token losses instead of bergson's default, their sum."""
    settings = IndexConfig(
        run_path=str(job.scratch / name),
        projection_dim=rank,
        token_batch_size=TOKENS_PER_BATCH,
        loss_reduction="mean",
        attribute_tokens=per_token,
    )
    settings.partial_run_path.mkdir(parents=True)
    return settings


def modules(job: Job) -> set[str]:
    """Names as bergson gives them: without the head, relative to the base model."""
    return {name.removeprefix("model.") for name in block_linears(job.model)}


def query_gradients(job: Job) -> dict[str, torch.Tensor]:
    """Full gradients of the queries, in memory."""
    settings, data = config(job, "query"), dataset(job.queries)
    collector = InMemoryCollector(
        model=job.model.base_model,
        cfg=settings,
        processor=GradientProcessor(),
        target_modules=modules(job),
        data=data,
    )
    CollectorComputer(
        model=job.model, data=data, collector=collector, batches=job.query_batches, cfg=settings
    ).run_with_collector_hooks()
    return collector.gradients


def score(job: Job, queries: dict[str, torch.Tensor], per_token: bool = False) -> ScoreWriter:
    """Dot products of the training gradients with the queries', in one pass over the training data."""
    data = dataset(job.documents)
    count = len(job.queries)
    writer = InMemoryTokenScoreWriter(data, count) if per_token else InMemorySequenceScoreWriter(len(data), count)
    scorer = Scorer(
        query_grads=queries,
        modules=list(queries),
        writer=writer,
        device=torch.device("cpu"),
        dtype=torch.float32,
        attribute_tokens=per_token,
    )
    collect_gradients(
        job.model,
        data,
        GradientProcessor(),
        config(job, "scores", per_token=per_token),
        batches=job.batches,
        target_modules=modules(job),
        scorer=scorer,
    )
    return writer


def collect(job: Job) -> Result:
    freeze_all_but_embeddings(job.model)
    collect_gradients(
        job.model,
        dataset(job.documents),
        GradientProcessor(projection_dim=RANK),
        config(job, "index", rank=RANK),
        batches=job.batches,
        target_modules=modules(job),
    )
    return Result(None, f"two-sided projection of rank {RANK}, written to bergson's index on disk")


def exact8(job: Job) -> Result:
    freeze_all_but_embeddings(job.model)
    writer = score(job, query_gradients(job))
    return Result(writer.scores.T.numpy(), "in-memory query gradients, scores while collecting")


def pertoken(job: Job) -> Result:
    freeze_all_but_embeddings(job.model)
    writer = score(job, query_gradients(job), per_token=True)
    # A document's tokens add up to its score; per token they are [tokens, queries] for each document.
    return Result(np.stack([scores.sum(0).numpy() for scores in writer.scores], 1), "saved: sums over each document")


def ekfac(job: Job) -> Result:
    freeze_all_but_embeddings(job.model)
    settings = config(job, "hessian")
    fit_factored_hessians(
        job.model,
        dataset(job.documents),
        settings,
        HessianConfig(method="kfac", ev_correction=True, use_dataset_labels=True),
        target_modules=modules(job),
        attention_cfgs={},
        batches=job.batches,
        path=str(settings.partial_run_path),
        do_eigendecomposition=True,
    )
    inverse = FactoredPreconditioner.from_path(
        settings.partial_run_path, inversion_cfg=InversionConfig(damping_factor=DAMPING), ev_correction=True
    )
    writer = score(job, inverse.apply(query_gradients(job)))
    return Result(writer.scores.T.numpy(), "empirical Fisher, damping 0.1 of the mean eigenvalue; factors on disk")


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    disable_progress_bars()
    run_tool(
        "bergson",
        bergson.__version__,
        {"collect": collect, "exact8": exact8, "pertoken": pertoken, "ekfac": ekfac},
    )
