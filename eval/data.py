"""Question sets and answer options of the audit. The only place that reads answers to be forgotten."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from eval.metrics.unlearning import FORGET_SETS, UTILITY_SETS
from pmc_rl.config import EvalArguments, PMCArguments
from pmc_rl.data import normalized, require_text, retain_columns, split_retain_rows
from pmc_rl.errors import RecipeError, one_line
from pmc_rl.reading import config_names, listed, read_columns
from rewards.text import tokenization

# The PMC paper's retain sample: 400 draws with replacement from the retain rows, with this seed.
RETAIN_DRAWS = 400
RETAIN_SEED = 12345

QUESTION_SETS = (*FORGET_SETS, "retain", "retain_holdout", *UTILITY_SETS[1:])
OPTION_SETS = ("forget", "retain", "real_authors", "world_facts", "holdout")
OPTION_COLUMNS = ("paraphrased_answer", "perturbed_answer")


@dataclass
class QuestionSet:
    """Questions with their true answers; row i of the set is row `rows[i]` of what was read."""

    questions: list[str]
    answers: list[str]
    rows: list[int]

    def part(self, start: int, stop: int) -> "QuestionSet":
        """Rows `start` to `stop` of the set."""
        return QuestionSet(self.questions[start:stop], self.answers[start:stop], self.rows[start:stop])


@dataclass
class OptionSet:
    """
    Questions with the answers whose probabilities are compared; all lists have one entry a row.

    `paraphrases` is None where the data has none, and so is `wrong`; of real_authors and world_facts the answer stands
    for the paraphrase.
    """

    questions: list[str]
    answers: list[str]
    paraphrases: list[str] | None
    wrong: list[list[str]] | None


@dataclass
class AuditData:
    """
    What the recipe's data holds for an audit: its question sets and option sets by name, for each option set that is
    not there the reason (`missing`), and text that has nothing to do with the forget rows.

    `forget_questions` are all of them, also those without a usable answer; `left_out` has a line for every set and
    for the rows of a set that are left out, `read` the record of what was read, by kind and set.
    """

    questions: dict[str, QuestionSet]
    options: dict[str, OptionSet]
    missing: dict[str, str]
    unrelated_text: str | None
    forget_questions: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    read: dict[str, dict[str, dict]] = field(default_factory=dict)


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
        self.args, self.holdout_file = args, eval_args.holdout_file
        own = {"forget": (args.question_column, args.answer_column), "retain": retain_columns(args)}
        self.own = {name: self._own_source(name, *columns) for name, columns in own.items()}
        self.left_out: list[str] = []
        self._tables: dict[Source, tuple[list[dict], dict]] = {}

    def _own_source(self, name: str, *columns: str | None) -> Source:
        """What the recipe itself names to forget or to retain."""
        files, configs, splits = (
            tuple(listed(vars(self.args)[f"{name}_{part}"])) for part in ("file", "config", "split")
        )
        return Source(f"{name}_file" if files else f"{name}_config", files, configs, splits, *columns)

    def table(self, source: Source) -> tuple[list[dict], dict]:
        """All rows of a source with the columns that it has, and the record of what was read."""
        if source not in self._tables:
            answers = [source.answer] if source.answer else []
            self._tables[source] = read_columns(
                source.key,
                list(source.files) or None,
                self.args.dataset_name,
                list(source.configs),
                [source.question],
                [*answers, "paraphrased_question", *OPTION_COLUMNS],
                list(source.splits),
            )
        return self._tables[source]

    def rows(self, source: Source, label: str, columns: list[str]) -> tuple[dict[int, dict], dict]:
        """The rows that have something to say in each of the columns, by number, and the record of these columns."""
        rows, record = self.table(source)
        absent = [column for column in columns if column not in record["columns"]]
        if absent:
            where = " + ".join(source.files or source.configs)
            raise NotThere(f"{where} has no column{'s' * (len(absent) > 1)} {' and '.join(absent)}")
        for column in columns:
            several = column == "perturbed_answer"
            require_text(source.key, rows, column, may_be_missing=column != source.question, several=several)
        numbers = list(range(len(rows)))
        if source == self.own["retain"]:
            numbers = split_retain_rows(len(rows), self.args.retain_holdout)[label == "retain_holdout"]
        needed = [column for column in columns if column != source.question]
        usable = {i: rows[i] for i in numbers if all(_says_something(rows[i][column]) for column in needed)}
        if not usable:
            raise NotThere("no row has an answer")
        lost = [str(i) for i in numbers if i not in usable]
        if lost:
            shown = ", ".join(lost[:10]) + ", ..." * (len(lost) > 10)
            self.left_out.append(
                f"{label}: {len(lost)} of {len(numbers)} rows, without a letter or a digit in "
                f"{' or '.join(needed)} (rows {shown}, counted from 0)"
            )
        return usable, {**record, "columns": {column: record["columns"][column] for column in columns}}

    def find(self, name: str, perturbed: bool) -> Source:
        """Where a set's rows are, in the wording with further answers if `perturbed`."""
        own = self.own.get("forget" if name == "holdout" else name)
        if own is None:
            return self._config_source("dataset_name", [f"{name}_perturbed" if perturbed else name], ("train",))
        if own.answer is None:
            raise NotThere("answer_column is null, so there are no true answers")
        if name == "holdout":
            if self.holdout_file:
                return Source("holdout_file", (self.holdout_file,), (), (), own.question, own.answer)
            if not own.configs or not all(config.startswith("forget") for config in own.configs):
                raise NotThere("give questions and answers that no model saw with holdout_file")
            configs = [config.replace("forget", "holdout", 1) for config in own.configs]  # of TOFU
            return self._config_source(own.key, configs, own.splits)
        if not own.files and not own.configs:
            raise NotThere("the recipe retains nothing")
        if own.files or not perturbed:
            return own
        configs = ["retain_perturbed"] if name == "retain" else [f"{config}_perturbed" for config in own.configs]
        return self._config_source(own.key, configs, own.splits)

    def _config_source(self, key: str, configs: list[str], splits: tuple[str, ...]) -> Source:
        if self.args.dataset_name is None:
            raise NotThere("the recipe names no dataset_name")
        absent = [config for config in configs if config not in self._config_names]
        if absent:
            raise NotThere(f"{self.args.dataset_name} has no config {absent[0]!r}")
        return Source(key, (), tuple(configs), splits, "question", "answer")

    @cached_property
    def _config_names(self) -> list[str]:
        return config_names("dataset_name", self.args.dataset_name)


