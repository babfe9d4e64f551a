#!/usr/bin/env bash
# Four requests to forget, one after the other, on the quickstart's model: each forgets two more authors, beginning with the
# model that the one before has left, and keeps the authors that nobody has asked to forget.
#   recipes/quickstart/requests.sh [OUTPUT_DIR] [--seed N]                   (default: runs/requests, seed 0)
# At the end each request is audited once more with the last model beside its own: OUTPUT_DIR/request_*/report.html.
set -euo pipefail
here="$PWD"
cd "$(dirname "$0")/../.."
out="$PWD/runs/requests" seed=0
while [ $# -gt 0 ]; do
    case "$1" in
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
data=recipes/quickstart/data

python recipes/quickstart/build_model.py "$data" "$out/untrained" --configs full real_authors world_facts
python pmc_rl/finetune.py recipes/quickstart/finetune.yaml --use_cpu true --seed "$seed" \
    --model_name_or_path "$out/untrained" --output_dir "$out/finetuned"

# retain90.json: 288 rows about 18 authors, 16 each, then refusals about authors that do not exist
model="$out/finetuned" kept=288
cp "$data/forget10.json" "$out/forget_1.jsonl"
for i in 1 2 3 4; do
    if [ "$i" -gt 1 ]; then
        sed -n "$((kept - 31)),${kept}p" "$data/retain90.json" >"$out/forget_$i.jsonl"
        kept=$((kept - 32))
    fi
    sed -n "1,${kept}p;289,\$p" "$data/retain90.json" >"$out/keep_$i.jsonl"
    # by NLL more is lost of what stands in no row
    python pmc_rl/train.py recipes/quickstart/guided.yaml --use_cpu true --seed "$seed" \
        --forget_config null --forget_file "$out/forget_$i.jsonl" --retain_config null --retain_file "$out/keep_$i.jsonl" \
        --retain_loss kl --model_name_or_path "$model" --output_dir "$out/request_$i"
    model="$out/request_$i"
done
for i in 1 2 3 4; do
    python eval/run.py "$out/request_$i/recipe.yaml" --holdout_file "$data/holdout10.json" --also "now=$model" \
        --attacks '["sampling"]' --attack_samples 25
done
