"""What is asked of the models apart from gradients: what they say, and how likely they find what was said."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headwater import progress
from headwater.attribution.compute import Compute
from headwater.checkpoints import Checkpoint, TrainingRun
from headwater.errors import DataError
from headwater.examples import Encoded, Encoder, Example, Query, Template, TokenFormat
from headwater.gradients.measurement import Sides
from headwater.run import RunState, digest, write_whole
from headwater.scores import Leaning

if TYPE_CHECKING:
    from headwater.attribution.models import Place
    from headwater.gradients.directional import Step


def with_outputs(
    queries: Sequence[Query],
    model: Callable[[], Any],
    tokenizer: Any,
    encoder: Encoder,
    compute: Compute,
    state: RunState,
) -> list[Query]:
    """Lets a model say the outputs that are missing (greedy).

    Args:
        model: loads it, when it is needed.

    Raises:
        DataError: it says nothing.
    """
    if all(query.output is not None for query in queries):
        return list(queries)
    kept = state.load("generated")
    if kept is None:
        speaker = model()
        kept = {}
        with progress.bar("Generating outputs", len(queries)) as bar:
            for q, query in enumerate(queries):
                if query.output is None:
                    text = generate(speaker, tokenizer, encoder, query, compute.max_new_tokens)
                    kept[str(q)] = np.frombuffer(text.encode(), np.uint8)
                bar.advance()
        state.save("generated", kept)
    out = []
    for q, query in enumerate(queries):
        said = kept[str(q)].tobytes().decode() if str(q) in kept else None
        if said is not None and not said.strip():
            raise DataError(
                f"the last checkpoint says nothing after {str(query.prompt)[:60]!r}",
                expected="an output to trace",
                cause="it ends the text at once",
                fix="give the output",
            )
        out.append(query.with_output(said) if said is not None else query)
    return out


def generate(
    model: Any,
    tokenizer: Any,
    encoder: Encoder,
    query: Query,
    max_new_tokens: int,
    watch: Callable[[int, float], bool] | None = None,
) -> str:
    """What a model says after the query's prompt, by greedy decoding, special tokens left out.

    Args:
        watch: called with every token as soon as it is said, and its log-probability in nats; answers whether to go on.
    """
    import torch

    ids = torch.tensor([encoder.prompt_ids(query.prompt)], device=next(model.parameters()).device)
    with torch.no_grad():
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            **({} if watch is None else _watched(watch)),
        )
    return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))


def _watched(watch: Callable[[int, float], bool]) -> dict[str, Any]:
    """Arguments of `generate` that call `watch` at every token."""
    import torch
    from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

    seen: dict[str, torch.Tensor] = {}

    class Seeing(LogitsProcessor):  # type: ignore[misc]
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            seen["logits"] = scores
            return scores

    class Telling(StoppingCriteria):  # type: ignore[misc]
        def __call__(self, input_ids: torch.Tensor, scores: Any, **options: Any) -> torch.Tensor:
            token = int(input_ids[0, -1])
            goes_on = watch(token, float(seen["logits"][0].float().log_softmax(-1)[token]))
            return torch.tensor([not goes_on], device=input_ids.device)

    return {
        "logits_processor": LogitsProcessorList([Seeing()]),
        "stopping_criteria": StoppingCriteriaList([Telling()]),
    }


def token_log_probabilities(model: Any, encoded: Encoded) -> np.ndarray:
    """Log-probabilities, in nats, of the tokens that the loss counts, one after the other."""
    import torch

    device = next(model.parameters()).device
    ids = torch.from_numpy(encoded.input_ids).to(device)
    with torch.no_grad():
        logits_TV = model(input_ids=ids[None]).logits[0].float()
    chosen = np.flatnonzero(encoded.loss_mask)
    at = torch.from_numpy(chosen - 1).to(device)
    found: np.ndarray = logits_TV[at].log_softmax(-1).gather(1, ids[at + 1][:, None])[:, 0].cpu().numpy()
    return found


def answers_of(
    run: TrainingRun,
    checkpoint: Checkpoint,
    queries: Sequence[Query],
    format: TokenFormat,
    template: Template,
    *,
    max_new_tokens: int,
    kept: Path,
) -> list[str]:
    """What a checkpoint says to the queries' prompts; kept in a file, and read from it where model, prompts and length
    are the same."""
    wanted = json.dumps([[repr(query.prompt) for query in queries], max_new_tokens, template])
    stamp = digest(checkpoint.fingerprint().encode(), wanted.encode())
    if kept.exists():
        record = json.loads(kept.read_text("utf-8"))
        if record["stamp"] == stamp:
            return [str(words) for words in record["said"]]
    tokenizer = run.tokenizer()
    encoder = Encoder(tokenizer, format, template)
    model = loaded(run, checkpoint)
    said = []
    with progress.bar(f"Asking {checkpoint.name}", len(queries)) as bar:
        for query in queries:
            said.append(generate(model, tokenizer, encoder, query, max_new_tokens))
            bar.advance()
    write_whole(kept, json.dumps({"stamp": stamp, "said": said}, ensure_ascii=False, indent=1).encode())
    return said


def loaded(run: TrainingRun, checkpoint: Checkpoint) -> Any:
    """The checkpoint in float32, on the GPU where torch finds one."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return run.load(checkpoint, dtype=torch.float32, device=device)


