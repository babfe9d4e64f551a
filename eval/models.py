"""The models an audit compares: their folders, the checks that they belong to the run, and their passes."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import ModelConfig

from eval.cache import RowCache, model_fingerprint
from eval.metrics.semantic import Similarity
from eval.passes import ModelPasses
from eval.sets import QuestionSet
from pmc_rl.config import DataArguments, EvalArguments, FinetuneArguments, PMCArguments, PMCConfig
from pmc_rl.data import normalized, read_finetune_rows, read_retain_rows, retain_columns
from pmc_rl.errors import RecipeError, all_problems, nearest_path
from pmc_rl.generation_check import check_generation
from pmc_rl.models import (
    check_files,
    load_config,
    load_end_ids,
    load_model,
    load_tokenizer,
    stored_quantization,
    training_dtype,
)
from pmc_rl.output import MERGED, is_finished_run, published, read_manifest, read_record
from pmc_rl.prompt_checks import Limits, check_prompt_format, check_rows, context_length
from pmc_rl.recipe import parse_finetune_recipe, parse_recipe
from pmc_rl.template_date import date_variable

# keys that a run and its audit must have in common, beside those of DataArguments
DATA = ("forget_config", "forget_split", "forget_file", "retain_config", "retain_split", "retain_file")
DATA += ("retain_question_column", "retain_own_answers", "retain_holdout")
SAMPLING = ("temperature", "top_k", "top_p")  # the sampling attack runs as training did
LOADING = ("model_name_or_path", "model_revision")
LOADING += ("load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "use_bnb_nested_quant")
TEMPLATES = ("prompt_template", "completion_template", "system_prompt", "chat_template_kwargs")
NO_RECORD = "{}: private/ was deleted, so nothing tells whether its data is that of this audit"
Recipe = tuple[PMCArguments, PMCConfig, ModelConfig, EvalArguments]


@dataclass
class AuditedModel:
    """One model of the audit; `model_args` say which weights, and nothing of training."""

    name: str
    model_args: ModelConfig
    tokenizer: PreTrainedTokenizerBase

    @property
    def folder(self) -> str:
        return self.model_args.model_name_or_path

    @cached_property
    def end_ids(self) -> list[int]:
        """Every id that ends an answer."""
        return load_end_ids(self.model_args, self.tokenizer)

    @cached_property
    def fingerprint(self) -> str:
        """Of the weights: read once, which takes seconds for a large model."""
        return model_fingerprint(self.folder, self.model_args.model_revision)

    def passes(self, recipe: Recipe, cache: RowCache | None, similarity: Similarity | None = None) -> ModelPasses:
        """The model's passes in the precision of the recipe; nothing is loaded yet."""
        script_args, training_args, model_args, _ = recipe
        dtype, args = training_dtype(model_args, training_args), self.model_args
        bits = " 8 bit" if args.load_in_8bit else ""
        if args.load_in_4bit:
            bits = f" 4 bit {args.bnb_4bit_quant_type}{' nested' if args.use_bnb_nested_quant else ''}"

        def load() -> PreTrainedModel:
            model = load_model(args, dtype, training_args.device)
            check_generation(model, self.tokenizer)
            return model

        state = f"{self.fingerprint} {dtype} {model_args.attn_implementation}{bits}"
        settings = script_args, training_args, cache, similarity
        return ModelPasses(self.name, state, load, self.tokenizer, self.end_ids, *settings)


