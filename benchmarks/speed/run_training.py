"""A plain training pass: the unit every tool is measured in."""

from __future__ import annotations

import transformers
from workload import Job, Result, run_tool


def training(job: Job) -> Result:
    """Forward and full backward of every batch, with weight gradients."""
    for batch in job.train():
        loss = job.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss
        loss.backward()
        job.model.zero_grad(set_to_none=True)
    return Result(None)


if __name__ == "__main__":
    run_tool("training", transformers.__version__, {"training": training})
