#!/usr/bin/env bash
# The whole chain on a CPU, offline: build a model, teach it, make it forget, audit.
#   recipes/quickstart/run.sh [OUTPUT_DIR] [--plain] [--audit] [--seed N]     (default: runs/quickstart, seed 0)
# --plain unlearns by unlearn.yaml, with the plain reward, in place of guided.yaml.
# --audit also makes a retain-only model and runs every attack on all three. Without it the audit attacks nothing.
# Shows questions and answers on the terminal: the authors are invented.
set -euo pipefail
here="$PWD"
cd "$(dirname "$0")/../.."
out="$PWD/runs/quickstart" audit=false seed=0 recipe=guided
while [ $# -gt 0 ]; do
    case "$1" in
        --audit) audit=true ;;
        --plain) recipe=unlearn ;;
        --seed) seed="${2:?--seed needs a number}"; shift ;;
        -*) echo "error: unknown option $1; see the first lines of $0" >&2; exit 2 ;;
        /*) out="$1" ;;
        *) out="$here/$1" ;;
    esac
    shift
done
if [ -e "$out" ]; then
    echo "error: $out exists already; name another folder or remove it" >&2
    exit 2
fi
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

python recipes/quickstart/build_model.py recipes/quickstart/data "$out/untrained" \
    --configs full real_authors world_facts
python pmc_rl/finetune.py recipes/quickstart/finetune.yaml --use_cpu true --seed "$seed" \
    --model_name_or_path "$out/untrained" --output_dir "$out/finetuned"
python pmc_rl/train.py "recipes/quickstart/$recipe.yaml" --use_cpu true --seed "$seed" \
    --model_name_or_path "$out/finetuned" --output_dir "$out/unlearned"
if $audit; then
    python pmc_rl/finetune.py recipes/quickstart/finetune.yaml --use_cpu true --seed "$seed" \
        --train_configs retain90 real_authors world_facts \
        --model_name_or_path "$out/untrained" --output_dir "$out/retain_only"
    python eval/run.py "$out/unlearned/recipe.yaml" --retain_only_model "$out/retain_only"
else
    python eval/run.py "$out/unlearned/recipe.yaml" --attacks '[]'
fi
