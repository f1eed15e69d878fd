"""Inner products of per-example gradients with stored gradients, layer by layer, by the cheapest exact way.

For one layer, side s has gradient G_s = sum_u e_u b_u' (query tokens u) and example i has G_i = sum_t d_t a_t'. Then

    < G_s, G_i > = sum_u sum_t (a_t . b_u)(d_t . e_u)       "factored":     N U (I + O) multiplications
                 = sum_t d_t . (G_s a_t)                    "applied":      S N (I + 1) O
                 = sum of the elements of G_s * G_i         "materialised": N I O + B S I O
    | G_i |^2    = sum_t sum_t' (a_t . a_t')(d_t . d_t')    "gram":         B T^2 (I + O)
                 = sum of the elements of G_i^2             "materialised": N I O + B I O

All give the same number. For every layer and batch the counted multiplications and moved bytes decide.

Shapes: B examples, T tokens (padded), N = B T, I inputs, O outputs, S sides, U tokens of all sides together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from headwater.errors import NumericalError
from headwater.examples import Encoded
from headwater.gradients.batches import Loss, collate, length_buckets
from headwater.gradients.factors import FactorHooks

Form = Literal["factored", "applied", "materialised"]
FORMS: tuple[Form, ...] = ("factored", "applied", "materialised")


def forms_taken(counts: Mapping[Form, int]) -> str:
    """How often each form of contraction was taken, in words."""
    total = sum(counts.values())
    parts = [f"{form} {100 * count / total:.0f} %" for form, count in counts.items() if count]
    return "contractions, by layer and batch: " + (", ".join(parts) or "none")


TOUCH = 10.0
"""What writing and reading a number of an example's gradient costs, in multiplications of a large product."""

SKINNY = 2.5
"""What a multiplication costs in a product as thin as the number of sides."""

SLICE = 64
"""Rows of a weight matrix that are worked on at once on a CPU, so that the gradients of a batch stay in the cache."""

BLOCK_NUMBERS = {"cpu": 1 << 22, "cuda": 1 << 28}
"""Numbers of examples' gradients that are formed at once."""

TOKEN_BLOCK = 1 << 18
"""Numbers of the kernel of query tokens and example tokens that are held at once on a CPU, to stay in the cache."""

LOW_RANK = 256
"""Share of a side's norm in a layer that a low-rank form may leave out, in units of the last place (float32: 3e-5)."""


