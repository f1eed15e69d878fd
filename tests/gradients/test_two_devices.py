"""A model that lies on two devices: every tensor is where it is needed.

There is one real device here, so the tensors are fake: they have shapes and devices, no numbers, and operations that
mix devices are refused. The other device is of a backend that torch lets Python register, once for a whole process:
hence the process of its own.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
from dataclasses import replace
import sys
import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
from transformers import LlamaConfig, LlamaForCausalLM
from headwater.examples import Encoded
from headwater.gradients import loss, trimming
from headwater.gradients.batches import collate
from headwater.gradients.factors import FactorHooks
from headwater.gradients.layers import select_layers
from headwater.gradients.projection import Projection

_setup_privateuseone_for_python_backend("toy")
FIRST, SECOND = torch.device("toy", 0), torch.device("cpu")
model = LlamaForCausalLM(LlamaConfig(
    vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)).eval()
layers = select_layers(model).layers
row = Encoded(input_ids=np.arange(1, 20), loss_mask=np.arange(19) > 14)
batch = collate([row, row], SECOND, torch.float32)
with FactorHooks(model, layers, precision=torch.float32).attached() as hooks:  # what is tried on a model needs numbers
    hooks.backward(batch, lambda *_: None)
assert trimming._found[model]

with FakeTensorMode(allow_non_fake_inputs=True) as fake:
    for name, device in {
        "model.embed_tokens": FIRST, "model.rotary_emb": FIRST, "model.layers.0": FIRST,
        "model.layers.1": SECOND, "model.norm": SECOND, "lm_head": FIRST if sys.argv[1] == "tied" else SECOND,
    }.items():
        part = model.get_submodule(name)
        for module in part.modules():
            for own in (module._parameters, module._buffers):
                for key, value in own.items():
                    if value is not None:
                        moved = fake.from_tensor(value.detach()).to(device)
                        own[key] = moved if own is module._buffers else torch.nn.Parameter(moved, False)

        def there(value, device=device):
            if isinstance(value, tuple):
                return tuple(there(one, device) for one in value)
            return value.to(device) if isinstance(value, torch.Tensor) else value

        def align(module, args, kwargs, there=there):  # as accelerate does
            return there(args), {key: there(value) for key, value in kwargs.items()}

        part.register_forward_pre_hook(align, with_kwargs=True)
    loss._heads[model] = [loss._Head(model.model, model.lm_head.weight, None)]
    tensors = {k: fake.from_tensor(v).to(FIRST) for k, v in vars(batch).items() if isinstance(v, torch.Tensor)}
    for projection in (None, Projection.of(layers, 4)):
        seen = []
        hooks = FactorHooks(
            model, layers, precision=torch.float32, projection=projection, compact=projection is not None)
        with hooks.attached():
            losses = hooks.backward(replace(batch, **tensors), lambda n, a, d: seen.append((n, a.device, d.device)))
        assert losses.device == FIRST
        assert sorted(n for n, *_ in seen) == list(range(len(layers)))
        assert {device for _, *devices in seen for device in devices} == {FIRST}, seen
print("done")
"""


@pytest.mark.slow  # torch and transformers anew
@pytest.mark.parametrize("head", ["with the last layers", "tied"])
def test_every_tensor_is_where_it_is_needed(head: str) -> None:
    pytest.importorskip("torch.utils.backend_registration")
    done = subprocess.run([sys.executable, "-c", PROGRAM, head], capture_output=True, text=True, timeout=600)
    assert done.stdout.strip() == "done", done.stderr
