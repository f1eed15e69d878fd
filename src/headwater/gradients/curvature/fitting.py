"""Fits curvature from the rows' gradients: sums over the rows, then eigenvectors in float64.

    fisher     H = 1/N sum_i g_i g_i'                                                    per layer, or jointly
    datainf    P = 1/lambda (1 - 1/N sum_i g_i g_i' / (lambda + |g_i|^2)),
               lambda = 0.1 mean_i mean(g_i^2)                        Kwon et al. 2024, arXiv 2310.00902, equation 5
    diagonal   H = diag(1/N sum_i g_i^2)
    kfac       A = 1/M sum_t a_t a_t',  S = 1/N sum_t d_t d_t',  H = S (x) A             Martens and Grosse 2015
    ekfac      H = (Q_S (x) Q_A) diag(1/N sum_i (Q_S' G_i Q_A)^2) (Q_S (x) Q_A)'         George et al. 2018

over N rows with M positions that are not padding. Sums are made in the order of the rows' batches and kept as they
are, so that a fit that was interrupted goes on to the same result.

Shapes: B examples, T tokens (padded), I inputs, O outputs, D = O I of a layer, F of all layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from headwater.errors import NumericalError, UsageError
from headwater.gradients.batches import Batch
from headwater.gradients.contraction import BLOCK_NUMBERS, SLICE
from headwater.gradients.curvature.options import Curvature
from headwater.gradients.curvature.spectrum import Basis, Spectrum
from headwater.gradients.factors import FactorHooks

MOST_FEATURES = 8192
"""Side of the largest matrix whose eigenvectors are found."""

BLOCK = 256
"""Columns of a wide symmetric product that are made at once."""

CACHED = 1 << 17
"""Numbers of gradients that stay in the second-level cache of a CPU while they are squared."""

FROM_FEATURES = ("fisher", "datainf", "diagonal")
"""Kinds that the rows' (projected) gradients decide."""

Sums = dict[str, torch.Tensor]
"""Running sums by name; "N" counts rows."""