@dataclass(frozen=True)
class FactoredGradients:
    """Gradients of S sides in one layer, as the tokens (or fewer, equivalent pairs) that make them."""

    b_UI: torch.Tensor
    e_UO: torch.Tensor
    side_U: torch.Tensor
    sides: int

    def gram(self) -> torch.Tensor:
        """< G_s, G_s' > [S, S]."""
        kernel_UU = (self.b_UI @ self.b_UI.T) * (self.e_UO @ self.e_UO.T)
        return self._sum_tokens(self._sum_tokens(kernel_UU).T)

    def by_token(self, a_BTI: torch.Tensor, d_BTO: torch.Tensor) -> torch.Tensor:
        """d_t . (G_s a_t) [S, B, T]; the sum over t is < G_s, G_i >."""
        a_NI, d_NO = a_BTI.flatten(0, 1), d_BTO.flatten(0, 1)
        count, pairs = len(a_NI), len(self.side_U)
        block = count if a_NI.device.type != "cpu" else max(16, TOKEN_BLOCK // max(1, pairs))
        of_side_US = a_NI.new_zeros(pairs, self.sides)
        of_side_US[torch.arange(pairs, device=a_NI.device), self.side_U] = 1.0
        out_NS = a_NI.new_empty(count, self.sides)
        memory = a_NI.new_empty(2, min(block, count), pairs)
        for start in range(0, count, block):
            part = slice(start, min(start + block, count))
            kernel_NU, other_NU = memory[:, : part.stop - start]
            torch.mm(a_NI[part], self.b_UI.T, out=kernel_NU)
            torch.mm(d_NO[part], self.e_UO.T, out=other_NU)
            torch.mm(kernel_NU.mul_(other_NU), of_side_US, out=out_NS[part])
        return out_NS.T.reshape(self.sides, *a_BTI.shape[:2])

    def dots(self, a_BTI: torch.Tensor, d_BTO: torch.Tensor) -> torch.Tensor:
        """< G_s, G_i > [S, B]."""
        return self.by_token(a_BTI, d_BTO).sum(2)

    def low_rank(self) -> FactoredGradients:
        """The same gradients with no more pairs than their numerical rank, where that is fewer."""
        b, e, side = [], [], []
        share = LOW_RANK * torch.finfo(self.b_UI.dtype).eps
        for s in range(self.sides):
            own = self.side_U == s
            q_b, r_b = torch.linalg.qr(self.b_UI[own].T)
            q_e, r_e = torch.linalg.qr(self.e_UO[own].T)
            u, values, v = torch.linalg.svd(r_e @ r_b.T, full_matrices=False)
            energy = values.square().flip(0).cumsum(0).flip(0)  # of each value and all smaller ones
            rank = int((energy > share**2 * energy[:1]).sum()) if len(values) else 0
            if rank >= int(own.sum()):
                b.append(self.b_UI[own])
                e.append(self.e_UO[own])
            else:
                b.append((q_b @ v[:rank].T).T)
                e.append((q_e @ u[:, :rank]).T * values[:rank, None])
            side.append(torch.full((len(b[-1]),), s, device=self.side_U.device))
        return FactoredGradients(torch.cat(b), torch.cat(e), torch.cat(side), self.sides)

    def matrices(self) -> torch.Tensor:
        """G_s [S, O, I]."""
        own = [self.side_U == s for s in range(self.sides)]
        return torch.stack([self.e_UO[at].T @ self.b_UI[at] for at in own])

    def _sum_tokens(self, x_UX: torch.Tensor) -> torch.Tensor:
        out_SX = x_UX.new_zeros(self.sides, x_UX.shape[1])
        return out_SX.index_add_(0, self.side_U, x_UX)


@dataclass(frozen=True)
class DenseGradients:
    """Gradients of S sides in one layer, as matrices.

    Attributes:
        slices: the matrices cut along O, each [S, W, I] and contiguous.
    """

    slices: tuple[torch.Tensor, ...]

    @classmethod
    def of(cls, g_SOI: torch.Tensor) -> DenseGradients:
        width = SLICE if g_SOI.device.type == "cpu" else max(1, g_SOI.shape[1])
        return cls(tuple(piece.contiguous() for piece in torch.split(g_SOI, width, 1)))

    @property
    def sides(self) -> int:
        return self.slices[0].shape[0]

    def gram(self) -> torch.Tensor:
        """< G_s, G_s' > [S, S]."""
        return torch.stack([piece.flatten(1) @ piece.flatten(1).T for piece in self.slices]).sum(0)

    def by_token(self, a_BTI: torch.Tensor, d_BTO: torch.Tensor) -> torch.Tensor:
        """d_t . (G_s a_t) [S, B, T]."""
        a_NI, d_NO = a_BTI.flatten(0, 1), d_BTO.flatten(0, 1)
        out_SN = a_NI.new_zeros(self.sides, len(a_NI))
        for piece, d_NW in zip(self.slices, torch.split(d_NO, self.slices[0].shape[1], 1), strict=True):
            for s, g_WI in enumerate(piece):
                out_SN[s] += torch.einsum("nw,nw->n", a_NI @ g_WI.T, d_NW)
        return out_SN.view(self.sides, *a_BTI.shape[:2])


@dataclass(frozen=True)
class LayerGradients:
    """Gradients of the sides in one layer, in one form or both."""

    tokens: FactoredGradients | None = None
    matrices: DenseGradients | None = None

    def gram(self) -> torch.Tensor:
        one = self.matrices or self.tokens
        assert one is not None
        return one.gram()

    def matrix(self) -> torch.Tensor:
        """The gradients of the sides [S, O, I]."""
        if self.matrices is not None:
            return torch.cat(self.matrices.slices, 1)
        assert self.tokens is not None
        return self.tokens.matrices()

    @property
    def pairs(self) -> int:
        """U."""
        return 0 if self.tokens is None else len(self.tokens.side_U)


@dataclass(frozen=True)
class SideGradients:
    """Gradients of every side in every layer, at one checkpoint: what the examples are contracted against.

    Attributes:
        layers: one entry per layer.
        gram_LSS: inner products of the sides with each other, per layer.
    """

    layers: tuple[LayerGradients, ...]
    gram_LSS: torch.Tensor

    @classmethod
    def of_matrices(cls, matrices: Sequence[torch.Tensor]) -> SideGradients:
        """From gradients [S, O, I] of every layer.

        Raises:
            NumericalError: NaN or infinity among them.
        """
        layers = tuple(LayerGradients(None, DenseGradients.of(g_SOI)) for g_SOI in matrices)
        gram_LSS = torch.stack([layer.gram() for layer in layers])
        if not torch.isfinite(gram_LSS).all():
            raise _not_finite("the gradient of a query")
        return cls(layers, gram_LSS)

    def dense(self) -> SideGradients:
        """The same, every layer as matrices."""
        if all(layer.matrices is not None for layer in self.layers):
            return self
        return SideGradients.of_matrices([layer.matrix() for layer in self.layers])

    def flat(self) -> torch.Tensor:
        """All layers laid end to end [S, F], each O x I by rows; every layer must be there as matrices."""
        stored = [layer.matrices for layer in self.layers]
        return torch.cat([torch.cat([p.flatten(1) for p in one.slices], 1) for one in stored if one is not None], 1)

    def arrays(self) -> dict[str, np.ndarray]:
        """As plain arrays, to be kept for a later visit."""
        out = {"gram_LSS": self.gram_LSS.cpu().numpy()}
        for number, layer in enumerate(self.layers):
            if layer.matrices is not None:
                out[f"{number}/g"] = torch.cat(layer.matrices.slices, 1).cpu().numpy()
            if layer.tokens is not None:
                out |= {f"{number}/{k}": getattr(layer.tokens, k).cpu().numpy() for k in ("b_UI", "e_UO", "side_U")}
        return out

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray], device: torch.device) -> SideGradients:
        """The inverse of `arrays`."""
        layers = []
        tensors = {name: torch.from_numpy(array.copy()).to(device) for name, array in arrays.items()}
        gram_LSS = tensors["gram_LSS"]
        for number in range(len(gram_LSS)):
            matrices = DenseGradients.of(tensors[f"{number}/g"]) if f"{number}/g" in tensors else None
            tokens = None
            if f"{number}/b_UI" in tensors:
                b, e, side = (tensors[f"{number}/{k}"] for k in ("b_UI", "e_UO", "side_U"))
                tokens = FactoredGradients(b, e, side, gram_LSS.shape[1])
            layers.append(LayerGradients(tokens, matrices))
        return cls(tuple(layers), gram_LSS)


