"""The truth for small models: the exact derivative of a measurement after training with respect to every row's weight.

Ilyas and Engstrom 2025, "MAGIC: Near-Optimal Data Attribution for Deep Learning", arXiv 2504.16430, section 3: the
training run is a function of the rows' weights w (all 1 in the run), and the influence of row i on a measurement is

    score[q, i] = - d m_q(theta_T(w)) / d w_i

by reverse-mode differentiation through every step of the optimizer ("replay", Engstrom et al. 2025, arXiv 2503.13751).
Sign as in `scores.py`: positive means that more weight on the row pushes the model towards the query's output.
`leave_one_out` retrains without a row and is what the derivative predicts: m(w_i = 0) - m(all), about score[q, i].

The loop is the plainest one: evaluation mode (no dropout), one fixed order, no clipping of gradients (a recipe has no
maximum gradient norm), all trainable parameters. A batch's loss is sum_i w_i l_i / batch_size, with l_i the row's mean
negative log-likelihood in nats; the last batch of an epoch may be short and is divided by batch_size all the same.
The default eps of 1e-8 makes Adam nearly the sign of the gradient, whose derivative foretells no change as large as a
whole row; the paper trains "metasmooth" models, here a larger eps.

Memory: about 2 sqrt(steps) optimizer states; the states between two kept ones are made again.

Shapes: P parameters, all in one vector; N rows; B rows of a batch; K targets of a batch; V vocabulary; Q queries.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from headwater.errors import DataError, ModelError, NumericalError, UsageError
from headwater.examples import Encoded
from headwater.gradients.batches import collate
from headwater.gradients.loss import by_example

Optimizer = Literal["adamw", "sgd"]
Schedule = Literal["constant", "linear"]
Measure = Sequence[Sequence[tuple[Encoded, float]]]
"""The measurement of each query: m_q = sum of weight x l(side). An output has weight 1, a corrected output -1."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train. Gradients are not clipped: a maximum gradient norm is not supported.

    Attributes:
        learning_rate: at the start. schedule: constant, or falling linearly to 0 after the last step.
        batch_size: rows of a step. betas, eps: AdamW's. weight_decay: decoupled, of every parameter.
        seed: of the order of the rows, a new one in each epoch.
    """

    optimizer: Optimizer = "adamw"
    learning_rate: float = 1e-3
    schedule: Schedule = "linear"
    epochs: int = 4
    batch_size: int = 16
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, holds, wanted in (
            ("optimizer", self.optimizer, self.optimizer in get_args(Optimizer), "adamw or sgd"),
            ("learning_rate", self.learning_rate, 0 < self.learning_rate < math.inf, "above 0"),
            ("schedule", self.schedule, self.schedule in get_args(Schedule), "constant or linear"),
            ("epochs", self.epochs, self.epochs >= 1, "at least 1"),
            ("batch_size", self.batch_size, self.batch_size >= 1, "at least 1"),
            ("betas", self.betas, all(0 <= beta < 1 for beta in self.betas), "two numbers from 0 to below 1"),
            ("eps", self.eps, 0 < self.eps < math.inf, "above 0"),
            ("weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "0 or above"),
            ("seed", self.seed, 0 <= self.seed < 2**32, "from 0 to below 2**32"),
        ):
            if not holds:
                raise UsageError(f"{name} = {value!r}", expected=wanted, fix=f"choose another {name}")


@dataclass(frozen=True)
class State:
    """Parameters and Adam's first and second moment (zeros for SGD), all [P]."""

    theta_P: torch.Tensor
    m_P: torch.Tensor
    v_P: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """A finished training.

    Attributes:
        states: number of finished steps -> state there: about every sqrt(steps), and at the end of every epoch.
        weights_N: w, the rows' weights.
        epoch_ends: finished steps at the end of each epoch.
        learning_rates, losses: of each step; the loss is the batch's, in nats.
    """

    recipe: Recipe
    weights_N: npt.NDArray[np.float64]
    states: Mapping[int, State]
    epoch_ends: tuple[int, ...]
    learning_rates: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def end(self) -> State:
        return self.states[self.epoch_ends[-1]]


