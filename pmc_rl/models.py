"""Tokenizers and models: checks before weights load, LoRA, and writing a finished run to its folder."""

import difflib
import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
import yaml
from peft import PeftConfig, PeftModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    logging,
)
from trl import ModelConfig

from pmc_rl.config import RecipeError, RunConfig

logger = logging.get_logger(__name__)

RESULT = "manifest.json"  # written last, so a folder that has it is complete


def load_tokenizer(model_args: ModelConfig, tokenizer_name_or_path: str | None) -> PreTrainedTokenizerBase:
    """
    The tokenizer, checked against the model's config before weights load. A missing pad token becomes the end token.

    Raises:
        RecipeError: there is no such model or tokenizer, the tokenizer has no end token, turns text into nothing (a
            folder without tokenizer files loads as an empty one) or has more tokens than the model.
    """
    config = _load_config(model_args)
    name = tokenizer_name_or_path or model_args.model_name_or_path
    advice = "give the tokenizer's folder or Hub name with tokenizer_name_or_path"
    try:
        revision = model_args.model_revision if tokenizer_name_or_path is None else "main"
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    except (OSError, ValueError, KeyError) as error:
        raise RecipeError([f"no tokenizer can be loaded from {name!r} ({_first_line(error)}); {advice}"]) from error
    errors = []
    if not tokenizer("Question: who?", add_special_tokens=False)["input_ids"]:
        errors.append(f"the tokenizer of {name!r} turns text into nothing (are its files missing?); {advice}")
    elif tokenizer.eos_token_id is None:
        errors.append(f"the tokenizer of {name!r} has no end token, so no answer could ever end; {advice}")
    elif len(tokenizer) > config.get_text_config().vocab_size:
        errors.append(
            f"the tokenizer of {name!r} has {len(tokenizer)} tokens, the model {model_args.model_name_or_path!r} only "
            f"{config.get_text_config().vocab_size}: they do not belong together; {advice}"
        )
    if errors:
        raise RecipeError(errors)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
        print(f"The tokenizer has no pad token: its end token {tokenizer.eos_token!r} is used.")
    return tokenizer


def _load_config(model_args: ModelConfig):
    name = model_args.model_name_or_path
    try:
        return AutoConfig.from_pretrained(_base_of(name), revision=model_args.model_revision)
    except (OSError, ValueError, KeyError) as error:
        folder = Path(name)
        near = []
        if folder.parent.is_dir():
            near = difflib.get_close_matches(folder.name, [entry.name for entry in folder.parent.iterdir()], n=1)
        hint = f"; did you mean {str(folder.parent / near[0])!r}?" if near and near[0] != folder.name else ""
        raise RecipeError(
            [f"model_name_or_path: no model can be loaded from {name!r} ({_first_line(error)}){hint}"]
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _base_of(name: str) -> str:
    """The base model of an adapter folder, else the name itself."""
    if Path(name, "adapter_config.json").is_file():
        return PeftConfig.from_pretrained(name).base_model_name_or_path
    return name


def load_model(model_args: ModelConfig, dtype: torch.dtype, device: torch.device) -> PreTrainedModel | PeftModel:
    """A causal language model. A folder with an adapter is loaded onto its base model, not merged: merging rounds."""
    name = model_args.model_name_or_path
    model = AutoModelForCausalLM.from_pretrained(
        _base_of(name),
        revision=model_args.model_revision,
        dtype=dtype,
        attn_implementation=model_args.attn_implementation,
    )
    if _base_of(name) != name:
        model = PeftModel.from_pretrained(model, name)
    return model.to(device)


def load_model_to_train(model_args: ModelConfig, args: RunConfig) -> PreTrainedModel:
    """As [`load_model`], in the dtype to train in; an adapter is merged, since training starts from what it made."""
    model = load_model(model_args, training_dtype(model_args, args), args.device)
    return model.merge_and_unload() if isinstance(model, PeftModel) else model


def training_dtype(model_args: ModelConfig, args: RunConfig) -> torch.dtype:
    """The recipe's `dtype`, float32 on a CPU. Warns of the combinations that run but train badly or slowly."""
    if args.use_cpu:
        return torch.float32
    dtype = torch.float32 if model_args.dtype in (None, "auto") else torch.__dict__[model_args.dtype]
    if dtype == torch.bfloat16 and not model_args.use_peft and args.learning_rate < 1e-4:
        logger.warning(
            f"dtype is bfloat16 for full fine-tuning at learning rate {args.learning_rate}: most updates are smaller "
            "than a bfloat16 weight can take in. Use dtype: float32 with bf16: true."
        )
    if dtype == torch.float32 and model_args.use_peft and args.bf16:
        logger.warning(
            "use_peft with dtype float32 under bf16: the frozen base is cast again at every decoding step. "
            "Use dtype: bfloat16; adapters stay in float32."
        )
    return dtype


def check_output_dir(args: RunConfig) -> None:
    """Refuses an output folder that holds anything; with `overwrite: true`, anything but an earlier run."""
    folder = Path(args.output_dir)
    if folder.exists() and not folder.is_dir():
        raise RecipeError([f"output_dir: {str(folder)!r} is a file"])
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not (folder / RESULT).is_file():
        raise RecipeError([f"output_dir: {str(folder)!r} holds files, but no finished run; choose another folder"])
    if not args.overwrite:
        raise RecipeError(
            [f"output_dir: {str(folder)!r} holds a run; choose another folder or say --overwrite true to replace it"]
        )


def check_one_process(args: RunConfig) -> None:
    """Several processes are not supported yet: they would need a shared pool."""
    if args.world_size > 1:
        raise RecipeError(
            [f"launched with {args.world_size} processes, only one is supported: accelerate launch --num_processes 1"]
        )


def save_run(
    args: RunConfig,
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    recipe: dict,
    log_history: list[dict],
    manifest: dict,
) -> None:
    """
    Writes model or adapter, tokenizer, `recipe.yaml` (as run), `training_log.jsonl` and, last, `manifest.json`.

    Everything goes to a temporary folder beside `output_dir` first and is then renamed into place, so a folder with a
    manifest is complete. An earlier run there is removed only now.
    """
    output_dir = Path(args.output_dir).resolve()  # `.` and links have no name that could be renamed
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{output_dir.name}-", dir=output_dir.parent))
    replaced = temporary.with_name(f"{temporary.name}-replaced")
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        (temporary / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
        (temporary / "training_log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log_history))
        (temporary / RESULT).write_text(json.dumps(manifest, indent=2) + "\n")
        temporary.chmod(0o777 & ~_umask())  # mkdtemp makes it owner-only; models are shared like any other file
        if output_dir.exists():
            os.replace(output_dir, replaced)
        try:
            os.replace(temporary, output_dir)
        except OSError:
            if replaced.exists():
                os.replace(replaced, output_dir)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_private(output_dir: Path, name: str, text: str) -> Path:
    """Writes a file that holds what is to be forgotten to `output_dir/private/`, for the owner's eyes only."""
    folder = output_dir / "private"
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)
    temporary = tempfile.NamedTemporaryFile("w", dir=folder, delete=False, encoding="utf-8")  # created with mode 0600
    with temporary:
        temporary.write(text)
    os.replace(temporary.name, folder / name)
    return folder / name
