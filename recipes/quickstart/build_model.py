"""Builds an untrained Llama and a byte-level BPE tokenizer for it, from nothing but the texts of a data folder.

python recipes/quickstart/build_model.py DATA_DIR OUTPUT_DIR --configs full real_authors world_facts
"""

import argparse
import sys
from pathlib import Path

from pmc_rl.errors import RecipeError, exit_on_recipe_error
from pmc_rl.reading import read_columns  # first: it switches telemetry off

# isort: split
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

PAD, END = "<|pad|>", "<|end|>"


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE; only merges seen twice, so a small corpus may give fewer tokens than `vocab_size`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[PAD, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir")
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--configs", nargs="+", required=True, help="configs whose texts the tokenizer is trained on")
    parser.add_argument("--vocab_size", type=int, default=1024)
    parser.add_argument("--hidden_size", type=int, default=128)
    parser.add_argument("--num_layers", type=int, default=4)
    parser.add_argument("--num_heads", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.output_dir.exists():
        raise RecipeError([f"{args.output_dir} exists already; choose another folder"])

    texts = []
    for config in args.configs:
        rows, _ = read_columns("--configs", None, args.data_dir, config, ["question", "answer"], [])
        texts += [f"Question: {row['question']}\nAnswer: {row['answer']}" for row in rows]
    tokenizer = train_tokenizer(texts, args.vocab_size)
    set_seed(args.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=args.hidden_size,
            intermediate_size=4 * args.hidden_size,
            num_hidden_layers=args.num_layers,
            num_attention_heads=args.num_heads,
            num_key_value_heads=args.num_heads,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            # LlamaConfig's own defaults are ids of another tokenizer: an ordinary token would end every answer
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.save_pretrained(args.output_dir)
    tokenizer.save_pretrained(args.output_dir)
    print(
        f"Built a Llama of {model.num_parameters() / 1e6:.2f}M parameters, {len(tokenizer)} tokens: {args.output_dir}"
    )


if __name__ == "__main__":
    with exit_on_recipe_error():
        main(sys.argv[1:])