def train(
    model: Any, encoded: Sequence[Encoded], recipe: Recipe, *, weights_N: npt.ArrayLike | None = None
) -> Trajectory:
    """Trains from the model's present parameters; the model itself stays as it is.

    Args:
        weights_N: w, one weight for each row; all 1 if not given.

    Raises:
        ModelError: attention that cannot be differentiated twice, nothing to train. DataError: no rows, or weights
            that are not one per row. NumericalError: the loss became NaN or infinite.
    """
    loop = _Loop(model, encoded, recipe)
    w_N = loop.weights(weights_N)
    state = loop.start()
    stride = max(1, math.isqrt(loop.steps))
    states, losses = {0: state}, []
    for step in range(loop.steps):
        state, loss = loop.advance(state, step, w_N)
        losses.append(loss)
        if (step + 1) % stride == 0 or step + 1 in loop.epoch_ends:
            states[step + 1] = state
    return Trajectory(
        recipe=recipe,
        weights_N=w_N.double().cpu().numpy(),
        states=states,
        epoch_ends=loop.epoch_ends,
        learning_rates=loop.rates,
        losses=tuple(losses),
    )


def exact_influence(
    model: Any, encoded: Sequence[Encoded], recipe: Recipe, trajectory: Trajectory, measure: Measure
) -> npt.NDArray[np.float64]:
    """- d m_q(theta_T) / d w_i at w = 1 [Q, N], exactly, by one sweep backwards over the steps.

    Args:
        trajectory: what `train` returned for this model, these rows and this recipe, without weights.

    Raises:
        DataError: a trajectory of something else, no query. ModelError: as `train`.
    """
    loop = _Loop(model, encoded, recipe)
    loop.require(trajectory)
    w_N = loop.weights(None)
    ends = [loop.losses.measured(trajectory.end.theta_P, sides, gradient=True)[1] for sides in _some(measure)]
    # the adjoints d m / d theta, d m / d (Adam's m), d m / d (Adam's v), [Q, P] each
    theta_QP = torch.stack(ends)
    m_QP, v_QP = torch.zeros_like(theta_QP), torch.zeros_like(theta_QP)
    scores_QN = np.zeros((len(ends), len(encoded)))
    kept = sorted(trajectory.states)
    for first, last in reversed(list(pairwise(kept))):
        path = [trajectory.states[first]]
        for step in range(first, last - 1):
            path.append(loop.advance(path[-1], step, w_N)[0])
        for step in reversed(range(first, last)):
            state, batch = path.pop(), loop.batches[step]
            leaf_P = state.theta_P.clone().requires_grad_()
            w_B = w_N[batch].requires_grad_()
            g_P = torch.autograd.grad(loop.loss(leaf_P, batch, w_B), leaf_P, create_graph=True)[0]
            theta_QP, m_QP, v_QP, g_QP = loop.adjoint(step, state, g_P.detach(), theta_QP, m_QP, v_QP)
            for q, a_P in enumerate(g_QP):  # d <g(theta, w), a> / d theta = H a;   d <g, a> / d w_i = <grad l_i, a> / B
                hessian_P, row_B = torch.autograd.grad(g_P @ a_P, (leaf_P, w_B), retain_graph=True)
                theta_QP[q] += hessian_P
                scores_QN[q, batch] -= row_B.double().cpu().numpy()
    if not np.isfinite(scores_QN).all():
        raise NumericalError(
            f"{int((~np.isfinite(scores_QN)).sum())} of {scores_QN.size} derivatives are NaN or infinite",
            expected="numbers",
            cause="a learning rate at which small changes grow from step to step, or a very small eps",
            fix="train with a smaller learning rate or a larger eps, or in float64",
        )
    return scores_QN


