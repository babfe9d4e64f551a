"""Reads the question sets and answer options of an audit: the only place that reads answers to be forgotten."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from eval.metrics.tofu import FACT_SETS
from eval.metrics.unlearning import FORGET_SETS
from eval.sets import AuditData, OptionSet, QuestionSet
from pmc_rl.config import EvalArguments, PMCArguments
from pmc_rl.data import normalized, require_text, retain_columns, split_retain_rows
from pmc_rl.errors import RecipeError, one_line
from pmc_rl.reading import config_names, listed, read_columns
from rewards.text import tokenization

# The PMC paper's retain sample: 400 draws with replacement from the retain rows, with this seed.
RETAIN_DRAWS = 400
RETAIN_SEED = 12345

QUESTION_SETS = (*FORGET_SETS, "retain", "retain_holdout", *FACT_SETS)
OPTION_SETS = ("forget", "retain", *FACT_SETS, "holdout")
OPTION_COLUMNS = ("paraphrased_answer", "perturbed_answer")


class NotThere(Exception):
    """Why the data has no such set."""


@dataclass(frozen=True)
class Source:
    """Where a set comes from: the recipe's key, files or configs of `dataset_name`, and the names of its columns."""

    key: str
    files: tuple[str, ...]
    configs: tuple[str, ...]
    splits: tuple[str, ...]
    question: str
    answer: str | None


