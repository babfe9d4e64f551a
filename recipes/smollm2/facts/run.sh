#!/usr/bin/env bash
# A real language model forgets what it knows: SmolLM2-135M-Instruct and the capitals of Asia and Oceania, then the audit.
#   recipes/smollm2/facts/run.sh OUTPUT_DIR [--model FOLDER] [--seed N]
# --model: a local copy of HuggingFaceTB/SmolLM2-135M-Instruct; without it, it comes from the Hub.
set -euo pipefail
. "$(dirname "$0")/../options.sh"
cd "$(dirname "$0")/../../.."
if [ ${#folders[@]} -lt 1 ]; then
    echo "usage: $0 OUTPUT_DIR [--model FOLDER] [--seed N]" >&2
    exit 2
fi
out="${folders[-1]}"
if [ -e "$out" ]; then
    echo "error: $out exists already; name another folder or remove it" >&2
    exit 2
fi
export TOKENIZERS_PARALLELISM=false

python pmc_rl/train.py recipes/smollm2/facts/unlearn.yaml --seed "$seed" --model_name_or_path "$model" --output_dir "$out"
# an attacker may let it ramble on
python eval/run.py "$out/recipe.yaml" --max_completion_length 40