def leave_one_out(
    model: Any,
    encoded: Sequence[Encoded],
    recipe: Recipe,
    trajectory: Trajectory,
    measure: Measure,
    rows: Sequence[int],
) -> npt.NDArray[np.float64]:
    """m_q(w_i = 0) - m_q(all) for each chosen row [Q, rows], by training again without it: same start, same order.

    The sign is that of `exact_influence`, which is its first-order prediction.

    Raises:
        DataError: a trajectory of something else, no query, no such row. ModelError, NumericalError: as `train`.
    """
    loop = _Loop(model, encoded, recipe)
    loop.require(trajectory)
    wanted = _some(measure)
    whole_Q = [loop.losses.measured(trajectory.end.theta_P, sides)[0] for sides in wanted]
    out = np.zeros((len(wanted), len(rows)))
    for column, row in enumerate(rows):
        if not 0 <= row < len(encoded):
            raise DataError(f"row {row}", expected=f"0 to {len(encoded) - 1}", fix="choose rows of the training data")
        w_N = loop.weights(None)
        w_N[row] = 0.0
        first = next(step for step, batch in enumerate(loop.batches) if row in batch)
        start = max(step for step in trajectory.states if step <= first)
        state = trajectory.states[start]
        for step in range(start, loop.steps):
            state, _ = loop.advance(state, step, w_N)
        out[:, column] = [
            loop.losses.measured(state.theta_P, sides)[0] - whole for sides, whole in zip(wanted, whole_Q, strict=True)
        ]
    return out


def measured(model: Any, trajectory: Trajectory, measure: Measure) -> npt.NDArray[np.float64]:
    """m of each query at the end of the training [Q], in nats."""
    losses = _Losses(model)
    return np.array([losses.measured(trajectory.end.theta_P, sides)[0] for sides in _some(measure)])


def save_run(folder: Path, model: Any, tokenizer: Any, trajectory: Trajectory) -> None:
    """Writes the training as Trainer leaves it: folder/base and, for each epoch, folder/run/checkpoint-<step> with
    weights, tokenizer, trainer_state.json (every step's learning rate) and optimizer.pt (Adam's moments)."""
    parameters = [one for one in model.parameters() if one.requires_grad]
    before_P = _flat(parameters)
    per_epoch = trajectory.epoch_ends[0]
    history = [
        {"step": step, "epoch": step / per_epoch, "learning_rate": rate, "loss": loss}
        for step, (rate, loss) in enumerate(zip(trajectory.learning_rates, trajectory.losses, strict=True), 1)
    ]
    try:
        for number, step in enumerate((0, *trajectory.epoch_ends)):
            state = trajectory.states[step]
            place = folder / "run" / f"checkpoint-{step}" if step else folder / "base"
            torch.nn.utils.vector_to_parameters(state.theta_P, parameters)
            model.save_pretrained(place)
            tokenizer.save_pretrained(place)
            if not step:
                continue
            record = {"global_step": step, "epoch": float(number), "log_history": history[:step]}
            (place / "trainer_state.json").write_text(json.dumps(record, indent=1) + "\n")
            if trajectory.recipe.optimizer == "adamw":
                sizes = [one.numel() for one in parameters]
                moments = zip(parameters, torch.split(state.m_P, sizes), torch.split(state.v_P, sizes), strict=True)
                adam = {
                    n: {"step": torch.tensor(float(step)), "exp_avg": m.view_as(p), "exp_avg_sq": v.view_as(p)}
                    for n, (p, m, v) in enumerate(moments)
                }
                groups = [{"lr": trajectory.learning_rates[step - 1], "params": list(adam)}]
                torch.save({"state": adam, "param_groups": groups}, place / "optimizer.pt")
    finally:
        torch.nn.utils.vector_to_parameters(before_P, parameters)


