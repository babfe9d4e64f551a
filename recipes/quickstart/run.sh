#!/usr/bin/env bash
# The whole chain on a CPU, offline: build a model, teach it, make it forget, audit.
#   recipes/quickstart/run.sh [OUTPUT_DIR]     (default: runs/quickstart)
# Shows questions and answers on the terminal: the authors are invented.
set -euo pipefail
here="$PWD"
cd "$(dirname "$0")/../.."
out="${1:-$PWD/runs/quickstart}"
case "$out" in /*) ;; *) out="$here/$out" ;; esac
if [ -e "$out" ]; then
    echo "error: $out exists already; name another folder or remove it" >&2
    exit 2
fi
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

python recipes/quickstart/build_model.py recipes/quickstart/data "$out/untrained" \
    --configs full real_authors world_facts
python pmc_rl/finetune.py recipes/quickstart/finetune.yaml --use_cpu true \
    --model_name_or_path "$out/untrained" --output_dir "$out/finetuned"
python pmc_rl/train.py recipes/quickstart/unlearn.yaml --use_cpu true \
    --model_name_or_path "$out/finetuned" --output_dir "$out/unlearned"
python eval/run.py recipes/quickstart/unlearn.yaml --use_cpu true \
    --model_name_or_path "$out/finetuned" --output_dir "$out/unlearned"
