"""Adam's moments of the chosen layers, from the optimizer's state that Trainer leaves beside a checkpoint.

    v   second moment: curvature, as its square root      m   first moment: LESS's direction of an update

The state is in Trainer's optimizer.pt, a pickle: it is read only where pickles are allowed, and then by torch's
restricted reader, which runs no code. It numbers the parameters in the order of Trainer's two groups, with weight
decay and without; shapes are compared with the model's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from headwater.checkpoints import TrainingRun
from headwater.errors import ModelError, UsageError
from headwater.gradients.curvature.options import Curvature
from headwater.gradients.curvature.spectrum import Basis, Spectrum
from headwater.gradients.layers import inputs_first

if TYPE_CHECKING:
    from headwater.attribution.models import Place

STATE = "optimizer.pt"


def adam_moments(run: TrainingRun, name: str, place: Place) -> Spectrum:
    """The square root of the second moment, and the first moment, of every layer.

    Raises:
        UsageError: no state, pickles not allowed, an adapter, or projected gradients. ModelError: a state that does
            not fit the model.
    """
    checkpoint = run.named(name)
    path = Path(checkpoint.location) / STATE
    other = "use --curvature diagonal or ekfac, or another method"
    if checkpoint.kind != "full":
        raise UsageError(
            f"Adam's moments of the adapter {name}",
            expected="a full fine-tuning: an adapter's moments are those of its small matrices, not of the weights",
            fix=other,
        )
    if place.projection is not None:
        raise UsageError(
            "Adam's moments with projected gradients",
            expected="gradients as they are",
            fix=f"leave --rank out, or {other}",
        )
    if not path.is_file():
        raise UsageError(
            f"{path} is not there",
            expected="the optimizer's state of every checkpoint that the method uses",
            cause="training saved only models, or this is the base",
            fix=other,
        )
    if not run.allow_pickle:
        raise UsageError(
            f"{path} is a pickle", expected="leave to read it", fix=f"add --allow-pickle if you trust it, or {other}"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        found = _by_name(state, place.model)
    except (RuntimeError, KeyError, TypeError, ValueError, EOFError, OSError) as error:
        raise ModelError(
            f"{path} does not fit {name} ({str(error).splitlines()[0][:120]})",
            expected="the state of AdamW as transformers' Trainer writes it",
            cause="another optimizer, or parameters that were frozen",
            fix=other,
        ) from None
    bases = []
    for layer in place.layers:
        moments = found.get(f"{layer.name}.weight")
        if moments is None:
            raise ModelError(
                f"{path} holds no moments of {layer.name}",
                expected="all chosen layers",
                cause="it was frozen",
                fix=other,
            )
        pair = [one.T if inputs_first(layer) else one for one in moments]
        m_OI, v_OI = (one.to(place.device, place.precision).contiguous() for one in pair)
        bases.append(Basis(v_OI.clamp_min(0).sqrt(), momentum_OI=m_OI))
    return Spectrum(Curvature.named("adam"), tuple(bases))


def _by_name(state: Mapping[str, Any], model: Any) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Parameter name -> first and second moment."""
    from transformers import Trainer

    groups = state["param_groups"]
    parameters = dict(model.named_parameters())
    order = list(parameters)
    if len(groups) == 2:
        decayed = set(Trainer.get_decay_parameter_names(cast(Any, None), model))
        order = [name for name in order if name in decayed] + [name for name in order if name not in decayed]
    numbers = [number for group in groups for number in group["params"]]
    if len(numbers) != len(order):
        raise ValueError(f"{len(numbers)} parameters in the state and {len(order)} in the model")
    found = {}
    for number, name in zip(numbers, order, strict=True):
        one = state["state"].get(number)
        if one is None:
            continue
        moments = one["exp_avg"], one["exp_avg_sq"]
        if moments[0].shape != parameters[name].shape:
            raise ValueError(f"{name} is {list(parameters[name].shape)} and its moments {list(moments[0].shape)}")
        found[name] = moments
    return found