class _Losses:
    """The losses of rows as a function of all trainable parameters in one vector, differentiable twice."""

    def __init__(self, model: Any) -> None:
        found = getattr(model.config, "_attn_implementation", "eager")
        if found != "eager":
            raise ModelError(
                f"a model with {found} attention",
                expected="eager attention, which can be differentiated twice",
                fix='load it with attn_implementation="eager"',
            )
        self._model = model
        self._parameters = {name: one for name, one in model.named_parameters() if one.requires_grad}
        if not self._parameters:
            raise ModelError(
                "a model without trainable parameters", expected="some", fix="call requires_grad_() on them"
            )
        self._sizes = [one.numel() for one in self._parameters.values()]

    def present(self) -> torch.Tensor:
        """The model's parameters as they are [P]."""
        return _flat(list(self._parameters.values()))

    def __call__(self, theta_P: torch.Tensor, rows: Sequence[Encoded]) -> torch.Tensor:
        """l of each row [B], by the model's own logits."""
        parts = torch.split(theta_P, self._sizes)
        named = {name: part.view_as(one) for (name, one), part in zip(self._parameters.items(), parts, strict=True)}
        batch = collate(rows, theta_P.device, theta_P.dtype)
        inputs = {"input_ids": batch.input_ids_BT, "attention_mask": batch.attention_BT, "use_cache": False}
        training = self._model.training
        self._model.eval()
        try:
            with _Wide(theta_P.dtype):
                logits = torch.func.functional_call(self._model, named, kwargs=inputs).logits
        finally:
            self._model.train(training)
        logits_KV = logits.flatten(0, 1)[batch.place_K]
        nll_K = F.cross_entropy(logits_KV, batch.target_K, reduction="none")
        return by_example(nll_K.to(theta_P.dtype) * batch.weight_K, batch)

    def measured(
        self, theta_P: torch.Tensor, sides: Sequence[tuple[Encoded, float]], *, gradient: bool = False
    ) -> tuple[float, torch.Tensor]:
        """m, and its gradient [P] where it is wanted."""
        leaf_P = theta_P.clone().requires_grad_(gradient)
        weight_S = leaf_P.new_tensor([weight for _, weight in sides])
        m = self(leaf_P, [side for side, _ in sides]) @ weight_S
        return float(m.detach()), torch.autograd.grad(m, leaf_P)[0] if gradient else leaf_P


