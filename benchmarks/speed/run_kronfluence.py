"""kronfluence on the workload, through its Analyzer."""

from __future__ import annotations

import logging

import kronfluence
import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.module.tracked_module import ModuleMode, TrackedModule
from kronfluence.module.utils import (
    accumulate_iterations,
    get_tracked_module_names,
    prepare_modules,
    set_mode,
    update_factor_args,
    update_score_args,
)
from kronfluence.task import Task
from kronfluence.utils.constants import ALL_MODULE_NAME, PAIRWISE_SCORE_MATRIX_NAME
from kronfluence.utils.dataset import DataLoaderKwargs
from workload import Collated, Job, Result, block_linears, mean_losses, run_tool, unsort

Batch = dict[str, torch.Tensor]


class LanguageModeling(Task):
    """The library's language modelling example, with each document's mean loss instead of its sum."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def compute_train_loss(self, batch: Batch, model: torch.nn.Module, sample: bool = False) -> torch.Tensor:
        if sample:
            raise NotImplementedError("only the empirical Fisher is used")
        return mean_losses(model, Collated(**batch)).sum()

    def compute_measurement(self, batch: Batch, model: torch.nn.Module) -> torch.Tensor:
        return self.compute_train_loss(batch, model)

    def get_influence_tracked_modules(self) -> list[str]:
        return self.names

    def get_attention_mask(self, batch: Batch) -> torch.Tensor:
        return batch["attention_mask"]


def analyzer_of(job: Job) -> tuple[Analyzer, LanguageModeling]:
    task = LanguageModeling(block_linears(job.model))
    model = prepare_model(job.model, task)
    analyzer = Analyzer(
        "speed",
        model,
        task,
        cpu=True,
        disable_tqdm=True,
        log_level=logging.ERROR,
        output_dir=str(job.scratch),
    )
    # An item of the data sets below is a whole batch, so the loader's batches of one item are the workload's batches.
    analyzer.set_dataloader_kwargs(DataLoaderKwargs(collate_fn=lambda items: items[0]))
    return analyzer, task


def score_arguments(job: Job, per_token: bool = False) -> ScoreArguments:
    """All query batches are held while the training data is passed over once."""
    return ScoreArguments(
        damping_factor=None,
        compute_per_token_scores=per_token,
        query_gradient_accumulation_steps=len(job.query_batches),
    )


def pairwise(job: Job, strategy: str) -> Result:
    analyzer, _ = analyzer_of(job)
    train = [batch._asdict() for batch in job.train()]
    test = [batch._asdict() for batch in job.test()]
    analyzer.fit_all_factors(
        factors_name=strategy,
        dataset=train,
        per_device_batch_size=1,
        factor_args=FactorArguments(strategy=strategy, use_empirical_fisher=True),
    )
    analyzer.compute_pairwise_scores(
        scores_name="scores",
        factors_name=strategy,
        query_dataset=test,
        train_dataset=train,
        per_device_query_batch_size=1,
        per_device_train_batch_size=1,
        score_args=score_arguments(job),
    )
    scores = analyzer.load_pairwise_scores("scores")[ALL_MODULE_NAME]
    return Result(unsort(scores, job), "")


def exact8(job: Job) -> Result:
    return pairwise(job, "identity")._replace(note="identity strategy")


def ekfac(job: Job) -> Result:
    return pairwise(job, "ekfac")._replace(note="empirical Fisher, damping 0.1 of the mean eigenvalue; factors on disk")


def pertoken(job: Job) -> Result:
    """Its per-token scores, without its last step, which joins batches only if all have the same padded length."""
    analyzer, task = analyzer_of(job)
    model = analyzer.model
    names = get_tracked_module_names(model)
    tracked = [module for module in model.modules() if isinstance(module, TrackedModule)]
    update_factor_args(model, FactorArguments(strategy="identity"))
    update_score_args(model, score_arguments(job, per_token=True))
    set_mode(model, ModuleMode.PRECONDITION_GRADIENT, names, release_memory=True)
    prepare_modules(model, names, torch.device("cpu"))
    for batch in job.test():
        task.compute_measurement(batch._asdict(), model).backward()
        accumulate_iterations(model, names)
    set_mode(model, ModuleMode.PAIRWISE_SCORE, names, release_memory=False)
    documents = []
    for batch in job.train():
        task.compute_train_loss(batch._asdict(), model).backward()
        with torch.no_grad():
            tokens = torch.stack([module.get_factor(PAIRWISE_SCORE_MATRIX_NAME) for module in tracked]).sum(0)
        documents.append(tokens.sum(2))  # a document's tokens add up to its score
        accumulate_iterations(model, names)
    set_mode(model, ModuleMode.DEFAULT, release_memory=True)
    note = "inner interface: the Analyzer needs one padded length for all; saved: sums over each document"
    return Result(unsort(torch.cat(documents, 1), job), note)


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    run_tool("kronfluence", kronfluence.__version__, {"exact8": exact8, "pertoken": pertoken, "ekfac": ekfac})
