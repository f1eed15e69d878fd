"""Which curvature, in which space of gradients, and which function of it.

Plain values: they are part of a method's description, of the names of finished pieces, and of nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from headwater.errors import UsageError
from headwater.gradients.batches import Loss

Kind = Literal["fisher", "diagonal", "adam", "kfac", "ekfac", "datainf"]
PASSES: dict[Kind, int] = {"ekfac": 2, "datainf": 2, "adam": 0, "kfac": 1, "fisher": 1, "diagonal": 1}
"""Passes over the rows that fit it."""
Function = Literal["inverse", "inverse_root", "decay", "integral", "direction"]


@dataclass(frozen=True, kw_only=True, order=True)
class Curvature:
    """A positive semidefinite matrix H per layer, known by eigenvectors and eigenvalues.

    Attributes:
        kind: "fisher": H = 1/N sum_i g_i g_i' of the rows' gradients, whole, for projected gradients. "datainf":
            DataInf's average of rank-one inverses, likewise. "diagonal": the mean square of every gradient entry.
            "adam": the square root of Adam's second moment, from the checkpoint's optimizer state. "kfac", "ekfac":
            Kronecker factors, and the same with corrected eigenvalues.
        damping: lambda, added to the eigenvalues: in units of their mean in each layer, or as it is.
        relative: whether the damping is in units of the mean eigenvalue.
        labels: gradients of the rows' own tokens (empirical Fisher), or of labels sampled from the model (Fisher).
        joint: one matrix over all layers together, not one per layer ("fisher").
        seed: of sampled labels.
    """

    kind: Kind
    damping: float = 0.1
    relative: bool = True
    labels: Literal["data", "sampled"] = "data"
    joint: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise UsageError(
                f"curvature {self.kind!r}", expected=f"one of {', '.join(get_args(Kind))}", fix="choose one"
            )
        if not 0 <= self.damping < float("inf"):
            raise UsageError(f"damping={self.damping!r}", expected="0 or more", fix="correct the damping")
        if self.joint and self.kind != "fisher":
            raise UsageError(f"{self.kind} over all layers together", expected="kind='fisher'", fix="leave joint out")

    @property
    def loss(self) -> Loss:
        """What the gradients it is made of are gradients of."""
        return "sampled" if self.labels == "sampled" else "likelihood"

    @classmethod
    def named(cls, kind: Kind, damping: float | None = None) -> Curvature:
        """The usual form of a kind.

        Damping 0.1 of the mean eigenvalue (Grosse et al. 2023, section 3.1), but for Adam, whose own epsilon is 1e-8,
        and DataInf, which brings its own.
        """
        if kind == "adam":
            return cls(kind=kind, damping=1e-8 if damping is None else damping, relative=False)
        labels: Literal["data", "sampled"] = "sampled" if kind in ("kfac", "ekfac") else "data"
        return cls(kind=kind, damping=0.1 if damping is None else damping, labels=labels)


@dataclass(frozen=True, kw_only=True, order=True)
class Space:
    """What is done to every gradient before anything else.

    Attributes:
        rank: project each layer to rank x rank; 0: as `Compute` says.
        scaled: divide by the roots of the factored second moments of the rows' gradients, as Adafactor does.
        margin: gradients of the margin log(p / (1 - p)) instead of the loss (TRAK).
    """

    rank: int = 0
    scaled: bool = False
    margin: bool = False

    @property
    def loss(self) -> Loss:
        return "margin" if self.margin else "likelihood"


@dataclass(frozen=True, kw_only=True, order=True)
class Source:
    """Which gradients of the rows a pass over them reads: those of one source are the same in every pass."""

    rank: int
    scaled: bool
    loss: Loss
    seed: int = 0

    @classmethod
    def of(cls, space: Space, curvature: Curvature | None = None) -> Source:
        """Of a pass that scores, or that fits a curvature."""
        if curvature is not None and curvature.labels == "sampled":
            return cls(rank=space.rank, scaled=space.scaled, loss=curvature.loss, seed=curvature.seed)
        return cls(rank=space.rank, scaled=space.scaled, loss=space.loss)


@dataclass(frozen=True, kw_only=True, order=True)
class Step:
    """One multiplication by f(H) of a checkpoint.

    Attributes:
        at: the checkpoint whose curvature it is.
        function: with x an eigenvalue and lambda the damping: "inverse" 1 / (x + lambda); "inverse_root" its square
            root; "decay" exp(-amount (x + lambda)); "integral" (1 - exp(-amount (x + lambda))) / (x + lambda), both
            SOURCE's. "direction": not linear, a row's gradient becomes the update that Adam would make of it (LESS).
        amount: learning rate x steps.
    """

    curvature: Curvature
    at: str
    function: Function = "inverse"
    amount: float = 0.0


PLAIN = Space()
"""Gradients as they are."""