class Stage:
    """One pass over the rows: what is added up, batch by batch."""

    whole = False
    """Whether it wants every position that is not padding (hooks with trim=False)."""

    def __init__(self, shapes: Sequence[tuple[int, int]]) -> None:
        self.shapes = list(shapes)
        self.sums: Sums = {}

    def add(self, name: str, value: torch.Tensor) -> None:
        if name in self.sums:
            self.sums[name].add_(value)
        else:
            self.sums[name] = value.clone()

    def batch(self, hooks: FactorHooks, batch: Batch) -> None:
        """Adds a batch."""
        self.add("N", torch.tensor(float(batch.shape[0]), dtype=torch.float64))
        hooks.backward(batch, lambda number, a_BTI, d_BTO: self.layer(number, a_BTI, d_BTO, batch))

    def layer(self, number: int, a_BTI: torch.Tensor, d_BTO: torch.Tensor, batch: Batch) -> None:
        """Adds one layer of a batch."""
        rows = max(1, BLOCK_NUMBERS.get(a_BTI.device.type, 1 << 24) // (a_BTI.shape[2] * d_BTO.shape[2]))
        for start in range(0, len(a_BTI), rows):
            part = slice(start, start + rows)
            self.matrices(number, torch.bmm(d_BTO[part].mT, a_BTI[part]))

    def matrices(self, number: int, g_BOI: torch.Tensor) -> None:
        """Adds gradients of some examples in one layer."""
        raise NotImplementedError


class Moments(Stage):
    """Row and column sums of the mean squared gradient: the factored second moment of Adafactor (Shazeer and Stern
    2018). V = r c' / sum(r), so that G / sqrt(V) scales inputs and outputs."""

    def matrices(self, number: int, g_BOI: torch.Tensor) -> None:
        square_OI = g_BOI.square().sum(0)
        self.add(f"{number}/in", square_OI.sum(0).double())
        self.add(f"{number}/out", square_OI.sum(1).double())

    def scales(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """1 / sqrt(V) as factors of inputs and of outputs; entries that never moved keep 0."""
        found = []
        for number in range(len(self.shapes)):
            c_I, r_O = (self.sums[f"{number}/{side}"] / self.sums["N"].to(self.sums[f"{number}/in"].device)
                        for side in ("in", "out"))  # fmt: skip
            found.append((_root_inverse(c_I), _root_inverse(r_O / r_O.sum().clamp_min(1e-300))))
        return found


class Squares(Stage):
    """Mean squares of the entries, and of each row's whole gradient."""

    def matrices(self, number: int, g_BOI: torch.Tensor) -> None:
        self.add(f"{number}/squares", g_BOI.square().sum(0))


class Outer(Stage):
    """Sums of outer products per layer; each row's weighted by 1 / (lambda + |g|^2) where lambdas are given."""

    def __init__(self, shapes: Sequence[tuple[int, int]], lambdas: Sequence[float] | None = None) -> None:
        super().__init__(shapes)
        self._lambdas = lambdas
        refuse_large([inputs * outputs for inputs, outputs in shapes], "a layer")

    def matrices(self, number: int, g_BOI: torch.Tensor) -> None:
        g_BD = g_BOI.flatten(1)
        weighted_BD = g_BD
        if self._lambdas is not None:
            weighted_BD = g_BD / (self._lambdas[number] + g_BD.square().sum(1, keepdim=True)).clamp_min(1e-300)
        self.add(f"{number}/outer", g_BD.T @ weighted_BD)


class JointOuter(Stage):
    """Sums of outer products of whole gradients, all layers laid end to end."""

    def __init__(self, shapes: Sequence[tuple[int, int]]) -> None:
        super().__init__(shapes)
        refuse_large([sum(inputs * outputs for inputs, outputs in shapes)], "all layers together")

    def batch(self, hooks: FactorHooks, batch: Batch) -> None:
        found: dict[int, torch.Tensor] = {}
        hooks.backward(batch, lambda n, a_BTI, d_BTO: found.update({n: torch.bmm(d_BTO.mT, a_BTI).flatten(1)}))
        self.rows(torch.cat([found[number] for number in range(len(self.shapes))], 1))

    def rows(self, g_BF: torch.Tensor) -> None:
        """Adds gradients of some examples."""
        self.add("N", torch.tensor(float(len(g_BF)), dtype=torch.float64))
        self.add("0/outer", g_BF.T @ g_BF)


class Covariances(Stage):
    """A and S of every layer. Layers that read the same tensor (query, key and value, say) share A."""

    whole = True

    def __init__(self, shapes: Sequence[tuple[int, int]]) -> None:
        super().__init__(shapes)
        self._last: tuple[int, torch.Tensor] | None = None
        self.leader: dict[int, int] = {}
        """Layer -> the layer whose A is its own."""

    def batch(self, hooks: FactorHooks, batch: Batch) -> None:
        self._last = None
        self.add("M", batch.attention_BT.sum().double().cpu())
        super().batch(hooks, batch)
        self._last = None

    def layer(self, number: int, a_BTI: torch.Tensor, d_BTO: torch.Tensor, batch: Batch) -> None:
        self.add(f"{number}/S", gram(d_BTO.flatten(0, 1)))
        if number not in self.leader:
            same = self._last is not None and self._last[1].data_ptr() == a_BTI.data_ptr()
            self.leader[number] = self.leader[self._last[0]] if self._last is not None and same else number
        self._last = (number, a_BTI)  # kept, so that its memory is not given to another
        if self.leader[number] != number:
            return
        applications = a_BTI.shape[1] // batch.shape[1]
        real_BT1 = batch.attention_BT.repeat(1, applications)[:, :, None].to(a_BTI)
        a_NI = (a_BTI * real_BT1).flatten(0, 1)
        self.add(f"{number}/A", gram(a_NI))

    def bases(self) -> list[Basis]:
        """Eigenvectors of A and S, eigenvalues of their product."""
        found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        out = []
        for number in range(len(self.shapes)):
            leader = self.leader[number]
            if f"{leader}/A" not in found:
                found[f"{leader}/A"] = eigen(self.sums[f"{leader}/A"] / float(self.sums["M"]))
            x_I, q_II = found[f"{leader}/A"]
            x_O, q_OO = eigen(self.sums[f"{number}/S"] / float(self.sums["N"]))
            out.append(Basis(torch.outer(x_O, x_I), outputs_OO=q_OO, inputs_II=q_II))
        return out


class Corrected(Stage):
    """Mean squares of the gradients' entries in the eigenbases of A and S."""

    def __init__(self, shapes: Sequence[tuple[int, int]], bases: Sequence[Basis]) -> None:
        super().__init__(shapes)
        self._bases = bases
        self._last: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def batch(self, hooks: FactorHooks, batch: Batch) -> None:
        super().batch(hooks, batch)
        self._last = None

    def _inputs(self, a_BTI: torch.Tensor, q_II: torch.Tensor) -> torch.Tensor:
        """a Q_A, made once for layers that read the same tensor."""
        last = self._last
        if last is None or last[0].data_ptr() != a_BTI.data_ptr() or last[1] is not q_II:
            last = self._last = (a_BTI, q_II, a_BTI @ q_II)
        return last[2]

    def layer(self, number: int, a_BTI: torch.Tensor, d_BTO: torch.Tensor, batch: Batch) -> None:
        basis, (rows, tokens, inputs) = self._bases[number], a_BTI.shape
        outputs = d_BTO.shape[2]
        assert basis.outputs_OO is not None and basis.inputs_II is not None
        q_OO, q_II = basis.outputs_OO, basis.inputs_II
        # a side of the tokens is rotated where that is cheaper than rotating the finished matrices
        rotated = tokens * outputs**2 < inputs * outputs**2, tokens * inputs**2 < outputs * inputs**2
        d_BTO = d_BTO @ q_OO if rotated[0] else d_BTO
        a_BTI = self._inputs(a_BTI, q_II) if rotated[1] else a_BTI
        key = f"{number}/squares"
        if key not in self.sums:
            self.sums[key] = a_BTI.new_zeros(outputs, inputs)
        if all(rotated):
            for first, g_BWI in slices(a_BTI, d_BTO):
                self.sums[key][first : first + g_BWI.shape[1]] += g_BWI.square_().sum(0)
            return
        block = max(1, BLOCK_NUMBERS.get(a_BTI.device.type, 1 << 24) // (inputs * outputs))
        for start in range(0, rows, block):
            g_BOI = torch.bmm(d_BTO[start : start + block].mT, a_BTI[start : start + block])
            g_BOI = g_BOI if rotated[0] else q_OO.T @ g_BOI
            g_BOI = g_BOI if rotated[1] else g_BOI @ q_II
            self.sums[key] += g_BOI.square_().sum(0)


def slices(a_BTI: torch.Tensor, d_BTO: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """The examples' gradients some outputs and examples at a time, few enough to stay in a CPU's cache: (first
    output, [B', W, I])."""
    on_cpu = a_BTI.device.type == "cpu"
    width = SLICE if on_cpu else d_BTO.shape[2]
    count = max(1, CACHED // (width * a_BTI.shape[2])) if on_cpu else len(a_BTI)
    for start in range(0, len(a_BTI), count):
        part = slice(start, start + count)
        for first in range(0, d_BTO.shape[2], width):
            yield first, torch.bmm(d_BTO[part, :, first : first + width].mT, a_BTI[part])


def gram(x_NX: torch.Tensor) -> torch.Tensor:
    """x' x [X, X]; of a wide one only the blocks on and above the diagonal are multiplied."""
    size = x_NX.shape[1]
    if size <= BLOCK or x_NX.device.type != "cpu":
        return x_NX.T @ x_NX
    out_XX = x_NX.new_empty(size, size)
    for start in range(0, size, BLOCK):
        rows, rest = slice(start, start + BLOCK), slice(start, size)
        out_XX[rows, rest] = x_NX[:, rows].T @ x_NX[:, rest]
        out_XX[rest, rows] = out_XX[rows, rest].T
    return out_XX


def eigen(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues (none below 0) and eigenvectors of a symmetric matrix, found in float64.

    Raises:
        NumericalError: NaN or infinity in it.
    """
    if not torch.isfinite(matrix).all():
        raise NumericalError(
            "the curvature is NaN or infinite",
            expected="finite numbers",
            cause="a checkpoint with broken weights, or half precision that overflows",
            fix="check the checkpoint, or use --dtype float32",
        )
    double = matrix.double()
    values, vectors = torch.linalg.eigh((double + double.T) / 2)
    return values.clamp_min(0), vectors.to(matrix.dtype)


def refuse_large(sizes: Sequence[int], what: str) -> None:
    """Raises UsageError where the whole matrix of a layer (or of all of them) is too large."""
    largest = max(sizes)
    if largest > MOST_FEATURES:
        raise UsageError(
            f"a whole Fisher matrix over {largest:,} numbers of {what}",
            expected=f"at most {MOST_FEATURES:,}",
            cause="no projection, or one of a high rank",
            fix="choose a smaller --rank, or the curvature kfac, ekfac or diagonal",
        )


def spectrum_of(curvature: Curvature, stages: Sequence[Any]) -> Spectrum:
    """The fitted curvature, from its finished stages."""
    last = stages[-1]
    layers = range(len(last.shapes))
    count = float(last.sums["N"])
    if curvature.kind == "kfac":
        return Spectrum(curvature, tuple(last.bases()))
    if curvature.kind == "ekfac":
        bases = stages[0].bases()
        return Spectrum(
            curvature,
            tuple(
                Basis(last.sums[f"{n}/squares"] / count, outputs_OO=bases[n].outputs_OO, inputs_II=bases[n].inputs_II)
                for n in layers
            ),
        )
    if curvature.kind == "diagonal":
        return Spectrum(curvature, tuple(Basis(last.sums[f"{n}/squares"] / count) for n in layers))
    found = [eigen(last.sums[f"{n}/outer"] / count) for n in (range(1) if curvature.joint else layers)]
    if curvature.kind == "datainf":  # P = (1 - mu) / lambda, as eigenvalues x with P = 1 / x
        lambdas = datainf_lambdas(stages[0])
        found = [(lam / (1 - x).clamp_min(1e-12), q) for (x, q), lam in zip(found, lambdas, strict=True)]
    return Spectrum(curvature, tuple(Basis(x, whole_DD=q) for x, q in found))


def fit_features(
    curvature: Curvature, shapes: Sequence[tuple[int, int]], chunks: Callable[[], Iterable[torch.Tensor]]
) -> Spectrum:
    """Curvature of gradients that are there already.

    Args:
        chunks: starts a pass over them: some rows' gradients [B, F] at a time, all layers laid end to end.

    Raises:
        UsageError: a kind that gradients alone do not decide.
    """
    if curvature.kind not in FROM_FEATURES or curvature.labels != "data":
        raise UsageError(
            f"the curvature {curvature.kind} from an index",
            expected=f"one that the stored gradients decide: {', '.join(FROM_FEATURES)}",
            fix="choose one of these, or trace with --train and --checkpoints instead of --index",
        )
    stages: list[Stage] = []
    stage: Stage | None = first_stage(curvature, shapes)
    while stage is not None:
        for g_BF in chunks():
            taught = g_BF[g_BF.any(1)]  # rows without targets, and others that teach nothing, are not rows here
            if isinstance(stage, JointOuter):
                stage.rows(taught)
                continue
            stage.add("N", torch.tensor(float(len(taught)), dtype=torch.float64))
            start = 0
            for number, (inputs, outputs) in enumerate(shapes):
                stop = start + inputs * outputs
                stage.matrices(number, taught[:, start:stop].reshape(-1, outputs, inputs))
                start = stop
        stages.append(stage)
        stage = next_stage(curvature, stages)
    return spectrum_of(curvature, stages)


def datainf_lambdas(squares: Stage) -> list[float]:
    """0.1 times the mean over rows and entries of g^2, per layer."""
    count = float(squares.sums["N"])
    return [0.1 * float(squares.sums[f"{n}/squares"].double().mean()) / count for n in range(len(squares.shapes))]


def first_stage(curvature: Curvature, shapes: Sequence[tuple[int, int]]) -> Stage:
    if curvature.kind in ("kfac", "ekfac"):
        return Covariances(shapes)
    if curvature.kind in ("diagonal", "datainf"):
        return Squares(shapes)
    return JointOuter(shapes) if curvature.joint else Outer(shapes)


def next_stage(curvature: Curvature, stages: Sequence[Any]) -> Stage | None:
    """The pass that follows, or None where the fit is complete."""
    if len(stages) == 2 or curvature.kind not in ("ekfac", "datainf"):
        return None
    shapes = stages[0].shapes
    if curvature.kind == "ekfac":
        return Corrected(shapes, stages[0].bases())
    return Outer(shapes, datainf_lambdas(stages[0]))


def stage_arrays(stage: Stage) -> dict[str, np.ndarray]:
    out = {name: value.cpu().numpy() for name, value in stage.sums.items()}
    if isinstance(stage, Covariances):
        out["leaders"] = np.array([stage.leader[n] for n in range(len(stage.shapes))])
    return out


def restore(stage: Stage, arrays: dict[str, np.ndarray], device: torch.device) -> None:
    """The inverse of `stage_arrays`."""
    for name, array in arrays.items():
        if name == "leaders":
            assert isinstance(stage, Covariances)
            stage.leader = {n: int(leader) for n, leader in enumerate(array)}
        else:
            tensor = torch.from_numpy(np.array(array))
            stage.sums[name] = tensor if name in ("N", "M") else tensor.to(device)


def _root_inverse(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x > 0, x.clamp_min(1e-300).rsqrt(), 0.0)