def costs(
    rows: float, tokens: float, shape: tuple[int, int], sides: int, pairs: int, *, norm: bool
) -> dict[Form, float]:
    """Cost of one layer and batch in each form, in multiplications of a large matrix product.

    Args:
        rows: B. tokens: T. shape: (I, O). sides: S. pairs: U. norm: whether |G_i| is wanted as well.
    """
    inputs, outputs = shape
    area, both, count = inputs * outputs, inputs + outputs, rows * tokens
    form = count * area + TOUCH * rows * area  # the matrices of the examples
    gram = min(_gram_cost(tokens, inputs, outputs) * rows, form + TOUCH * rows * area) if norm else 0.0
    return {
        "factored": count * pairs * (both + TOUCH) + gram,
        "applied": sides * count * (area + TOUCH * outputs) + gram,
        "materialised": form + rows * area * (TOUCH + SKINNY * sides + TOUCH * norm),
    }


def _gram_cost(tokens: float, inputs: int, outputs: int) -> float:
    """Cost of one example's squared norm by Gram matrices of its tokens."""
    return tokens * tokens * (inputs + outputs + TOUCH)


def cheapest(
    rows: float, tokens: float, shape: tuple[int, int], sides: int, pairs: int, *, norm: bool, forms: Sequence[Form]
) -> Form:
    """The form of least cost among `forms`; arguments as in `costs`."""
    table = costs(rows, tokens, shape, sides, pairs, norm=norm)
    return min(forms, key=lambda form: table[form])