class Reader:
    """Rows of the sources of one audit: each source is read once, with every column that a set may want."""

    def __init__(self, args: PMCArguments, eval_args: EvalArguments):
        self.args, self.eval_args = args, eval_args
        columns = {"forget": (args.question_column, args.answer_column), "retain": retain_columns(args)}
        self.recipe_sources: dict[str, Source] = {}
        for name, names in columns.items():
            parts = [tuple(listed(vars(args)[f"{name}_{part}"])) for part in ("file", "config", "split")]
            self.recipe_sources[name] = Source(f"{name}_{'file' if parts[0] else 'config'}", *parts, *names)
        self.left_out: list[str] = []
        self._tables: dict[Source, tuple[list[dict], dict]] = {}
        self._further: dict[Source, dict[int, list[str]]] = {}  # right answers beside the first, by row

    def table(self, source: Source) -> tuple[list[dict], dict]:
        """All rows of a source with the columns that it has, and the record of what was read."""
        if source not in self._tables:
            answers = [source.answer] if source.answer else []
            rows, record = read_columns(
                source.key,
                list(source.files) or None,
                self.args.dataset_name,
                list(source.configs),
                [source.question],
                [*answers, "paraphrased_question", *OPTION_COLUMNS],
                list(source.splits),
            )
            self._further[source] = _take_first(source.key, rows, source.answer)
            self._tables[source] = rows, record
        return self._tables[source]

    def source(self, name: str, perturbed: bool) -> Source:
        """Where a set's rows are, in the wording with further answers if `perturbed`."""
        source = self.recipe_sources.get("forget" if name == "holdout" else name)
        if source is None:
            return self._of_configs("dataset_name", [f"{name}_perturbed" if perturbed else name], ("train",))
        if source.answer is None:
            raise NotThere("answer_column is null, so there are no true answers")
        if name == "holdout":
            if file := self.eval_args.holdout_file:
                return Source("holdout_file", (file,), (), (), source.question, source.answer)
            if not source.configs or not all(config.startswith("forget") for config in source.configs):
                raise NotThere("give questions and answers that no model saw with holdout_file")
            configs = [config.replace("forget", "holdout", 1) for config in source.configs]  # of TOFU
            return self._of_configs(source.key, configs, source.splits)
        if not source.files and not source.configs:
            raise NotThere("the recipe retains nothing")
        if source.files or not perturbed:
            return source
        configs = ["retain_perturbed"] if name == "retain" else [f"{config}_perturbed" for config in source.configs]
        return self._of_configs(source.key, configs, source.splits)

    def _of_configs(self, key: str, configs: list[str], splits: tuple[str, ...]) -> Source:
        if self.args.dataset_name is None:
            raise NotThere("the recipe names no dataset_name")
        absent = [config for config in configs if config not in self._config_names]
        if absent:
            raise NotThere(f"{self.args.dataset_name} has no config {absent[0]!r}")
        return Source(key, (), tuple(configs), splits, "question", "answer")

    @cached_property
    def _config_names(self) -> list[str]:
        return config_names("dataset_name", self.args.dataset_name)

    def rows(self, source: Source, label: str, question: str, answers: list[str]) -> tuple[dict[int, dict], dict]:
        """The rows that have something to say in each column of answers, by number, and the record of the columns."""
        rows, record = self.table(source)
        columns = [question, *answers]
        absent = [column for column in columns if column not in record["columns"]]
        if absent:
            noun = "column" if len(absent) == 1 else "columns"
            raise NotThere(f"{' + '.join(source.files or source.configs)} has no {noun} {' and '.join(absent)}")
        for column in columns:
            several = column == "perturbed_answer"
            require_text(source.key, rows, column, may_be_missing=column != source.question, several=several)
        numbers = range(len(rows))
        if source == self.recipe_sources["retain"]:
            numbers = split_retain_rows(len(rows), self.args.retain_holdout)[label == "retain_holdout"]
        needed = [column for column in columns if column != source.question]
        usable = {i: rows[i] for i in numbers if all(_says_something(rows[i][column]) for column in needed)}
        if not usable:
            raise NotThere("no row has an answer")
        if lost := [str(i) for i in numbers if i not in usable]:
            shown = ", ".join(lost if len(lost) <= 10 else [*lost[:10], "..."])
            what = f"without a letter or a digit in {' or '.join(needed)} (rows {shown}, counted from 0)"
            self.left_out.append(f"{label}: {len(lost)} of {len(numbers)} rows, {what}")
        return usable, {**record, "columns": {column: record["columns"][column] for column in columns}}

    def question_set(self, name: str) -> tuple[QuestionSet, dict]:
        """A question set and the record of what was read for it."""
        if name == "retain_holdout" and self.args.retain_holdout == 0:
            raise NotThere("retain_holdout is 0")
        paraphrased = name == "forget_paraphrased"
        if name in self.eval_args.more_sets:
            columns = self.args.question_column, self.args.answer_column or "answer"
            source = Source(f"more_sets, {name}", (self.eval_args.more_sets[name],), (), (), *columns)
        else:
            source = self.source(name.removesuffix("_paraphrased").removesuffix("_holdout"), paraphrased)
        question, answer = source.question, source.answer
        if paraphrased:
            question, answer = "paraphrased_question", "paraphrased_answer"
        rows, record = self.rows(source, name, question, [answer])
        numbers = list(rows)
        if name == "retain" and len(rows) > RETAIN_DRAWS:
            random = np.random.default_rng(RETAIN_SEED)
            numbers = [numbers[i] for i in random.integers(0, len(rows), RETAIN_DRAWS)]
        further = {} if paraphrased else self._further[source]
        columns = [rows[i][question] for i in numbers], [rows[i][answer] for i in numbers]
        return QuestionSet(*columns, numbers, [further[i] for i in numbers] if further else None), record

    def option_set(self, name: str) -> tuple[OptionSet, dict]:
        """An option set and the record of what was read for it."""
        asked = self.eval_args.eval_sets
        if asked is not None and ("forget" if name == "holdout" else name) not in asked:
            raise NotThere("eval_sets does not name it")
        try:
            source = self.source(name, perturbed=True)
        except NotThere:
            if name not in self.recipe_sources:
                raise
            source = self.source(name, perturbed=False)  # without options there is still the answer
        found = self.table(source)[1]["columns"]
        further = [column for column in OPTION_COLUMNS if column in found and name != "holdout"]
        label = f"answers to compare, {name}" if further else name
        by_number, record = self.rows(source, label, source.question, [source.answer, *further])
        rows = list(by_number.values())
        if source == self.recipe_sources["retain"]:
            draws = np.random.default_rng(RETAIN_SEED).permutation(len(rows))[:RETAIN_DRAWS]
            rows = [rows[i] for i in sorted(draws)]

        paraphrase = source.answer if name in FACT_SETS else "paraphrased_answer"
        columns = (source.question, source.answer, paraphrase, "perturbed_answer")
        parts = [[row[key] for row in rows] if key in record["columns"] else None for key in columns]
        return OptionSet(*parts), record


