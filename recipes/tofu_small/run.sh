#!/usr/bin/env bash
# Real data on a CPU, offline: 20 authors of TOFU, a model from scratch, the two authors of forget01 forgotten.
#   recipes/tofu_small/run.sh TOFU_FOLDER [OUTPUT_DIR] [--audit]     (default: runs/tofu_small)
# TOFU_FOLDER is a local copy of locuslab/TOFU in the Hub's layout. --audit also makes a retain-only model and runs every
# attack on all three. Without it the audit attacks nothing.
set -euo pipefail
here="$PWD"
cd "$(dirname "$0")/../.."
tofu="" out="" audit=false
for word in "$@"; do
    case "$word" in
        --audit) audit=true; continue ;;
        -*) echo "error: unknown option $word; see the first lines of $0" >&2; exit 2 ;;
        /*) ;;
        *) word="$here/$word" ;;
    esac
    if [ -z "$tofu" ]; then tofu="$word"; else out="$word"; fi
done
if [ -z "$tofu" ]; then
    echo "usage: $0 TOFU_FOLDER [OUTPUT_DIR] [--audit]" >&2
    exit 2
fi
out="${out:-$PWD/runs/tofu_small}"
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
if $audit; then
    python pmc_rl/finetune.py recipes/tofu_small/finetune.yaml --use_cpu true \
        --train_configs retain real_authors world_facts \
        --dataset_name "$out/data" --model_name_or_path "$out/untrained" --output_dir "$out/retain_only"
    python eval/run.py "$out/unlearned/recipe.yaml" --retain_only_model "$out/retain_only"
else
    python eval/run.py "$out/unlearned/recipe.yaml" --attacks '[]'
fi
