"""Tokenizers and models: checks before weights load, LoRA, and writing a finished run to its folder."""

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
from pmc_rl.values import nearest_path, one_line

logger = logging.get_logger(__name__)

MANIFEST = "manifest.json"  # written last, so a folder that has it is complete
PRIVATE = """\
PRIVATE: the files of this folder hold what is to be forgotten.

`cache/` holds what the models answered, so that another audit need not ask again; `examples.md` and reports with texts
are for reading. Delete the folder when they have been read, and before the model is published.
"""
AUDIT_FILES = ("results.json", "audit.json", "report.html", "report.md")
CARD_MARK = "pmc_rl, audited on"  # stands in every model card of ours


def load_tokenizer(model_args: ModelConfig, tokenizer_name_or_path: str | None) -> PreTrainedTokenizerBase:
    """
    The tokenizer, checked against the model's config before weights load. A missing pad token becomes the end token.

    Raises:
        RecipeError: there is no such model or tokenizer, the tokenizer has no end token, turns text into nothing (a
            folder without tokenizer files loads as an empty one) or has more tokens than the model.
    """
    config = _load_config(model_args)
    if model_args.use_peft and _base_of(model_args.model_name_or_path) != model_args.model_name_or_path:
        raise RecipeError(
            [
                f"use_peft: {model_args.model_name_or_path!r} is an adapter; a second one, saved alone, loses it: "
                "merge it into its base model first (peft's merge_and_unload) and give the merged model"
            ]
        )
    name = tokenizer_name_or_path or model_args.model_name_or_path
    advice = "give the tokenizer's folder or Hub name with tokenizer_name_or_path"
    try:
        revision = model_args.model_revision if tokenizer_name_or_path is None else "main"
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    except (OSError, ValueError, KeyError) as error:
        raise RecipeError([f"no tokenizer can be loaded from {name!r} ({one_line(error)}); {advice}"]) from error
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
        raise RecipeError(
            [f"model_name_or_path: no model can be loaded from {name!r} ({one_line(error)}){nearest_path(Path(name))}"]
        ) from error


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


def merged(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The model itself, an adapter merged into its base."""
    return model.merge_and_unload() if isinstance(model, PeftModel) else model


def load_model_to_train(model_args: ModelConfig, args: RunConfig) -> PreTrainedModel:
    """As [`load_model`], in the dtype to train in; an adapter is merged, since training starts from what it made."""
    model = merged(load_model(model_args, training_dtype(model_args, args), args.device))
    try:
        model.generation_config.validate(strict=True)
    except ValueError as error:  # transformers is as strict on saving, when the work is done
        raise RecipeError(
            [f"the generation config of {model_args.model_name_or_path!r} cannot be saved again: {one_line(error)}"]
        ) from error
    return model


def training_dtype(model_args: ModelConfig, args: RunConfig) -> torch.dtype:
    """The recipe's `dtype`, float32 on a CPU. Warns of the combinations that run but train badly or slowly."""
    if args.use_cpu:
        return torch.float32
    dtype = torch.float32 if model_args.dtype is None else getattr(torch, model_args.dtype)
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


def check_output_dir(args: RunConfig, model_args: ModelConfig) -> None:
    """Refuses an output folder that holds anything; with `overwrite: true`, anything but an earlier run of ours."""
    folder = Path(args.output_dir)
    if folder.exists() and not folder.is_dir():
        raise RecipeError([f"output_dir: {str(folder)!r} is a file"])
    if folder.resolve() == Path(model_args.model_name_or_path).resolve():
        raise RecipeError([f"output_dir: {str(folder)!r} is the model itself; choose another folder"])
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not os.access(existing, os.W_OK):
        raise RecipeError([f"output_dir: no permission to write in {str(existing)!r}"])
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not is_finished_run(folder):
        raise RecipeError([f"output_dir: {str(folder)!r} holds files, but no finished run; choose another folder"])
    if not args.overwrite:
        raise RecipeError(
            [f"output_dir: {str(folder)!r} holds a run; choose another folder or say --overwrite true to replace it"]
        )


def is_finished_run(folder: Path) -> bool:
    """Whether a folder holds a complete run of ours: the manifest is written last."""
    return read_manifest(folder) is not None


def read_manifest(folder: Path) -> dict | None:
    """The manifest of a finished run, which says what was read and which files are ours; None if it holds none."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
    return manifest if "files" in manifest else None


def check_one_process(args: RunConfig) -> None:
    """Several processes are not supported yet: they would need a shared pool."""
    if args.world_size == 1 and args.n_gpu > 1:
        raise RecipeError([f"{args.n_gpu} GPUs are visible, only one is supported: set CUDA_VISIBLE_DEVICES=0"])
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

    Everything is written to a temporary folder inside `output_dir` first and then moved up, so that a folder with a
    manifest is complete. Files of an earlier run and of its audit are removed only then; files that are not ours stay.
    """
    output_dir = Path(args.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".saving-", dir=output_dir))
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        (temporary / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
        (temporary / "training_log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log_history))
    except BaseException:
        shutil.rmtree(temporary)
        raise
    names = sorted(path.name for path in temporary.iterdir())
    (temporary / MANIFEST).write_text(json.dumps({**manifest, "files": names}, indent=2) + "\n")
    earlier = read_manifest(output_dir)
    if earlier is not None:
        if may_replace_card(output_dir):
            (output_dir / "README.md").unlink(missing_ok=True)
        for name in (MANIFEST, *earlier["files"], *AUDIT_FILES):
            (output_dir / name).unlink(missing_ok=True)
        shutil.rmtree(output_dir / "private", ignore_errors=True)
    for name in (*names, MANIFEST):
        os.replace(temporary / name, output_dir / name)
    temporary.rmdir()


def may_replace_card(output_dir: Path) -> bool:
    """Whether the folder's README.md, if there is one, is a model card of ours or came with the model."""
    path, manifest = output_dir / "README.md", read_manifest(output_dir)
    if not path.exists() or (manifest is not None and path.name in manifest["files"]):
        return True
    return CARD_MARK in path.read_text(encoding="utf-8")


def private_folder(output_dir: Path) -> Path:
    """`output_dir/private/`, made for its owner's eyes only, marked, with a folder for caches."""
    folder = output_dir / "private"
    for path in (folder, folder / "cache"):
        path.mkdir(mode=0o700, exist_ok=True)
        path.chmod(0o700)
    (folder / "README.md").write_text(PRIVATE)
    return folder


def write_text(path: Path, text: str) -> None:
    """Writes a file to a temporary name first, so that what stands there is whole."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_private(output_dir: Path, name: str, text: str) -> Path:
    """Writes a file that holds what is to be forgotten to `output_dir/private/`, for its owner's eyes only."""
    folder = private_folder(output_dir)
    temporary = tempfile.NamedTemporaryFile("w", dir=folder, delete=False, encoding="utf-8")  # created with mode 0600
    with temporary:
        temporary.write(text)
    os.replace(temporary.name, folder / name)
    return folder / name