def load_data(args: PMCArguments, eval_args: EvalArguments) -> AuditData:
    """
    Reads the question sets and option sets of a recipe.

    Raises:
        RecipeError: a set named in `eval_sets` is not there, no set is, or a file is broken.
    """
    reader, asked = Reader(args, eval_args), eval_args.eval_sets
    data, absent = AuditData({}, {}, {}, None, read={"questions": {}, "options": {}}), {}
    # rows held out of training are a set only where the recipe holds some out
    by_default = [name for name in QUESTION_SETS if name != "retain_holdout" or args.retain_holdout]
    wanted = by_default if asked is None else [name for name in QUESTION_SETS if name in asked]
    wanted += eval_args.more_sets
    errors = [
        f"more_sets: {name!r} is a set that every audit may have; choose another name"
        for name in eval_args.more_sets
        if name in QUESTION_SETS
    ]
    for kind, names, read, sets, reasons in (
        ("questions", wanted, reader.question_set, data.questions, absent),
        ("options", OPTION_SETS, reader.option_set, data.options, data.missing),
    ):
        for name in names:
            try:
                sets[name], data.read[kind][name] = read(name)
            except NotThere as reason:
                reasons[name] = str(reason)
            except RecipeError as error:
                errors += error.errors
    lines = [f"{name}: {reason}" for name, reason in absent.items()]
    for name, reason in absent.items():
        if name in eval_args.more_sets or asked is not None:
            key = "more_sets" if name in eval_args.more_sets else "eval_sets"
            errors.append(f"{key}: {name}: {reason}")
    if not data.questions and not errors:
        errors.append(f"no question set can be audited ({'; '.join(lines)})")
    try:
        data.forget_questions = [row[args.question_column] for row in reader.table(reader.recipe_sources["forget"])[0]]
        data.unrelated_text = _unrelated_text(eval_args, data.questions)
    except RecipeError as error:
        errors += error.errors
    if "holdout" in data.options:
        trained = [data.options[name] for name in reader.recipe_sources if name in data.options]
        known = {normalized(question) for rows in trained for question in rows.questions}
        seen = sum(normalized(question) in known for question in data.options["holdout"].questions)
        if seen:
            what = "of its questions are to be forgotten or retained; no model may know them"
            errors.append(f"holdout_file: {seen} {what}")
    if errors:
        raise RecipeError(list(dict.fromkeys(errors)))  # two sets of one broken file say the same
    data.left_out = [*lines, *dict.fromkeys(reader.left_out)]
    data.left_out += [f"answers to compare, {name}: {why}" for name, why in data.missing.items()]
    return data


def _unrelated_text(eval_args: EvalArguments, sets: dict[str, QuestionSet]) -> str | None:
    """Text that has nothing to do with the forget rows: of a file, else the everyday facts; None without either."""
    if eval_args.unrelated_file is None:
        facts = [sets[name] for name in FACT_SETS if name in sets]
        lines = [f"{q} {a}" for rows in facts for q, a in zip(rows.questions, rows.answers, strict=True)]
        return "\n".join(lines) or None
    path = Path(eval_args.unrelated_file)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError([f"unrelated_file: {str(path)!r} cannot be read as text: {one_line(error)}"]) from error
    if not text.strip():
        raise RecipeError([f"unrelated_file: {str(path)!r} is empty"])
    return text


def _take_first(key: str, rows: list[dict], column: str | None) -> dict[int, list[str]]:
    """Of a column with lists of right answers leaves the first one that says something; the others by row."""
    if not any(isinstance(row.get(column), list) for row in rows):
        return {}
    require_text(key, rows, column, may_be_missing=True, several=True)
    further = {}
    for i, row in enumerate(rows):
        row[column], *further[i] = [text for text in row[column] or [] if _says_something(text)] or [None]
    return further


def _says_something(value: str | list[str] | None) -> bool:
    """Whether an answer, or each of several, has a letter or a digit of any script: without, nothing is like it."""
    texts = value if isinstance(value, list) else [value]
    return bool(texts) and all(text is not None and bool(tokenization(text)(text)) for text in texts)
