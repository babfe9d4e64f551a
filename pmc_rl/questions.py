"""What ask.py asks a model and which of its texts are kept: questions, other phrasings, neighbours, answers."""

import re
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pmc_rl.config import DataArguments, PMCConfig
from pmc_rl.errors import RecipeError
from pmc_rl.generation import Sampling, generate_together, sample_seeds
from pmc_rl.prompts import begin_answer, decode_completion, encode_prompt, format_prompt
from pmc_rl.reward_loading import load_reward_functions
from rewards.text import script_aware_tokens


class Request(NamedTuple):
    """What a model is asked to write, in a text with {} for the subject; examples, and first words given to it."""

    text: str
    examples: dict[str, str]
    openings: tuple[str, ...] = ("",)


# A small model writes questions only after examples, and many different ones only where it is given the first words.
ABOUT = Request(
    "Write a short question about {}, to which there is one right answer.",
    {
        "Marie Curie": "In which year did Marie Curie win her first Nobel Prize?",
        "the Eiffel Tower": "How tall is the Eiffel Tower?",
        "Nelson Mandela": "Where was Nelson Mandela born?",
        "the Apollo programme": "When did the Apollo programme end?",
    },
    ("Who", "What", "When", "Where", "Which", "How many", "In which year", "What is the name of", "Why", "How", ""),
)
LEADING_TO = Request(
    "Write a short question to which the answer is {}.",
    {
        "Marie Curie": "Who discovered radium?",
        "the Eiffel Tower": "Which tower in Paris is made of iron?",
        "Nelson Mandela": "Which president of South Africa had been in prison for 27 years?",
        "the Apollo programme": "By what was the first man brought to the moon?",
    },
    ("Who", "Which", "What is the name of", ""),
)
PHRASING = Request(
    "Ask this in other words: {}",
    {
        "Where was Nelson Mandela born?": "What is the birthplace of Nelson Mandela?",
        "How tall is the Eiffel Tower?": "Can you tell me the height of the Eiffel Tower?",
        "Who wrote Hamlet?": "Which author is Hamlet by?",
        "When did the Apollo programme end?": "In which year was the Apollo programme over?",
    },
)
NEIGHBOUR = Request(
    "Name something or somebody of the same kind as {}.",
    {
        "Marie Curie": "Albert Einstein",
        "the Eiffel Tower": "the Colosseum",
        "Mozart": "Johann Sebastian Bach",
        "the Apollo programme": "the Manhattan Project",
    },
)
TEMPERATURE = 0.7
ROUNDS, SAMPLES = 12, 8  # of each opening in a round
NAMINGS, MOST_NEIGHBOURS, LEAST_NEIGHBOURS = 96, 20, 3
PHRASINGS_TRIED = 4
KEPT_PER_QUESTION = 2  # neighbours that each question is asked about
QUESTION_TOKENS = 32
APOSTROPHES = ("'", "’")  # what they begin goes on without a space
WORDS = (4, 25)  # of a question
MEANING = 0.05  # 1 - cosine below which two questions are the same


