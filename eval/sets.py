"""What an audit asks: questions with their right answers, and answers whose probabilities are compared."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from eval.metrics.intervals import by_row, summary
from eval.metrics.unlearning import fact_recalls, rouge_recalls


@dataclass
class QuestionSet:
    """
    Questions with their true answers; row i of the set is row `rows[i]` of what was read. Of several right answers
    the `further` ones count in recalls and leaks, where the best one does, and in nothing else (not behind a beginning
    of the first one).
    """

    questions: list[str]
    answers: list[str]
    rows: list[int]
    further: list[list[str]] | None = None

    def part(self, start: int, stop: int) -> "QuestionSet":
        """Rows `start` to `stop` of the set."""
        further = self.further and self.further[start:stop]
        return QuestionSet(self.questions[start:stop], self.answers[start:stop], self.rows[start:stop], further)

    @property
    def right_answers(self) -> list[list[str]]:
        """All right answers of each question."""
        further = self.further or [[]] * len(self.answers)
        return [[answer, *others] for answer, others in zip(self.answers, further, strict=True)]

    @property
    def truths(self) -> list[str]:
        """The same as a text for each question, to be read."""
        return [" / ".join(right) for right in self.right_answers]

    def recalls(self, texts: Sequence[str]) -> list[float]:
        """ROUGE-L recall of a text for each question."""
        pairs = zip(texts, self.right_answers, strict=True)
        return [max(rouge_recalls([text] * len(right), right)) for text, right in pairs]

    def fact_recalls(self, texts: Sequence[str]) -> list[float | None]:
        """Fact recall of a text for each question; None where no right answer has facts."""
        found = []
        for question, text, right in zip(self.questions, texts, self.right_answers, strict=True):
            recalls = fact_recalls([question] * len(right), [text] * len(right), right)
            found.append(max((recall for recall in recalls if recall is not None), default=None))
        return found

    def recall_numbers(self, texts: Sequence[str], key: str) -> dict:
        """ROUGE-L and fact recall of a text for each question, as summaries and by row, under names made of `key`."""
        recalls, facts = self.recalls(texts), self.fact_recalls(texts)
        return {
            key: summary(recalls),
            f"{key}_by_row": by_row(self.rows, recalls),
            f"fact_{key}": summary(facts),
            f"fact_{key}_by_row": by_row(self.rows, facts),
        }


@dataclass
class OptionSet:
    """
    Questions with the answers whose probabilities are compared; `paraphrases` and `wrong` are None where the data has
    none. Of real_authors and world_facts the answer stands for the paraphrase.
    """

    questions: list[str]
    answers: list[str]
    paraphrases: list[str] | None
    wrong: list[list[str]] | None

    def texts(self, i: int) -> list[str]:
        """The answer of row i, its paraphrase and its wrong answers, as far as there are any."""
        paraphrase = [self.paraphrases[i]] if self.paraphrases else []
        return [self.answers[i], *paraphrase, *(self.wrong[i] if self.wrong else [])]


@dataclass
class AuditData:
    """What the recipe's data holds for an audit; sets are by name."""

    questions: dict[str, QuestionSet]
    options: dict[str, OptionSet]
    missing: dict[str, str]  # why an option set is not there
    unrelated_text: str | None  # has nothing to do with the forget rows
    forget_questions: list[str] = field(default_factory=list)  # also those without a usable answer
    left_out: list[str] = field(default_factory=list)  # a line for every set, and for rows of a set
    read: dict[str, dict[str, dict]] = field(default_factory=dict)  # records of what was read, by kind and set
