"""What any exact method pays at least: a forward and an activation-only backward pass, with nothing recorded.

Plain transformers and torch: weights frozen, logits only where tokens count, gradients of activations down to the
embeddings. It computes no gradient of an example and keeps none.
"""

from __future__ import annotations

import torch
import transformers
from torch.nn import functional as F
from workload import IGNORED, Job, Result, run_tool


def passes(job: Job) -> Result:
    """Both passes over every batch."""
    model = job.model.requires_grad_(False)
    embed, head = model.get_input_embeddings(), model.get_output_embeddings()
    for batch in job.train():
        x = embed(batch.input_ids).requires_grad_(True)
        hidden = model.base_model(inputs_embeds=x, use_cache=False).last_hidden_state[:, :-1]
        labels = batch.labels[:, 1:]
        counted = labels != IGNORED
        torch.autograd.grad(F.cross_entropy(head(hidden[counted]), labels[counted]), x)
    return Result(None, "forward and activation-only backward, nothing recorded")


if __name__ == "__main__":
    run_tool("floor", transformers.__version__, {"collect": passes})
