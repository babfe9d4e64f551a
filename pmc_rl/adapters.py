"""LoRA adapters: made from a recipe's keys, put on a model, merged into it."""

import re

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from trl import ModelConfig, get_peft_config

from pmc_rl.errors import RecipeError, did_you_mean, one_line


def make_peft_config(model_args: ModelConfig) -> LoraConfig | None:
    """TRL's, but one name of a module is a name: TRL makes a text of a list of one, which peft reads as a pattern."""
    config = get_peft_config(model_args)
    if config and isinstance(config.target_modules, str) and re.fullmatch(r"[\w.]+", config.target_modules):
        config.target_modules = {config.target_modules}
    return config


def add_adapter(model: PreTrainedModel, model_args: ModelConfig) -> PeftModel:
    """A model with the adapter that a recipe describes, if it fits and can be trained; only shapes are needed."""
    try:
        config = make_peft_config(model_args)
        _check_names(model, config)
        model = get_peft_model(model, config)
    except (ValueError, TypeError, re.error) as error:
        if isinstance(error, RecipeError):
            raise
        raise RecipeError([f"lora_target_modules: {one_line(error)}"]) from error
    head = model.get_output_embeddings()
    if isinstance(head, BaseTunerLayer):
        what = "an adapter on the head of the model would never be trained: the loss reads the head's own weights"
        raise RecipeError([f"lora_target_modules: {what}; leave it out, or name the head in lora_modules_to_save"])
    if model_args.load_in_4bit or model_args.load_in_8bit:
        whole = [layer for layer in model.modules() if isinstance(layer, ModulesToSaveWrapper) and layer is not head]
        if any(isinstance(layer, nn.Linear | Conv1D) for wrapper in whole for layer in wrapper.modules()):
            raise RecipeError(["lora_modules_to_save: a quantized linear layer cannot be trained as a whole"])
    return model


def _check_names(model: PreTrainedModel, config: LoraConfig) -> None:
    """peft passes over a name that nothing has, as long as another one is found."""
    modules, parameters = ([name for name, _ in named] for named in (model.named_modules(), model.named_parameters()))
    errors = []
    for key, given, names in (
        ("lora_target_modules", config.target_modules, modules),
        ("lora_modules_to_save", config.modules_to_save, modules),
        ("lora_target_parameters", config.target_parameters, parameters),
    ):
        for missing in sorted(given) if given and not isinstance(given, str) else []:
            if not any(name.endswith(missing) for name in names):
                hint = did_you_mean(missing, {name.split(".")[-1] for name in names})
                errors.append(f"{key}: nothing in the model is called {missing!r}.{hint}")
    if errors:
        raise RecipeError(errors)


def merge(adapted: PeftModel) -> PreTrainedModel:
    """
    The model that an adapter makes of its base, which is changed in place. An adapter on one of two tied matrices
    changes that one alone: they are untied, or both would be changed.
    """
    base = adapted.get_base_model()
    layers = [base.get_input_embeddings(), base.get_output_embeddings()]
    embeddings, head = (layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer for layer in layers)
    if head.weight is embeddings.weight and [embeddings, head] != layers:
        head.weight = nn.Parameter(head.weight.detach().clone())
        base.config.tie_word_embeddings = False
    return adapted.merge_and_unload()


def restore_conv1d(model: PreTrainedModel) -> None:
    """bitsandbytes makes linear layers of GPT-2's transposed ones, which could not be loaded once they are saved."""
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(model.config)
    for name, layer in plain.named_modules():
        if isinstance(layer, Conv1D):
            linear, layer = model.get_submodule(name), Conv1D(layer.nf, layer.nx)
            layer.weight, layer.bias = nn.Parameter(linear.weight.T.contiguous()), linear.bias
            model.set_submodule(name, layer)
