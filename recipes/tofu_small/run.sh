#!/usr/bin/env bash
# Real data on a CPU, offline: 20 authors of TOFU, a model from scratch, the two authors of forget01 forgotten.
#   recipes/tofu_small/run.sh TOFU_FOLDER [OUTPUT_DIR]     (default: runs/tofu_small)
# TOFU_FOLDER is a local copy of locuslab/TOFU in the Hub's layout.
set -euo pipefail
if [ $# -lt 1 ]; then
    echo "usage: $0 TOFU_FOLDER [OUTPUT_DIR]" >&2
    exit 2
fi
here="$PWD"
cd "$(dirname "$0")/../.."
tofu="$1"
out="${2:-$PWD/runs/tofu_small}"
case "$tofu" in /*) ;; *) tofu="$here/$tofu" ;; esac
case "$out" in /*) ;; *) out="$here/$out" ;; esac
if [ -e "$out" ]; then
    echo "error: $out exists already; name another folder or remove it" >&2
    exit 2
fi
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

python recipes/tofu_small/make_data.py "$tofu" "$out/data"
python recipes/quickstart/build_model.py "$out/data" "$out/untrained" --configs full real_authors world_facts \
    --vocab_size 4096 --hidden_size 256 --num_layers 6
python pmc_rl/finetune.py recipes/tofu_small/finetune.yaml --use_cpu true \
    --dataset_name "$out/data" --model_name_or_path "$out/untrained" --output_dir "$out/finetuned"
python pmc_rl/train.py recipes/tofu_small/unlearn.yaml --use_cpu true \
    --dataset_name "$out/data" --model_name_or_path "$out/finetuned" --output_dir "$out/unlearned"
python eval/run.py recipes/tofu_small/unlearn.yaml --use_cpu true \
    --dataset_name "$out/data" --model_name_or_path "$out/finetuned" --output_dir "$out/unlearned"