def forward_passes(shapes: Sequence[tuple[int, int]], lengths: Sequence[float], sides: int, batch_tokens: int) -> float:
    """What contracting examples of these lengths with `sides` matrices costs, in forward passes of the layers."""
    shares = []
    for tokens in lengths:
        rows = max(1.0, batch_tokens / tokens)
        found = [costs(rows, tokens, shape, sides, 0, norm=False) for shape in shapes]
        cheapest_of = sum(min(one["applied"], one["materialised"]) for one in found)
        shares.append(cheapest_of / (rows * tokens * sum(inputs * outputs for inputs, outputs in shapes)))
    return sum(shares) / len(shares)


def side_bytes(hooks: FactorHooks, side: Encoded) -> int:
    """Bytes that the gradients of one side take at most, in the smaller of the two representations."""
    numbers = sum(
        min(side.length * uses * (inputs + outputs), inputs * outputs)
        for (inputs, outputs), uses in zip(hooks.shapes, hooks.uses, strict=True)
    )
    return numbers * hooks.precision.itemsize


def side_gradients(
    hooks: FactorHooks,
    sides: Sequence[Encoded],
    *,
    batch_tokens: int,
    lengths: Sequence[float],
    memory: int | None = None,
    form: Form | None = None,
    forms: Sequence[Form] = FORMS,
    examples: int = 1,
    loss: Loss = "likelihood",
) -> SideGradients:
    """Gradient of the mean negative log-likelihood of every side, in the form (or both) that contracts cheapest.

    Args:
        batch_tokens: tokens of a batch, padding included.
        lengths: of short, middling and long examples that will be contracted: they decide the forms.
        memory: bytes for all of it; where the cheaper representation would take more, the smaller one is kept.
        form: the only form that will be used. forms: those that may be (scores by token are never "materialised").
        examples: how many will be contracted; only then is it known whether a low rank is worth finding.
        loss: what the gradients are taken of.

    Raises:
        NumericalError: NaN or infinity in a gradient.
    """
    pairs = [sum(int(side.loss_mask.nonzero()[0][-1]) for side in sides) * uses for uses in hooks.uses]
    wanted: list[set[Form]] = []
    for shape, count in zip(hooks.shapes, pairs, strict=True):
        wanted.append(
            {form}
            if form
            else {
                cheapest(max(1.0, batch_tokens / t), t, shape, len(sides), count, norm=True, forms=forms)
                for t in lengths
            }
        )
    as_tokens = ["factored" in forms for forms in wanted]
    as_matrix = [bool(forms - {"factored"}) for forms in wanted]
    token_numbers = [count * (i + o) for count, (i, o) in zip(pairs, hooks.shapes, strict=True)]
    matrix_numbers = [len(sides) * i * o for i, o in hooks.shapes]
    held = sum(
        t * is_t + m * is_m
        for t, m, is_t, is_m in zip(token_numbers, matrix_numbers, as_tokens, as_matrix, strict=True)
    )
    if memory is not None and held * hooks.precision.itemsize > memory and form is None:
        as_matrix = [m < t for t, m in zip(token_numbers, matrix_numbers, strict=True)]
        as_tokens = [not one for one in as_matrix]
    parts: list[list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]] = [[] for _ in pairs]
    kept: list[torch.Tensor | None] = [
        torch.zeros((len(sides), o, i), dtype=hooks.precision, device=hooks.device) if one else None
        for (i, o), one in zip(hooks.shapes, as_matrix, strict=True)
    ]
    finite = torch.ones((), dtype=torch.bool, device=hooks.device)
    with hooks.attached():
        for rows in length_buckets([side.length for side in sides], batch_tokens):
            batch = collate([sides[row] for row in rows], hooks.device, hooks.precision, loss=loss)
            numbers = torch.tensor(rows, device=hooks.device)

            def keep(number: int, a_BTI: torch.Tensor, d_BTO: torch.Tensor, numbers: torch.Tensor = numbers) -> None:
                matrices = kept[number]
                if matrices is not None:
                    matrices[numbers] = torch.bmm(d_BTO.mT, a_BTI)
                if as_tokens[number]:
                    row, token = (d_BTO != 0).any(2).nonzero(as_tuple=True)
                    parts[number].append((a_BTI[row, token], d_BTO[row, token], numbers[row]))

            finite &= torch.isfinite(hooks.backward(batch, keep)).all()
    if not finite:
        raise _not_finite("the loss of a query")
    layers = []
    for number, matrices in enumerate(kept):
        tokens = None
        if as_tokens[number]:
            b, e, side = (torch.cat(pieces) for pieces in zip(*parts[number], strict=True))
            tokens = FactoredGradients(b, e, side, len(sides))
            if _worth_compressing(tokens, hooks.shapes[number], examples * sum(lengths) / len(lengths)):
                tokens = tokens.low_rank()
        layers.append(LayerGradients(tokens, None if matrices is None else DenseGradients.of(matrices)))
        kept[number] = None
    gram_LSS = torch.stack([layer.gram() for layer in layers])
    if not torch.isfinite(gram_LSS).all():
        raise _not_finite("the gradient of a query")
    return SideGradients(tuple(layers), gram_LSS)


