"""The models an audit compares: their folders, the checks that they belong to the run, and their passes."""

from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import ModelConfig

from eval.cache import RowCache, model_fingerprint
from eval.data import QuestionSet
from eval.passes import ModelPasses
from pmc_rl.config import DataArguments, EvalArguments, PMCArguments, PMCConfig
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

FORGET_AND_RETAIN = ("forget_config", "forget_split", "forget_file", "retain_config", "retain_split", "retain_file")
FORGET_AND_RETAIN += ("retain_question_column", "retain_holdout")
SAMPLING = ("temperature", "top_k", "top_p")  # the sampling attack runs as training did
LOADING = ("model_name_or_path", "model_revision")
LOADING += ("load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "use_bnb_nested_quant")
TEMPLATES = ("prompt_template", "completion_template", "system_prompt", "chat_template_kwargs")
NO_RECORD = "{}: private/ was deleted, so nothing tells whether its data is that of this audit"
Recipe = tuple[PMCArguments, PMCConfig, ModelConfig, EvalArguments]


@dataclass
class Column:
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

    @property
    def bits(self) -> str:
        """How its base is quantized, as part of what tells models apart; nothing where it is not."""
        args = self.model_args
        if args.load_in_4bit:
            return f" 4 bit {args.bnb_4bit_quant_type}{' nested' if args.use_bnb_nested_quant else ''}"
        return " 8 bit" if args.load_in_8bit else ""

    def passes(self, recipe: Recipe, cache: RowCache | None) -> ModelPasses:
        """The model's passes in the precision of the recipe; nothing is loaded yet."""
        script_args, training_args, model_args, _ = recipe
        dtype = training_dtype(model_args, training_args)

        def load() -> PreTrainedModel:
            model = load_model(self.model_args, dtype, training_args.device)
            check_generation(model, self.tokenizer)
            return model

        return ModelPasses(
            self.name,
            f"{self.fingerprint} {dtype} {model_args.attn_implementation}{self.bits}",
            load,
            self.tokenizer,
            self.end_ids,
            script_args,
            training_args,
            cache,
        )


def load_columns(recipe: Recipe) -> list[Column]:
    """
    The columns `before`, `after`, `merged` where saved, `retain_only` where given, and those of `also`, with their
    tokenizers. The first two are quantized as the recipe says: so the model was before and after.

    Raises:
        RecipeError: there is no such model, a name is taken or has no folder.
    """
    script_args, training_args, model_args, eval_args = recipe
    folders = {"before": model_args.model_name_or_path, "after": training_args.output_dir}
    if (Path(training_args.output_dir) / MERGED).is_dir():
        folders["merged"] = str(Path(training_args.output_dir) / MERGED)
    if eval_args.retain_only_model:
        folders["retain_only"] = eval_args.retain_only_model
    errors = []
    for entry in eval_args.also:
        name, equals, folder = entry.partition("=")
        if not (name and equals and folder):
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


def _load_column(recipe: Recipe, name: str, folder: str) -> Column:
    script_args, _, model_args, _ = recipe
    own = name in ("before", "after")
    # which weights a column has is all that differs; LoRA and its checks are a matter of training
    revision = model_args.model_revision if own else "main"
    args = replace(model_args, model_name_or_path=folder, model_revision=revision, use_peft=False)
    # the recipe's tokenizer is that of its model; another model may have brought another one
    has_tokenizer = not own and Path(folder, "tokenizer_config.json").is_file()
    try:
        tokenizer = load_tokenizer(args, None if has_tokenizer else script_args.tokenizer_name_or_path)
        if not own:
            args = replace(args, **stored_quantization(args))
        check_files(args)
        return Column(name, args, tokenizer)
    except RecipeError as error:
        if own:
            raise
        raise RecipeError([f"{name}: {line}" for line in error.errors]) from error


def check_run(recipe: Recipe) -> None:
    """The folder holds a finished run of this recipe, and no results that nobody said may be replaced."""
    script_args, training_args, model_args, _ = recipe
    output_dir = Path(training_args.output_dir)
    if not is_finished_run(output_dir):
        raise RecipeError([f"output_dir: {str(output_dir)!r} holds no finished run; run pmc_rl/train.py first"])
    trained_args, trained_training_args, trained_model_args, _ = parse_recipe([str(output_dir / "recipe.yaml")])
    # the recipe it began with need not say what the run has fixed, such as the date that the chat template writes
    kwargs = {**(trained_args.chat_template_kwargs or {}), **(script_args.chat_template_kwargs or {})}
    if kwargs:
        script_args.chat_template_kwargs = script_args.given["chat_template_kwargs"] = kwargs
    pairs = [(key, vars(model_args)[key], vars(trained_model_args)[key]) for key in LOADING]
    pairs += [(key, vars(training_args)[key], vars(trained_training_args)[key]) for key in SAMPLING]
    pairs += [
        (key.name, vars(script_args)[key.name], vars(trained_args)[key.name])
        for key in fields(DataArguments)
        if key.name not in ("given", "answer_column")
    ]
    pairs += [(key, vars(script_args)[key], vars(trained_args)[key]) for key in FORGET_AND_RETAIN]
    # without its private record a run tells paths as they were published only
    same = (lambda value: value) if read_record(output_dir) else published
    errors = [
        f"{key}: {ours!r}, but the run in {str(output_dir)!r} was trained with {trained!r}; "
        f"give {str(output_dir / 'recipe.yaml')!r} as the recipe"
        for key, ours, trained in pairs
        if same(ours) != same(trained)
    ]
    if (output_dir / "results.json").exists() and not training_args.overwrite:
        errors.append(f"output_dir: {str(output_dir / 'results.json')!r} exists; say --overwrite true to replace it")
    if errors:
        raise RecipeError(errors)


def check_prompts(recipe: Recipe, column: Column, questions: dict[str, QuestionSet]) -> None:
    """A column's prompts begin what is scored, fit into its model, and are the same on any day."""
    script_args, training_args, _, _ = recipe
    check_prompt_format(script_args, column.tokenizer)
    variable = date_variable(script_args, column.tokenizer)
    if variable is not None:
        raise RecipeError(
            [
                f"chat_template_kwargs: the chat template of {column.name} writes the date of today; give {variable}, "
                f"the date of the run, here and in {str(Path(training_args.output_dir, 'recipe.yaml'))!r}"
            ]
        )
    limits = Limits(None, training_args.max_completion_length, context_length(load_config(column.model_args)))
    for name, rows in questions.items():
        pairs = zip(rows.questions, rows.answers, strict=True)
        answer_column = script_args.answer_column or "answer"
        asked = [{script_args.question_column: question, answer_column: answer} for question, answer in pairs]
        check_rows(script_args, column.tokenizer, column.end_ids, name, asked, limits)


def check_data(recipe: Recipe, read: dict) -> list[str]:
    """
    The questions that the audit read are those that the run read, by their hashes; `read` is by set.

    Returns:
        a line that says so, if the hashes were deleted.
    """
    script_args, training_args, _, _ = recipe
    record = read_record(Path(training_args.output_dir))
    if record is None:
        return [NO_RECORD.format(f"the run in {training_args.output_dir!r}")]
    trained = record["read"]
    questions = {"forget": script_args.question_column, "retain": retain_columns(script_args)[0]}
    changed = [
        name
        for name, column in questions.items()
        if name in read and trained[name] is not None and read[name]["columns"][column] != trained[name][column]
    ]
    if changed:
        raise RecipeError(
            [f"the {name} questions have changed since the run in {training_args.output_dir!r}" for name in changed]
        )
    return []


def check_retain_only(recipe: Recipe, columns: list[Column], forget_questions: list[str]) -> list[str]:
    """
    The retain-only model was made for this run: same templates, its retain rows, no forget question.

    Returns:
        lines that say what could not be checked: a model from elsewhere has no manifest, and hashes may be deleted.

    Raises:
        RecipeError: with every mismatch.
    """
    script_args, training_args, _, eval_args = recipe
    if eval_args.retain_only_model is None:
        return []
    folder = Path(eval_args.retain_only_model)
    where = f"retain_only_model: {str(folder)!r}"
    before, after = columns[:2]
    retain_only = next(column for column in columns if column.name == "retain_only")
    for column in (before, after):
        if column.fingerprint == retain_only.fingerprint:
            raise RecipeError([f"{where} is the model {column.name} itself, no reference for it"])
    manifest = read_manifest(folder)
    if manifest is None:
        return [
            f"retain_only_model: {str(folder)!r} has no manifest, so nothing tells that it never saw the forget rows"
        ]
    if manifest["stage"] != "finetune":
        raise RecipeError([f"retain_only_model: {str(folder)!r} was made by {manifest['stage']}.py, not finetune.py"])
    args, _, _ = parse_finetune_recipe([str(folder / "recipe.yaml")])
    errors = [
        f"{where} was trained with {key} {vars(args)[key]!r}, the run with {vars(script_args)[key]!r}"
        for key in TEMPLATES
        if vars(args)[key] != vars(script_args)[key]
    ]
    saw = read_record(folder)
    if saw is None:  # nor are there the paths of its data
        if errors:
            raise RecipeError(errors)
        return [NO_RECORD.format(where)]
    try:
        rows, records = read_finetune_rows(args)
    except RecipeError as error:
        raise RecipeError([f"{where}: its data cannot be read again: {line}" for line in error.errors]) from error
    if {name: record["columns"] for name, record in records.items()} != saw["read"]:
        raise RecipeError([*errors, f"{where}: the data it was trained on has changed since; train it again"])
    learned = {(normalized(row[args.question_column]), row[args.answer_column]) for row in rows}
    known = {question for question, _ in learned}
    run = read_manifest(Path(training_args.output_dir))
    retained = read_retain_rows(script_args)[0] if run["read"]["retain"] else []
    answer = script_args.answer_column or "answer"
    lacking = 0
    for row in retained:
        question = normalized(row[script_args.question_column])
        # a row without an answer was retained with the model's own
        lacking += question not in known if row.get(answer) is None else (question, row[answer]) not in learned
    if lacking:
        errors.append(f"{where} was not trained on {lacking} of the {len(retained)} retain rows of this run")
    seen = sum(normalized(question) in known for question in forget_questions)
    if seen:
        errors.append(f"{where} was trained on {seen} of the {len(forget_questions)} questions to forget")
    if errors:
        raise RecipeError(errors)
    return []
