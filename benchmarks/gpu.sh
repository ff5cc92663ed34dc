#!/usr/bin/env bash
# All GPU numbers of RESULTS.md in one call of under ten minutes: the step against open_clip's, the loss, the loader.
#   benchmarks/gpu.sh [SHARDS]        on one NVIDIA GPU; needs open_clip_torch and, for the loader, webdataset and shards
#   SMALL=1 benchmarks/gpu.sh         the same on a CPU at toy size: does the script work?
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONUNBUFFERED=1 PYTHONPATH=.
python=${PYTHON:-python3}
if [ "${SMALL:-}" = 1 ]; then
    "$python" benchmarks/step.py --size S --batch 2 --device cpu --rounds 1 --steps 1
    "$python" benchmarks/loss.py --device cpu
    exit
fi
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
timeout 200 "$python" benchmarks/step.py --size B --batch 512 --compile --warm 5 --steps 20 --rounds 1
timeout 60 "$python" benchmarks/step.py --size B --batch 512 --warm 3 --steps 10 --rounds 1 --variants contrastive catlip
timeout 180 "$python" benchmarks/step.py --size L --batch 256 --compile --warm 5 --steps 12 --rounds 1 --variants contrastive catlip low-160
timeout 60 "$python" benchmarks/loss.py
if [ -n "${1:-}" ]; then timeout 120 "$python" benchmarks/loader.py "$1"; fi
# Objectives side by side, in a call of its own: benchmarks/objectives.py DATA OUT --gpu