def measured(
    run: TrainingRun,
    checkpoint: Checkpoint,
    queries: Sequence[Query],
    format: TokenFormat,
    template: Template,
    patches: Sequence[Sequence[Example]] = ((),),
    step: Step | None = None,
) -> list[dict[str, float]]:
    """What a checkpoint leans to, in nats per token, larger towards the output: the negative of the contrast, or of the
    loss where a query has no corrected output. A group's is the sum of its queries'.

    Args:
        patches: for each, the rows on which the checkpoint is trained first, by `step`; without rows it is as it is.

    Returns:
        For each patch: name of the query or group -> that.

    Raises:
        DataError: a query without output. ModelError: weights that cannot move (quantised).
    """
    import torch

    from headwater.gradients.batches import collate
    from headwater.gradients.directional import Step, nudged
    from headwater.gradients.layers import select_layers
    from headwater.gradients.loss import losses
    from headwater.gradients.measurement import encode_queries

    encoder = Encoder(run.tokenizer(), format, template)
    sides = encode_queries(queries, encoder)
    model = loaded(run, checkpoint)
    device = next(model.parameters()).device
    layers = select_layers(model).layers
    found = []
    with progress.bar("Asking what it leans to", len(patches)) as bar:
        for rows in patches:
            encoded, _ = encoder.examples(rows)
            with nudged(model, layers, encoded, step or Step(steps=1), torch.float32), torch.no_grad():
                loss_S = [float(losses(model, collate([side], device, torch.float32))[0]) for side in sides.encoded]
            values_R = -(sides.matrix("contrast") @ np.array(loss_S))
            found.append({target.name: float(value) for target, value in zip(sides.targets, values_R, strict=True)})
            bar.advance()
    return found


def leanings(name: str, sides: Sides, loaded: Callable[[], Place], state: RunState) -> list[Leaning]:
    """Log-probabilities of the queries' outputs at checkpoint `name`, in nats (sum over the chosen tokens)."""
    kept = state.load(f"{name}/leaning")
    if kept is None:
        import torch

        from headwater.gradients.batches import collate
        from headwater.gradients.loss import losses

        place = loaded()
        sums = np.zeros(len(sides.encoded))
        with torch.no_grad():
            for s, side in enumerate(sides.encoded):
                loss = losses(place.model, collate([side], place.device, place.precision))
                sums[s] = -float(loss[0]) * side.targets
        kept = {"output": sums}
        state.save(f"{name}/leaning", kept)
    return [
        Leaning(
            query=sides.targets[q].name,
            checkpoint=name,
            output=float(kept["output"][o]),
            corrected=float(kept["output"][c]) if c >= 0 else None,
        )
        for q, (o, c) in enumerate(zip(sides.output_Q, sides.corrected_Q, strict=True))
    ]