def load_columns(recipe: Recipe) -> list[AuditedModel]:
    """
    The models `before`, `after`, `merged` where saved, `retain_only` where given, and those of `also`, a column of the
    results each. The first two are quantized as the recipe says: so the model was before and after.

    Raises:
        RecipeError: there is no such model, a name is taken or has no folder.
    """
    _, training_args, model_args, eval_args = recipe
    folders = {"before": model_args.model_name_or_path, "after": training_args.output_dir}
    if Path(training_args.output_dir, MERGED).is_dir():
        folders["merged"] = str(Path(training_args.output_dir, MERGED))
    if eval_args.retain_only_model:
        folders["retain_only"] = eval_args.retain_only_model
    errors = []
    for entry in eval_args.also:
        name, _, folder = entry.partition("=")
        if not (name and folder):
            errors.append(f"also: {entry!r} is not NAME=FOLDER")
        elif name in folders or name == "retain_only":
            errors.append(f"also: {name!r} is the name of another column; choose another one")
        elif not Path(folder).is_dir() and (folder.startswith(("/", ".")) or folder.count("/") != 1):
            errors.append(f"also: there is no folder {folder!r}{nearest_path(Path(folder))}")
        else:
            folders[name] = folder
    if errors:
        raise RecipeError(errors)
    with all_problems() as check:
        columns = [check(_load_column, recipe, *item) for item in folders.items()]
    return columns


def _load_column(recipe: Recipe, name: str, folder: str) -> AuditedModel:
    script_args, _, model_args, _ = recipe
    of_run = name in ("before", "after")
    # which weights it has is all that differs; LoRA and its checks are a matter of training
    args = replace(model_args, model_name_or_path=folder, use_peft=False)
    tokenizer_name = script_args.tokenizer_name_or_path
    if not of_run:
        args = replace(args, model_revision="main")
        # the recipe's tokenizer is that of its model; another model may have brought another one
        tokenizer_name = None if Path(folder, "tokenizer_config.json").is_file() else tokenizer_name
    try:
        tokenizer = load_tokenizer(args, tokenizer_name)
        args = args if of_run else replace(args, **stored_quantization(args))
        check_files(args)
        return AuditedModel(name, args, tokenizer)
    except RecipeError as error:
        raise RecipeError([line if of_run else f"{name}: {line}" for line in error.errors]) from error


def check_run(recipe: Recipe) -> None:
    """The folder holds a finished run of this recipe, and no results that nobody said may be replaced."""
    script_args, training_args, model_args, _ = recipe
    output_dir = Path(training_args.output_dir)
    if not is_finished_run(output_dir):
        raise RecipeError([f"output_dir: {str(output_dir)!r} holds no finished run; run pmc_rl/train.py first"])
    trained = parse_recipe([str(output_dir / "recipe.yaml")])
    # the recipe it began with need not say what the run has fixed, such as the date that the chat template writes
    kwargs = {**(trained[0].chat_template_kwargs or {}), **(script_args.chat_template_kwargs or {})}
    if kwargs:
        script_args.chat_template_kwargs = script_args.given["chat_template_kwargs"] = kwargs
    of_data = [key.name for key in fields(DataArguments) if key.name not in ("given", "answer_column")]
    keys = ([*of_data, *DATA], SAMPLING, LOADING)
    # without its private record a run tells paths as they were published only
    comparable = (lambda value: value) if read_record(output_dir) else published
    errors = [
        f"{key}: {vars(ours)[key]!r}, but the run in {str(output_dir)!r} was trained with {vars(theirs)[key]!r}; "
        f"give {str(output_dir / 'recipe.yaml')!r} as the recipe"
        for ours, theirs, names in zip(recipe, trained, keys, strict=False)
        for key in names
        if comparable(vars(ours)[key]) != comparable(vars(theirs)[key])
    ]
    if (output_dir / "results.json").exists() and not training_args.overwrite:
        errors.append(f"output_dir: {str(output_dir / 'results.json')!r} exists; say --overwrite true to replace it")
    if errors:
        raise RecipeError(errors)


def check_prompts(recipe: Recipe, column: AuditedModel, questions: dict[str, QuestionSet]) -> None:
    """A model's prompts begin what is scored, fit into it, and are the same on any day."""
    script_args, training_args, _, _ = recipe
    check_prompt_format(script_args, column.tokenizer)
    variable = date_variable(script_args, column.tokenizer)
    if variable is not None:
        where = f"here and in {str(Path(training_args.output_dir, 'recipe.yaml'))!r}"
        what = f"the chat template of {column.name} writes the date of today"
        raise RecipeError([f"chat_template_kwargs: {what}; give {variable}, the date of the run, {where}"])
    limits = Limits(None, training_args.max_completion_length, context_length(load_config(column.model_args)))
    keys = (script_args.question_column, script_args.answer_column or "answer")
    for name, rows in questions.items():
        asked = [dict(zip(keys, pair, strict=True)) for pair in zip(rows.questions, rows.answers, strict=True)]
        check_rows(script_args, column.tokenizer, column.end_ids, name, asked, limits)


