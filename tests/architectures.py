"""Which causal language models of transformers are sampled rightly, and which are refused? Each made small, untrained.

    python tests/architectures.py [MODEL_TYPE ...]

Right: greedy answers in a batch of prompts of several lengths are those of `model.generate` for each alone, and
samples do not depend on the batch. Prints a line each; exit code 1 if one is neither right nor refused.
"""

import argparse
import sys
from collections import Counter
from random import Random

from pmc_rl.generation import STRIDE, Sampling, generate_completions, sample_seeds  # first

# isort: split
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from pmc_rl.errors import RecipeError, one_line
from pmc_rl.generation_check import check_generation

# values of the settings that a config has
SIZES = {
    2: "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_decoder_layers "
    "num_encoder_layers num_key_value_heads num_experts_per_tok num_experts_per_token moe_k n_mamba_heads "
    "linear_num_key_heads index_n_heads",
    4: "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads "
    "num_decoder_attention_heads num_encoder_attention_heads num_experts num_local_experts n_routed_experts "
    "moe_num_experts time_step_rank mamba_dt_rank mamba_n_heads mamba_num_heads linear_num_value_heads",
    8: "head_dim state_size mamba_d_state qk_rope_head_dim qk_nope_head_dim v_head_dim linear_key_head_dim "
    "linear_value_head_dim hidden_size_per_layer_input attention_head_size rotary_dim ssm_state_size chunk_size "
    "mamba_chunk_size",
    9: "sliding_window window_size attention_window attention_window_size",
    16: "qk_head_dim q_lora_rank kv_lora_rank mamba_head_dim mamba_d_head index_head_dim",
    32: "hidden_size d_model n_embd emb_dim embed_dim dim embedding_size lru_width attention_hidden_size "
    "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size moe_shared_expert_intermediate_size",
    64: "intermediate_size ffn_dim d_ff n_inner dff ffn_hidden_size decoder_ffn_dim encoder_ffn_dim dim_ff "
    "feed_forward_size intermediate_size_mlp prefix_dense_intermediate_size shared_intermediate_size mamba_d_ssm",
    128: "vocab_size vocab_size_per_layer_input",
    256: "max_position_embeddings n_positions n_ctx max_seq_len index_topk",
    1: "n_group topk_group mamba_n_groups n_groups mamba_ngroups eos_token_id",
}
SIZES = {name: value for value, names in SIZES.items() for name in names.split()}
SIZES |= {"pad_token_id": 0, "bos_token_id": 2, "is_decoder": True}
ZAMBA = {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid"] * 2, "attention_hidden_size": 64}
ZAMBA |= {"attention_head_dim": 16}
OWN = {
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "bamba": {"attn_layer_indices": [1]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "use_mamba_kernels": False},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "zamba": ZAMBA | {"use_mamba_kernels": False},
    "zamba2": ZAMBA | {"n_mamba_heads": 8, "mamba_headdim": 8, "num_mem_blocks": 1, "adapter_rank": 4},
    "nemotron_h": {"layers_block_type": ["mamba", "attention", "moe"], "mamba_num_heads": 8, "mamba_head_dim": 8},
    "minimax": {"layer_types": ["linear_attention", "full_attention"], "block_size": 8},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8, "moe_topk": 2},
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2, "head_dim": 8},
    "zaya": {"num_experts_per_tok": 1},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
}


def small_config(kind: str) -> PreTrainedConfig:
    """The config of an architecture with all sizes lowered, also those of its parts, and two kinds of layers."""
    config_class = type(AutoConfig.for_model(kind))

    def lowered(config: PreTrainedConfig) -> dict:
        given = config.to_dict()
        own = {name: value for name, value in SIZES.items() if isinstance(given.get(name), int) or "_token_id" in name}
        own |= {"is_decoder": True} if given.get("is_decoder") is False else {}
        own |= {"num_key_value_heads": 4} if "kv_lora_rank" in own else {}  # latent attention has as many as heads
        if isinstance(given.get("layer_types"), list):
            kinds = list(dict.fromkeys(given["layer_types"]))
            own["layer_types"] = (kinds * 2)[:2]
        for name in type(config).sub_configs:
            if isinstance(given.get(name), dict):
                part = getattr(config, name)
                own[name] = type(part)(**lowered(part))
        return own | OWN.get(config.model_type, {})

    return config_class(**lowered(config_class()))


def build(kind: str) -> PreTrainedModel:
    """With weights large enough for answers that are not one token over and over."""
    config = small_config(kind)
    with torch.device("meta"):
        size = AutoModelForCausalLM.from_config(config).num_parameters()
    if size > 2e7:
        raise ValueError(f"still {size:,} parameters")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 5 if weight.dim() > 1 else 1
    model.generation_config = GenerationConfig()
    return model


def tokenize(text: str) -> dict[str, list[int]]:
    return {"input_ids": [3 + ord(character) % 120 for character in text[::3]]}


def is_right(model: PreTrainedModel, alone: list[list[int]], prompts: list[list[int]]) -> bool:
    limits = {"max_completion_length": STRIDE + 8, "end_ids": [1]}
    sampled = [
        generate_completions(model, prompts, generation_batch_size=size, sampling=sampling, **limits)
        for sampling in [Sampling(1.0, 0, 1.0, sample_seeds(0, 0, list(range(len(prompts))), 1))]
        for size in (1, len(prompts))
    ]
    greedy = generate_completions(model, prompts, generation_batch_size=len(prompts), **limits)
    return greedy == alone and sampled[0] == sampled[1]


def outcome(kind: str) -> str:
    try:
        model = build(kind)
    except Exception as error:
        return f"cannot be built: {one_line(error)[:100]}"
    rng = Random(0)
    prompts = [[rng.randrange(3, 128) for _ in range(length)] for length in (14, 5, 9, 9)]
    settings = {"max_new_tokens": STRIDE + 8, "do_sample": False, "eos_token_id": 1, "pad_token_id": 1}
    alone = []
    try:
        for ids in prompts:
            output = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)).long(), **settings)
            alone.append(output[0, len(ids) :].tolist())
    except Exception as error:
        return f"cannot be used: its own generate fails ({one_line(error)[:80]})"
    try:
        check_generation(model, tokenize)
        return "right" if is_right(model, alone, prompts) else "WRONG"
    except RecipeError:
        return "refused"
    except Exception as error:
        return f"FAILS: {one_line(error)[:100]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", default=list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES), metavar="MODEL_TYPE")
    outcomes = Counter()
    for kind in parser.parse_args().kinds:
        text = outcome(kind)
        outcomes[text.split(":")[0]] += 1
        print(f"{kind:24} {text}", flush=True)
    print(dict(outcomes))
    sys.exit(bool(outcomes["WRONG"] + outcomes["FAILS"]))


if __name__ == "__main__":
    main()
