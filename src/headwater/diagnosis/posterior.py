"""How far a checkpoint's token posteriors are from the base model's.

    KL_t = sum_v p_c(v | tokens before t) log ( p_c(v | ...) / p_0(v | ...) )         in nats, mean over positions t

with p_0 the base model and p_c the checkpoint: what "Low-rank Finetuning for LLMs: A Fairness Perspective" (Das et al.
2024, arXiv 2405.18572) compares over LoRA ranks, to see how much of the base model's leaning a fine-tuning leaves in
place. That token posteriors are compared by KL is theirs (C); direction, positions and mean are ours (D). Beside it: at
how many positions the checkpoint's first choice is still the base's.

Two models need not be in memory at once: the base's posteriors at a limited number of positions are kept in the
state, and dropped when every checkpoint was compared.

Shapes: K positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from headwater import progress
from headwater.examples import Encoded
from headwater.run import RunState

if TYPE_CHECKING:
    import torch

    from headwater.attribution.models import Place

MOST_POSITIONS = 512
"""Of a set of texts, evenly spaced: the mean over these is exact enough, and V numbers are kept for each."""


def limited(texts: Sequence[Encoded], most: int = MOST_POSITIONS) -> list[Encoded]:
    """The texts with at most `most` targets in all, evenly spaced; those that keep none are left out."""
    total = sum(one.targets for one in texts)
    kept = np.zeros(total, bool)
    kept[np.linspace(0, total - 1, min(most, total)).round().astype(int)] = True
    out, first = [], 0
    for one in texts:
        mask = one.loss_mask.copy()
        mask[np.flatnonzero(mask)] = kept[first : first + one.targets]
        first += one.targets
        if mask.any():
            out.append(Encoded(one.input_ids, mask))
    return out


class Posteriors:
    """The base's posteriors on some sets of texts, and what the checkpoints make of them.

    Args:
        texts: name of a set -> its texts, with few targets (`limited`).
    """

    def __init__(self, texts: dict[str, list[Encoded]], batch_tokens: int, state: RunState, bar: progress.Bar) -> None:
        from headwater.gradients.batches import length_buckets

        self._texts, self._state, self._bar = texts, state, bar
        self._batches = {
            name: list(length_buckets([one.length for one in of], batch_tokens)) for name, of in texts.items()
        }
        self.tokens = sum(one.length for of in texts.values() for one in of)

    def keep_base(self, base: str, loaded: Callable[[], Place], needed: bool) -> None:
        """Keeps the base's posteriors, where some checkpoint was not compared yet.

        Args:
            needed: whether that is so.
        """
        for name, batches in self._batches.items():
            for number, rows in enumerate(batches):
                piece = f"{base}/posteriors-{name}-{number:04d}"
                if needed and self._state.load(piece) is None:
                    log_p_KV = self._log_posteriors(loaded(), name, rows)
                    self._state.save(piece, {"log_p": log_p_KV.float().cpu().numpy()})
                self._bar.advance(sum(self._texts[name][row].length for row in rows))

    def compared(self, checkpoint: str) -> bool:
        """Whether a checkpoint was compared with the base already."""
        return all(self._state.load(f"{checkpoint}/divergence-{name}") is not None for name in self._texts)

    def compare(self, base: str, checkpoint: str, loaded: Callable[[], Place]) -> dict[str, tuple[float, float]]:
        """Name of a set -> mean KL to the base in nats per position, and share of the base's first choices kept."""
        import torch

        found = {}
        for name, batches in self._batches.items():
            piece = f"{checkpoint}/divergence-{name}"
            kept = self._state.load(piece)
            if kept is None:
                parts = []
                for number, rows in enumerate(batches):
                    own_KV = self._log_posteriors(loaded(), name, rows).double()
                    stored = self._state.load(f"{base}/posteriors-{name}-{number:04d}")
                    if stored is None:
                        raise RuntimeError(f"the posteriors of {base} on {name} were not kept")
                    base_KV = torch.from_numpy(stored["log_p"]).to(own_KV)
                    same_K = own_KV.argmax(1) == base_KV.argmax(1)
                    parts.append(torch.stack([(own_KV.exp() * (own_KV - base_KV)).sum(1), same_K.double()]))
                both_2K = torch.cat(parts, 1).cpu().numpy()
                kept = {"kl": both_2K[0], "same": both_2K[1]}
                self._state.save(piece, kept)
            self._bar.advance(sum(one.length for one in self._texts[name]))
            found[name] = (max(0.0, float(kept["kl"].mean())), float(kept["same"].mean()))
        return found

    def drop(self, base: str) -> None:
        """Forgets the base's posteriors."""
        for name, batches in self._batches.items():
            for number in range(len(batches)):
                self._state.drop(f"{base}/posteriors-{name}-{number:04d}")

    def _log_posteriors(self, place: Place, name: str, rows: Sequence[int]) -> torch.Tensor:
        """log p [K, V] at the targets of some texts."""
        import torch

        from headwater.gradients.batches import collate
        from headwater.gradients.loss import token_logits

        batch = collate([self._texts[name][row] for row in rows], place.device, place.precision)
        with torch.no_grad():
            return token_logits(place.model, batch).log_softmax(1)