class _Loop:
    """The steps of a training and their derivatives. A step is a pure function of state and weights."""

    def __init__(self, model: Any, encoded: Sequence[Encoded], recipe: Recipe) -> None:
        self.losses = _Losses(model)
        if not encoded:
            raise DataError("no training rows", expected="at least one", fix="give the rows")
        self._encoded, self._recipe = encoded, recipe
        self.batches: list[npt.NDArray[np.int64]] = []
        ends = []
        for epoch in range(recipe.epochs):
            order = np.random.default_rng((recipe.seed, epoch)).permutation(len(encoded))
            self.batches += [order[n : n + recipe.batch_size] for n in range(0, len(order), recipe.batch_size)]
            ends.append(len(self.batches))
        self.epoch_ends = tuple(ends)
        self.steps = len(self.batches)
        falls = recipe.schedule == "linear"
        self.rates = tuple(recipe.learning_rate * (1 - falls * step / self.steps) for step in range(self.steps))

    def start(self) -> State:
        theta_P = self.losses.present()
        return State(theta_P, torch.zeros_like(theta_P), torch.zeros_like(theta_P))

    def weights(self, weights_N: npt.ArrayLike | None) -> torch.Tensor:
        w_N = np.ones(len(self._encoded)) if weights_N is None else np.asarray(weights_N, dtype=np.float64)
        if w_N.shape != (len(self._encoded),):
            raise DataError(
                f"weights of shape {w_N.shape}",
                expected=f"one for each of {len(self._encoded)} rows",
                fix="pass as many",
            )
        return torch.from_numpy(w_N.copy()).to(self.losses.present())

    def require(self, trajectory: Trajectory) -> None:
        size = self.losses.present().numel()
        found, wanted = (len(trajectory.weights_N), trajectory.end.theta_P.numel()), (len(self._encoded), size)
        if trajectory.recipe != self._recipe or found != wanted:
            raise DataError(
                f"a trajectory of {found[0]} rows and {found[1]} parameters",
                expected=f"that of these {wanted[0]} rows and {wanted[1]} parameters, with the same recipe",
                fix="train again with this model, these rows and this recipe",
            )
        if (trajectory.weights_N != 1).any():
            raise DataError("a trajectory with other weights than 1", expected="all 1", fix="train without weights")

    def loss(self, theta_P: torch.Tensor, batch: npt.NDArray[np.int64], w_B: torch.Tensor) -> torch.Tensor:
        """sum_i w_i l_i / batch_size."""
        l_B = self.losses(theta_P, [self._encoded[row] for row in batch])
        return (w_B * l_B).sum() / self._recipe.batch_size

    def advance(self, state: State, step: int, w_N: torch.Tensor) -> tuple[State, float]:
        """One step of AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2) or of gradient descent."""
        leaf_P = state.theta_P.clone().requires_grad_()
        summed = self.loss(leaf_P, self.batches[step], w_N[self.batches[step]])
        g_P, loss = torch.autograd.grad(summed, leaf_P)[0], float(summed.detach())
        if not math.isfinite(loss):
            raise NumericalError(
                f"the loss of step {step + 1} is {loss}",
                expected="a number",
                cause="a learning rate that is too high",
                fix="choose a lower one",
            )
        recipe, rate = self._recipe, self.rates[step]
        kept_P = (1 - rate * recipe.weight_decay) * state.theta_P
        if recipe.optimizer == "sgd":
            return State(kept_P - rate * g_P, state.m_P, state.v_P), loss
        m_P, v_P, m_hat_P, root_P = self._moments(state, g_P, step)
        return State(kept_P - rate * m_hat_P / (root_P + recipe.eps), m_P, v_P), loss

    def adjoint(
        self, step: int, state: State, g_P: torch.Tensor, theta_QP: torch.Tensor, m_QP: torch.Tensor, v_QP: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """From the adjoints after a step to those before it, but for the gradient's own part: and its adjoint.

        With m' = b1 m + (1 - b1) g, v' = b2 v + (1 - b2) g^2, c = 1 - b^t, r = sqrt(v'/c2) and a(x) = d(measure)/dx:

            a(m') += - rate / (c1 (r + eps)) a(theta')        a(v') += rate (m'/c1) / (2 c2 r (r + eps)^2) a(theta')
            a(g)   = (1 - b1) a(m') + 2 (1 - b2) g a(v')      a(theta) = (1 - rate x decay) a(theta') [+ H a(g)]

        Where v' = 0 every gradient so far was 0, whatever the weights, and so is the derivative.
        """
        recipe, rate = self._recipe, self.rates[step]
        kept_QP = (1 - rate * recipe.weight_decay) * theta_QP
        if recipe.optimizer == "sgd":
            return kept_QP, m_QP, v_QP, -rate * theta_QP
        (b1, b2), t = recipe.betas, step + 1
        c1, c2 = 1 - b1**t, 1 - b2**t
        _, _, m_hat_P, root_P = self._moments(state, g_P, step)
        below_P = root_P + recipe.eps
        by_root_P = torch.where(root_P > 0, 1 / root_P.clamp_min(torch.finfo(root_P.dtype).tiny), 0.0)
        m_QP = m_QP - rate / (c1 * below_P) * theta_QP
        v_QP = v_QP + rate * m_hat_P / below_P.square() * by_root_P / (2 * c2) * theta_QP
        return kept_QP, b1 * m_QP, b2 * v_QP, (1 - b1) * m_QP + 2 * (1 - b2) * g_P * v_QP

    def _moments(self, state: State, g_P: torch.Tensor, step: int) -> tuple[torch.Tensor, ...]:
        """m', v', m'/c1, sqrt(v'/c2)."""
        b1, b2 = self._recipe.betas
        m_P = b1 * state.m_P + (1 - b1) * g_P
        v_P = b2 * state.v_P + (1 - b2) * g_P.square()
        return m_P, v_P, m_P / (1 - b1 ** (step + 1)), (v_P / (1 - b2 ** (step + 1))).sqrt()


class _Wide(TorchFunctionMode):
    """In float64, makes float64 of every cast to float32: transformers computes norms and softmax in float32."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._wide = dtype == torch.float64

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._wide:
            func = torch.Tensor.double if func is torch.Tensor.float else func
            args = tuple(torch.float64 if one is torch.float32 else one for one in args)
            kwargs = {name: torch.float64 if one is torch.float32 else one for name, one in kwargs.items()}
        return func(*args, **kwargs)


def _flat(parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([one.detach().flatten() for one in parameters])


def _some(measure: Measure) -> Measure:
    if not measure or not all(measure):
        raise DataError("no query, or one without a side", expected="at least one side each", fix="give the outputs")
    return measure