def _worth_compressing(tokens: FactoredGradients, shape: tuple[int, int], count: float) -> bool:
    """Whether halving the pairs would save ten times what finding the low rank costs; `count` example tokens."""
    pairs = len(tokens.side_U)
    each = pairs / max(1, tokens.sides)
    search = tokens.sides * (4 * each**2 * sum(shape) + 30 * each**3)
    return bool(torch.isfinite(tokens.e_UO).all()) and 0.5 * count * pairs * sum(shape) > 10 * search


class Contraction:
    """One layer's contractions with several sets of stored gradients, in the cheapest form for each batch.

    Attributes:
        chosen: how often each form was taken, over all layers and batches.
    """

    def __init__(
        self,
        stored: Sequence[SideGradients],
        *,
        norm: bool,
        form: Form | None = None,
        mapped: Callable[[int, torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self._stored, self._norm, self._form, self._mapped = stored, norm, form, mapped
        self.chosen: dict[Form, int] = dict.fromkeys(FORMS, 0)

    def __call__(
        self, number: int, a_BTI: torch.Tensor, d_BTO: torch.Tensor
    ) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        """Inner products [S, B] of layer `number` with each set, and squared norms [B] if they are wanted."""
        layers = [one.layers[number] for one in self._stored]
        if self._mapped is not None:
            self.chosen["materialised"] += 1
            return self._of_mapped(number, layers, a_BTI, d_BTO)
        form = self._choose(layers, a_BTI, d_BTO)
        self.chosen[form] += 1
        if form == "materialised":
            return self._materialised(layers, a_BTI, d_BTO)
        if form == "factored":
            dots = [layer.tokens.dots(a_BTI, d_BTO) for layer in layers if layer.tokens is not None]
        else:
            dots = [layer.matrices.by_token(a_BTI, d_BTO).sum(2) for layer in layers if layer.matrices is not None]
        return dots, example_norm(a_BTI, d_BTO) if self._norm else None

    def by_token(
        self, number: int, a_BTI: torch.Tensor, d_BTO: torch.Tensor
    ) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        """As a call, with the inner products by token of the examples [S, B, T]."""
        inputs, outputs = a_BTI.shape[2], d_BTO.shape[2]
        dots = []
        for one in self._stored:
            layer, whole = one.layers[number], one.gram_LSS.shape[1] * inputs * outputs
            if layer.tokens is not None and (layer.matrices is None or layer.pairs * (inputs + outputs) < whole):
                dots.append(layer.tokens.by_token(a_BTI, d_BTO))
                self.chosen["factored"] += 1
            elif layer.matrices is not None:
                dots.append(layer.matrices.by_token(a_BTI, d_BTO))
                self.chosen["applied"] += 1
        return dots, example_norm(a_BTI, d_BTO) if self._norm else None

    def _of_mapped(
        self, number: int, layers: Sequence[LayerGradients], a_BTI: torch.Tensor, d_BTO: torch.Tensor
    ) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        """The same for examples whose gradients are formed and changed first."""
        assert self._mapped is not None
        matrices = [layer.matrix().flatten(1) for layer in layers]
        dots = [a_BTI.new_zeros(len(one), len(a_BTI)) for one in matrices]
        squares_B = a_BTI.new_zeros(len(a_BTI))
        size = a_BTI.shape[2] * d_BTO.shape[2]
        rows = max(1, BLOCK_NUMBERS.get(a_BTI.device.type, 1 << 24) // size)
        for start in range(0, len(a_BTI), rows):
            part = slice(start, start + rows)
            g_BD = self._mapped(number, torch.bmm(d_BTO[part].mT, a_BTI[part])).flatten(1)
            for out_SB, one_SD in zip(dots, matrices, strict=True):
                out_SB[:, part] = one_SD @ g_BD.T
            if self._norm:
                squares_B[part] = g_BD.square().sum(1)
        return dots, squares_B if self._norm else None

    def sentence(self) -> str:
        return forms_taken(self.chosen)

    def _choose(self, layers: Sequence[LayerGradients], a_BTI: torch.Tensor, d_BTO: torch.Tensor) -> Form:
        forms: list[Form] = []
        if all(layer.tokens is not None for layer in layers):
            forms.append("factored")
        if all(layer.matrices is not None for layer in layers):
            forms += ["applied", "materialised"]
        if self._form in forms:
            return self._form
        sides = sum(one.gram_LSS.shape[1] for one in self._stored)
        pairs = sum(layer.pairs for layer in layers)
        rows, tokens, inputs = a_BTI.shape
        return cheapest(rows, tokens, (inputs, d_BTO.shape[2]), sides, pairs, norm=self._norm, forms=forms)

    def _materialised(
        self, layers: Sequence[LayerGradients], a_BTI: torch.Tensor, d_BTO: torch.Tensor
    ) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        stored = [layer.matrices for layer in layers if layer.matrices is not None]
        dots = [a_BTI.new_zeros(one.sides, len(a_BTI)) for one in stored]
        squares_B = a_BTI.new_zeros(len(a_BTI))
        for number, (rows, g_BWI) in enumerate(_matrices(a_BTI, d_BTO)):
            for out_SB, one in zip(dots, stored, strict=True):
                out_SB[:, rows] += one.slices[number % len(one.slices)].flatten(1) @ g_BWI.flatten(1).T
            if self._norm:
                squares_B[rows] += _squares(g_BWI)
        return dots, squares_B if self._norm else None


def _matrices(a_BTI: torch.Tensor, d_BTO: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Gradients of the examples [B, W, I]: block of rows by block of rows, and within it slice by slice."""
    inputs, outputs = a_BTI.shape[2], d_BTO.shape[2]
    width = min(outputs, SLICE if a_BTI.device.type == "cpu" else outputs)
    block = max(1, BLOCK_NUMBERS.get(a_BTI.device.type, 1 << 24) // (inputs * width))
    memory = a_BTI.new_empty(min(block, len(a_BTI)) * width * inputs)
    for start in range(0, len(a_BTI), block):
        rows = slice(start, min(start + block, len(a_BTI)))
        for d_BTW in torch.split(d_BTO[rows], width, 2):
            shape = (rows.stop - rows.start, d_BTW.shape[2], inputs)
            g_BWI = memory[: shape[0] * shape[1] * shape[2]].view(shape)
            yield rows, torch.bmm(d_BTW.mT, a_BTI[rows], out=g_BWI)


def example_norm(a_BTI: torch.Tensor, d_BTO: torch.Tensor) -> torch.Tensor:
    """Squared norms |G_i|^2 of one layer [B], by Gram matrices of the tokens or by the matrix itself."""
    tokens, inputs, outputs = a_BTI.shape[1], a_BTI.shape[2], d_BTO.shape[2]
    if _gram_cost(tokens, inputs, outputs) <= (tokens + 2 * TOUCH) * inputs * outputs:
        gram = torch.bmm(a_BTI, a_BTI.mT).mul_(torch.bmm(d_BTO, d_BTO.mT))
        return gram.sum((1, 2)).clamp_min(0)
    squares_B = a_BTI.new_zeros(len(a_BTI))
    for rows, g_BWI in _matrices(a_BTI, d_BTO):
        squares_B[rows] += _squares(g_BWI)
    return squares_B


def _squares(g_BWI: torch.Tensor) -> torch.Tensor:
    norms: torch.Tensor = torch.linalg.vector_norm(g_BWI.flatten(1), dim=1)
    return norms.square()


def _not_finite(what: str) -> NumericalError:
    return NumericalError(
        f"{what} is NaN or infinite",
        expected="finite numbers",
        cause="a model whose weights are broken, or half precision that overflows",
        fix="check the checkpoint, or use --dtype float32",
    )