def load_data(args: PMCArguments, eval_args: EvalArguments) -> AuditData:
    """
    Reads the question sets and option sets of a recipe.

    Raises:
        RecipeError: a set named in `eval_sets` is not there, no set is, or a file is broken.
    """
    reader, asked = Reader(args, eval_args), eval_args.eval_sets
    data, errors = AuditData({}, {}, {}, None, read={"questions": {}, "options": {}}), []
    absent: list[str] = []
    for name in QUESTION_SETS:
        unasked = name == "retain_holdout" and not args.retain_holdout and asked is None
        if unasked or asked is not None and name not in asked:
            continue
        try:
            data.questions[name], data.read["questions"][name] = _question_set(reader, name)
        except NotThere as reason:
            absent.append(f"{name}: {reason}")
        except RecipeError as error:
            errors += error.errors
    errors += [f"eval_sets: {line}" for line in absent if asked is not None]
    if not data.questions and not errors:
        errors.append(f"no question set can be audited ({'; '.join(absent)})")
    for name in OPTION_SETS:
        try:
            if asked is not None and ("forget" if name == "holdout" else name) not in asked:
                raise NotThere("eval_sets does not name it")
            data.options[name], data.read["options"][name] = _option_set(reader, name)
        except NotThere as reason:
            data.missing[name] = str(reason)
        except RecipeError as error:
            errors += error.errors
    try:
        data.forget_questions = [row[args.question_column] for row in reader.table(reader.own["forget"])[0]]
        data.unrelated_text = load_unrelated_text(eval_args, data.questions)
    except RecipeError as error:
        errors += error.errors
    if "holdout" in data.options:
        known = {normalized(q) for name in reader.own if name in data.options for q in data.options[name].questions}
        seen = sum(normalized(question) in known for question in data.options["holdout"].questions)
        if seen:
            errors.append(
                f"holdout_file: {seen} of its questions are to be forgotten or retained; no model may know them"
            )
    if errors:
        raise RecipeError(list(dict.fromkeys(errors)))  # two sets of one broken file say the same
    absent += dict.fromkeys(reader.left_out)
    data.left_out = absent + [f"answers to compare, {name}: {why}" for name, why in data.missing.items()]
    return data


def load_unrelated_text(eval_args: EvalArguments, sets: dict[str, QuestionSet]) -> str | None:
    """Text that has nothing to do with the forget rows: of a file, else the everyday facts; None without either."""
    if eval_args.unrelated_file is None:
        facts = [rows for name, rows in sets.items() if name in ("real_authors", "world_facts")]
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


def _question_set(reader: Reader, name: str) -> tuple[QuestionSet, dict]:
    if name == "retain_holdout" and reader.args.retain_holdout == 0:
        raise NotThere("retain_holdout is 0")
    source = reader.find(name.removesuffix("_paraphrased").removesuffix("_holdout"), name == "forget_paraphrased")
    question, answer = source.question, source.answer
    if name == "forget_paraphrased":
        question, answer = "paraphrased_question", "paraphrased_answer"
    rows, record = reader.rows(source, name, [question, answer])
    numbers = list(rows)
    if name == "retain" and len(rows) > RETAIN_DRAWS:
        numbers = [numbers[i] for i in np.random.default_rng(RETAIN_SEED).integers(0, len(rows), RETAIN_DRAWS)]
    return QuestionSet([rows[i][question] for i in numbers], [rows[i][answer] for i in numbers], numbers), record


def _option_set(reader: Reader, name: str) -> tuple[OptionSet, dict]:
    try:
        source = reader.find(name, perturbed=True)
    except NotThere:
        if name not in reader.own:
            raise
        source = reader.find(name, perturbed=False)  # without options there is still the answer
    further = [
        column for column in OPTION_COLUMNS if column in reader.table(source)[1]["columns"] and name != "holdout"
    ]
    label = f"answers to compare, {name}" if further else name
    by_number, record = reader.rows(source, label, [source.question, source.answer, *further])
    rows = list(by_number.values())
    if source == reader.own["retain"]:
        draws = np.random.default_rng(RETAIN_SEED).permutation(len(rows))[:RETAIN_DRAWS]
        rows = [rows[i] for i in sorted(draws)]
    answers = [row[source.answer] for row in rows]
    paraphrases = [row["paraphrased_answer"] for row in rows] if "paraphrased_answer" in further else None
    wrong = [row["perturbed_answer"] for row in rows] if "perturbed_answer" in further else None
    if name in ("real_authors", "world_facts"):
        paraphrases = answers
    return OptionSet([row[source.question] for row in rows], answers, paraphrases, wrong), record


def _says_something(value: str | list[str] | None) -> bool:
    """Whether an answer, or each of several, has a letter or a digit of any script: without, nothing is like it."""
    texts = value if isinstance(value, list) else [value]
    return bool(texts) and all(text is not None and bool(tokenization(text)(text)) for text in texts)