def check_data(recipe: Recipe, read: dict) -> list[str]:
    """
    Refuses questions (records of what was read, by set) that are not those the run read, by their hashes.

    Returns:
        a line that says so, if the hashes were deleted.
    """
    script_args, training_args, _, _ = recipe
    record = read_record(Path(training_args.output_dir))
    if record is None:
        return [NO_RECORD.format(f"the run in {training_args.output_dir!r}")]
    changed = [
        f"the {name} questions have changed since the run in {training_args.output_dir!r}"
        for name, column in {"forget": script_args.question_column, "retain": retain_columns(script_args)[0]}.items()
        if name in read and record["read"][name] and read[name]["columns"][column] != record["read"][name][column]
    ]
    if changed:
        raise RecipeError(changed)
    return []


def check_retain_only(recipe: Recipe, columns: list[AuditedModel], forget_questions: list[str]) -> list[str]:
    """
    Refuses a retain-only model that was not made for this run: same templates, its retain rows, no forget question.

    Returns:
        lines that say what could not be checked: a model from elsewhere has no manifest, and hashes may be deleted.
    """
    script_args, _, _, eval_args = recipe
    if eval_args.retain_only_model is None:
        return []
    folder = Path(eval_args.retain_only_model)
    where = f"retain_only_model: {str(folder)!r}"
    fingerprint = next(column.fingerprint for column in columns if column.name == "retain_only")
    for column in columns[:2]:
        if column.fingerprint == fingerprint:
            raise RecipeError([f"{where} is the model {column.name} itself, no reference for it"])
    manifest, record = read_manifest(folder), read_record(folder)
    if manifest is None:
        return [f"{where} has no manifest, so nothing tells that it never saw the forget rows"]
    if manifest["stage"] != "finetune":
        raise RecipeError([f"{where} was made by {manifest['stage']}.py, not finetune.py"])
    args, _, _ = parse_finetune_recipe([str(folder / "recipe.yaml")])
    errors = [
        f"{where} was trained with {key} {vars(args)[key]!r}, the run with {vars(script_args)[key]!r}"
        for key in TEMPLATES
        if vars(args)[key] != vars(script_args)[key]
    ]
    if record is not None:  # without it there are no paths of its data either
        errors += [f"{where}{problem}" for problem in _learned_wrongly(recipe, args, record, forget_questions)]
    if errors:
        raise RecipeError(errors)
    return [NO_RECORD.format(where)] if record is None else []


def _learned_wrongly(
    recipe: Recipe, args: FinetuneArguments, record: dict, forget_questions: list[str]
) -> Iterator[str]:
    """What is wrong with the rows that a retain-only model was fine-tuned on."""
    script_args, training_args, _, _ = recipe
    try:
        rows, records = read_finetune_rows(args)
    except RecipeError as error:
        yield from (f": its data cannot be read again: {line}" for line in error.errors)
        return
    if {name: read["columns"] for name, read in records.items()} != record["read"]:
        yield ": the data it was trained on has changed since; train it again"
        return
    learned = {(normalized(row[args.question_column]), row[args.answer_column]) for row in rows}
    questions = {question for question, _ in learned}
    has_retain = read_manifest(Path(training_args.output_dir))["read"]["retain"]
    retained = read_retain_rows(script_args)[0] if has_retain else []
    lacking = 0
    for row in retained:
        question, answer = normalized(row[script_args.question_column]), row.get(script_args.answer_column or "answer")
        # a row without an answer was retained with the model's own
        lacking += question not in questions if answer is None else (question, answer) not in learned
    if lacking:
        yield f" was not trained on {lacking} of the {len(retained)} retain rows of this run"
    if seen := sum(normalized(question) in questions for question in forget_questions):
        yield f" was trained on {seen} of the {len(forget_questions)} questions to forget"
