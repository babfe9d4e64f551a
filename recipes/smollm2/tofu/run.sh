#!/usr/bin/env bash
# A real language model learns ten authors of TOFU and forgets two: SmolLM2-135M-Instruct, then the audit with every
# attack and a retain-only model.
#   recipes/smollm2/tofu/run.sh TOFU_FOLDER OUTPUT_DIR [--model FOLDER] [--seed N]
# TOFU_FOLDER is a local copy of locuslab/TOFU in the Hub's layout.
# --model: a local copy of HuggingFaceTB/SmolLM2-135M-Instruct; without it, it comes from the Hub.
set -euo pipefail
. "$(dirname "$0")/../options.sh"
cd "$(dirname "$0")/../../.."
if [ ${#folders[@]} -lt 2 ]; then
    echo "usage: $0 TOFU_FOLDER OUTPUT_DIR [--model FOLDER] [--seed N]" >&2
    exit 2
fi
tofu="${folders[0]}" out="${folders[-1]}"
if [ -e "$out" ]; then
    echo "error: $out exists already; name another folder or remove it" >&2
    exit 2
fi
export TOKENIZERS_PARALLELISM=false

python recipes/tofu_small/make_data.py "$tofu" "$out/data" --authors 10
finetune=(python pmc_rl/finetune.py recipes/smollm2/tofu/finetune.yaml --seed "$seed")
finetune+=(--dataset_name "$out/data" --model_name_or_path "$model")
"${finetune[@]}" --output_dir "$out/finetuned"
"${finetune[@]}" --train_configs retain --output_dir "$out/retain_only"
python pmc_rl/train.py recipes/smollm2/tofu/unlearn.yaml --seed "$seed" \
    --dataset_name "$out/data" --model_name_or_path "$out/finetuned" --output_dir "$out/unlearned"
python eval/run.py "$out/unlearned/recipe.yaml" --retain_only_model "$out/retain_only"
