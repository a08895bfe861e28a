#!/usr/bin/env bash
# What a GPU makes of the training step: at most 8 minutes, no network. Any Python that has torch,
# timm, transformers, accelerate, pandas, scipy, pillow and tqdm will do: PYTHON=... benchmarks/gpu.sh
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" -m benchmarks.gpu "$@"