@dataclass
class Writer:
    """The model that is asked. `args` hold batch size and seed; `answer_length` is in tokens, of its own answers."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    end_ids: list[int]
    args: PMCConfig
    answer_length: int

    def write(self, request: Request, subjects: list[str], samples: int, what: str) -> list[list[tuple[str, bool]]]:
        """Texts about each subject, those of one opening beside each other, and whether they ended; `what` names the
        progress bar and the stream of random numbers."""
        rows = [_chat(request, subject, opening) for subject in subjects for opening in request.openings]
        written = self._generate(rows, QUESTION_TOKENS, what, samples)
        openings = [opening for _ in subjects for opening in request.openings for _ in range(samples)]
        texts = [
            (f"{opening}{'' if text.startswith(APOSTROPHES) else ' '}{text}".strip(), ended)
            for opening, (text, ended) in zip(openings, written, strict=True)
        ]
        size = len(request.openings) * samples
        return [texts[i : i + size] for i in range(0, len(texts), size)]

    def begin_to_answer(self, questions: list[str], what: str) -> list[str]:
        """The first `QUESTION_TOKENS` tokens of the greedy answer to each question."""
        return [text for text, _ in self._generate(self._asked(questions), QUESTION_TOKENS, what)]

    def answer(self, questions: list[str], what: str) -> list[str | None]:
        """The greedy answer to each question, asked as in training; None where it is empty or does not end."""
        answers = self._generate(self._asked(questions), self.answer_length, what)
        return [text if ended and text else None for text, ended in answers]

    def _asked(self, questions: list[str]) -> list[dict]:
        return [format_prompt(DataArguments(), self.tokenizer, question) for question in questions]

    def _generate(self, rows: list[dict], length: int, what: str, samples: int = 0) -> list[tuple[str, bool]]:
        """Of each row its `samples`, beside each other, or the greedy answer alone; and whether they ended."""
        self.args.max_completion_length = length
        prompt_ids = [ids for ids in (encode_prompt(self.tokenizer, row) for row in rows) for _ in range(samples or 1)]
        seeds = sample_seeds(self.args.seed, f"ask {what}", list(range(len(rows))), samples)
        sampling = Sampling(TEMPERATURE, top_k=0, top_p=0.95, seeds=seeds) if samples else None
        completions = generate_together(self.model, prompt_ids, self.args, self.end_ids, sampling, what)
        return [(decode_completion(self.tokenizer, ids), ids[-1] in self.end_ids) for ids in completions]


def _chat(request: Request, subject: str, opening: str) -> dict:
    """A prompt in which the examples were asked for and answered, then the subject is."""
    messages = []
    for name, answer in request.examples.items():
        messages += [{"role": "user", "content": request.text.format(name)}, {"role": "assistant", "content": answer}]
    row = {"prompt": [*messages, {"role": "user", "content": request.text.format(subject)}]}
    return begin_answer(row, opening, "") if opening else row


def without_article(name: str) -> str:
    """
    >>> without_article("the Titanic")
    'Titanic'
    """
    return re.sub(r"^(the|a|an) ", "", name.strip(), flags=re.IGNORECASE)


def names(text: str, subject: str) -> bool:
    """Whether all words of a subject stand in a text."""
    return set(script_aware_tokens(without_article(subject))) <= set(script_aware_tokens(text))


def problem_of(text: str, ended: bool) -> str | None:
    """Why a text is no question, or None."""
    if not ended:
        return "cut at the limit"
    if not text.endswith("?") or "\n" in text or re.search(r"[.!?] ", text):
        return "no question of one sentence"
    if not WORDS[0] <= len(text.split()) <= WORDS[1]:
        return "fewer than {} or more than {} words".format(*WORDS)
    return None


class Questions:
    """Questions that differ in words and, with an encoder, in meaning; and how many were left out, by reason."""

    def __init__(self, encoder: str | None):
        self.kept: list[str] = []
        self.dropped: Counter[str] = Counter()
        self.words: set[frozenset[str]] = set()
        self.difference = None
        if encoder:
            name = "rewards.semantic.SemanticDissimilarity"
            [self.difference] = load_reward_functions([name], {name: {"model_name_or_path": encoder}}, None, 0)

    def add(self, text: str, problem: str | None) -> bool:
        """Keeps a question that has no problem and is not there yet; whether it did."""
        words = frozenset(script_aware_tokens(text))
        if problem is None and words in self.words:
            problem = "repeats another one"
        elif problem is None and self.difference and self.kept:
            others = {"completions": [text] * len(self.kept), "original_completion": self.kept}
            if min(self.difference.func(**others)) < MEANING:
                problem = "means the same as another one"
        if problem:
            self.dropped[problem] += 1
            return False
        self.words.add(words)
        self.kept.append(text)
        return True


def write_questions(
    writer: Writer, request: Request, subject: str, wanted: int, questions: Questions, rounds: int = ROUNDS
) -> list[str]:
    """
    New questions about a subject, or leading to it: the model's own answer begins by naming it, the question does not;
    at most `wanted`, fewer where `rounds` find no more.
    """
    leads, found = request is LEADING_TO, []
    for turn in range(rounds):
        if len(found) >= wanted:
            break
        what = f"{subject}: round {turn + 1}, {len(found)} of {wanted} questions {'to' if leads else 'about'} it"
        [written] = writer.write(request, [subject], SAMPLES, what)
        new: list[str] = []
        # one of each opening after the other, so that `wanted` cuts none off
        for text, ended in (pair for place in range(SAMPLES) for pair in written[place::SAMPLES]):
            problem = problem_of(text, ended)
            if problem is None and names(text, subject) == leads:
                problem = "names what it should lead to" if leads else "does not name the subject"
            if len(found) + len(new) < wanted and questions.add(text, problem):
                new.append(text)
        if leads:
            answers = writer.begin_to_answer(new, f"{subject}: where {len(new)} questions lead")
            led = [text for text, answer in zip(new, answers, strict=True) if names(answer, subject)]
            questions.dropped["leads to something else"] += len(new) - len(led)
            new = led
        found += new
    return found


def write_phrasings(writer: Writer, subject: str, asked: list[str], questions: Questions) -> list[str]:
    """Another phrasing of each question that has one; what names the subject must go on naming it."""
    found = []
    written = writer.write(PHRASING, asked, PHRASINGS_TRIED, f"{subject}: phrasings")
    for question, tries in zip(asked, written, strict=True):
        for text, ended in tries:
            problem = problem_of(text, ended)
            if problem is None and names(text, subject) != names(question, subject):
                problem = "does not name the subject" if names(question, subject) else "names what it should lead to"
            if questions.add(text, problem):
                found.append(text)
                break
    return found


def find_neighbours(writer: Writer, subject: str) -> list[str]:
    """
    Names that the model gives more than once for something of the subject's kind, the most frequent ones first.

    Raises:
        RecipeError: there are too few.
    """
    [written] = writer.write(NEIGHBOUR, [subject], NAMINGS, f"{subject}: neighbours")
    counts = Counter(text.strip(" .\"'") for text, ended in written if ended)
    own = set(script_aware_tokens(without_article(subject)))
    examples = {*NEIGHBOUR.examples, *NEIGHBOUR.examples.values()}
    found = [
        name
        for name, count in counts.most_common()
        if count > 1 and len(name.split()) <= 5 and without_article(name)[:1].isupper()
        if name not in examples and not own & set(script_aware_tokens(name))
    ]
    if len(found) < LEAST_NEIGHBOURS:
        some = f" (only {', '.join(found)})" if found else ""
        advice = "name some in a file: --neighbours FILE, in YAML, a list of names for each subject"
        raise RecipeError([f"the model finds too few neighbours of {subject!r}{some}; {advice}"])
    return found[:MOST_NEIGHBOURS]


def ask_of_neighbours(asked: list[str], subject: str, neighbours: list[str]) -> list[tuple[str, str]]:
    """
    The questions with neighbours' names in place of the subject's, and those names, in turn.

    >>> ask_of_neighbours(["Where did the Titanic sink?"], "the Titanic", ["the Lusitania", "the Britannic"])
    [('Where did the Lusitania sink?', 'the Lusitania'), ('Where did the Britannic sink?', 'the Britannic')]
    """
    place = re.compile(re.escape(without_article(subject)), re.IGNORECASE)
    rows = []
    for question in filter(place.search, asked):
        for _ in range(min(KEPT_PER_QUESTION, len(neighbours))):
            name = neighbours[len(rows) % len(neighbours)]
            rows.append((place.sub(lambda _, name=name: without_article(name), question), name))
    return list(dict.fromkeys(rows))


def ask_about(
    writer: Writer, subject: str, given: list[str], count: int, neighbours: list[str], questions: Questions
) -> tuple[list[dict], list[dict]]:
    """
    Rows to forget and rows to keep: question, answer, and whom it is about. A third of the `count` questions lead to
    the subject, as far as the model writes such.
    """
    leading = write_questions(writer, LEADING_TO, subject, count // 3, questions)
    about = write_questions(writer, ABOUT, subject, count - len(leading), questions)
    texts = [*given, *about, *leading]
    texts += write_phrasings(writer, subject, texts, questions)
    answers = writer.answer(texts, f"{subject}: answers")
    forget = [
        {"question": text, "answer": answer, "subject": subject} for text, answer in zip(texts, answers, strict=True)
    ]
    pairs = ask_of_neighbours(texts, subject, neighbours)
    wanted = -(-KEPT_PER_QUESTION * len(leading) // len(neighbours))
    for name in neighbours:
        pairs += [(text, name) for text in write_questions(writer, LEADING_TO, name, wanted, questions, rounds=1)]
    keep = []
    answers = writer.answer([text for text, _ in pairs], f"{subject}: answers about neighbours")
    for (text, name), answer in zip(pairs, answers, strict=True):
        if answer is None:
            questions.dropped["to keep: its answer is empty or does not end"] += 1
        elif names(answer, subject):
            questions.dropped["to keep: its answer names the subject"] += 1
        else:
            keep.append({"question": text, "answer": answer, "subject": name})
    return forget, keep
