#!/usr/bin/env bash
# The GPU numbers of RESULTS.md, in calls of under ten minutes each, on one NVIDIA GPU:
#   benchmarks/gpu.sh step                   a step against open_clip's (open_clip_torch 3.3.0), the memory of the loss
#   benchmarks/gpu.sh compile, then compiled the same, compiled: some four minutes
#   benchmarks/gpu.sh speeds DATA OUT        images/s of pre-training with its loader
#   benchmarks/gpu.sh smoke DATA OUT         every objective for a moment
#   benchmarks/gpu.sh objectives DATA OUT    the table of objectives and judges; goes on if given again
#   benchmarks/gpu.sh profile DATA OUT       where a step's time goes
#   benchmarks/gpu.sh scaling DATA OUT       pictures, models and length, three seeds of flickr8k_cpu; goes on likewise
#   SMALL=1 benchmarks/gpu.sh ...            the same on a CPU at toy size: does the script work?
# RESULTS=FOLDER keeps numbers as they come, MINUTES bounds `objectives`; OBJECTIVES, SEEDS, LR, SAMPLES, PROCESSES.
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONUNBUFFERED=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} DO_NOT_TRACK=true
python=${PYTHON:-python3}
results=${RESULTS:-runs/gpu}
mkdir -p "$results"
small=${SMALL:-}
[ -n "$small" ] || nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader

# Two towers of ViT-B at batch 512 take some 50 GB.
batch=512 variants="contrastive catlip low-160 image-tower"
[ -n "$small" ] || [ "$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits | head -1)" -gt 100000 ] || batch=256

compile() {  # the cores' work, kept by torch for `compiled`: all variants at once, untimed
    local waiting=() variant
    for variant in $variants; do
        timeout 150 "$python" benchmarks/step.py --size B --batch $batch --compile --warm 0 --steps 1 --rounds 1 \
            --variants "$variant" >>"$results/compile.txt" 2>&1 &
        waiting+=($!)
        [ "$variant" != low-160 ] || { wait "${waiting[@]}"; waiting=(); }  # more do not fit beside one another
    done
    wait "${waiting[@]}"
    echo "compiled after $SECONDS s"
}

step() {
    if [ -n "$small" ]; then
        "$python" benchmarks/step.py --size S --batch 2 --device cpu --rounds 1 --steps 1 --variants contrastive catlip
        "$python" benchmarks/loss.py --device cpu
        return
    fi
    # shellcheck disable=SC2086
    timeout 70 "$python" benchmarks/step.py --size B --batch $batch --warm 3 --steps 10 --rounds 1 --together \
        --variants $variants 2>&1 | tee "$results/step.txt"
    timeout 30 "$python" benchmarks/loss.py 2>&1 | tee "$results/loss.txt"
}

compiled() {
    # shellcheck disable=SC2086
    timeout 150 "$python" benchmarks/step.py --size B --batch $batch --compile --warm 5 --steps 20 --rounds 1 \
        --variants $variants 2>&1 | tee "$results/compiled.txt"
}

if [ -n "${3:-}" ]; then  # the same pictures and vocabulary for all parts, if they are made already
    mkdir -p "$3"/{smoke,speeds}
    for part in smoke speeds; do [ ! -e "$3/vocab.tsv" ] || ln -sfn "$(realpath "$3")"/{shards-128,vocab.tsv} "$3/$part"; done
fi

objectives() {  # DATA OUT, and what objectives.py takes
    local size=--gpu
    [ -z "$small" ] || size=--tiny
    "$python" benchmarks/objectives.py "$@" $size 2>&1 | tee -a "$results/objectives.log"
}

case ${1:-} in
compile | compiled | step) "$1" ;;
smoke)
    objectives "$2" "$3/smoke" --samples $((${small:+1} + ${small:-40} * 256)) --processes "${PROCESSES:-4}" \
        --speed-seconds 1 --speed-turns 1 ${OBJECTIVES:+--objectives $OBJECTIVES} --results "$results/smoke.tgz"
    ;;
speeds)
    objectives "$2" "$3/speeds" --workers 15 --speed-seconds 3 --speed-turns 1 --objectives synsets clip \
        --samples $((${small:+1} + ${small:-400} * 256)) --results "$results/speeds.tgz"
    ;;
objectives)
    objectives "$2" "$3" --processes "${PROCESSES:-4}" --minutes "${MINUTES:-8}" --speed-seconds 1 --speed-turns 1 \
        --seeds "${SEEDS:-1}" --samples "${SAMPLES:-0}" ${LR:+--lr $LR} ${OBJECTIVES:+--objectives $OBJECTIVES} \
        --results "$results/objectives.tgz"
    ;;
profile)
    size=--gpu
    [ -z "$small" ] || size=--tiny
    "$python" benchmarks/profile_step.py "$2" "$3" $size \
        --objectives ${OBJECTIVES:-synsets siglip} 2>&1 | tee "$results/profile.txt"
    ;;
scaling)
    size=(--unsaved --workers "${WORKERS:-3}")
    [ -z "$small" ] || size=(--tiny)
    "$python" benchmarks/scaling.py "$2" "$3" "${size[@]}" --processes "${PROCESSES:-6}" --minutes "${MINUTES:-8}" \
        --seeds "${SEEDS:-3}" --objectives ${OBJECTIVES:-synsets clip synsets+text} \
        --results "$results/scaling.tgz" 2>&1 | tee -a "$results/scaling.log"
    ;;
*) sed -n '2,12p' "$0" ;;
esac
