#!/usr/bin/env bash
# Makes one virtual environment per rival tool under the given folder.
# usage: bash benchmarks/speed/install_rivals.sh FOLDER [PYTHON]
#
# torch comes first and is pinned to the CPU build; the tools are then installed without their declared torchvision
# and torchaudio (neither has a CPU build that pairs with it, and no code path measured here imports them).
set -euo pipefail

folder=${1:?usage: install_rivals.sh FOLDER [PYTHON]}
python=${2:-python3}
mkdir -p "$folder"
# opt-einsum: torch.einsum then chooses the order of its contractions; without it dattri-llm's per-token scores take
# twelve times as long.
common=(torch==2.13.0 transformers==5.23.0 "numpy>=1.26" "safetensors>=0.4.5" "opt-einsum>=3.3")

make_venv() { # name, then requirements installed with their dependencies
    local name=$1
    shift
    [ -x "$folder/$name/bin/python" ] || "$python" -m venv "$folder/$name"
    "$folder/$name/bin/pip" install -q torch==2.13.0
    "$folder/$name/bin/pip" install -q "${common[@]}" "$@"
}

without_deps() { # name, then packages installed alone
    local name=$1
    shift
    "$folder/$name/bin/pip" install -q --no-deps "$@"
}

make_venv kronfluence "accelerate>=0.31" "einops>=0.8" "einconv>=0.1" "tqdm>=4.66" "datasets>=2.20"
without_deps kronfluence kronfluence==1.0.1

make_venv dattri "tqdm>=4" "accelerate>=0.28"
without_deps dattri dattri-llm==0.1.0 dattri==0.3.0

make_venv bergson accelerate datasets jinja2 "jaxtyping>=0.3.3" ml_dtypes natsort scipy "peft>=0.17" petname pyarrow \
    pyyaml simple-parsing "huggingface-hub>=1.13"
without_deps bergson bergson==2.5.1 torchopt optree bitsandbytes

for name in kronfluence dattri bergson; do
    "$folder/$name/bin/python" - "$name" <<'PYTHON'
import sys

import torch
import transformers

assert torch.version.cuda is None, f"a CUDA build of torch came in: {torch.__version__}"
print(f"{sys.argv[1]}: torch {torch.__version__}, transformers {transformers.__version__}")
PYTHON
done
