"""Which texts of a model ask.py keeps: questions, other phrasings, neighbours, anything else, and their answers."""

import re
from collections import Counter
from random import Random

from pmc_rl.errors import RecipeError
from pmc_rl.reward_loading import load_reward_functions
from pmc_rl.writer import ABOUT, LEADING_TO, NEIGHBOUR, PHRASING, Request, Writer
from rewards.text import key_content, script_aware_tokens

ROUNDS, SAMPLES = 12, 8  # of each opening in a round
NAMINGS, MOST_NEIGHBOURS, LEAST_NEIGHBOURS = 96, 20, 3
PHRASINGS_TRIED = 4
KEPT_PER_QUESTION = 3  # neighbours that each question is asked about
WORDS = (4, 25)  # of a question
MEANING = 0.05  # 1 - cosine below which two questions are the same
# What no row is about fades with what is forgotten, so everyday knowledge is kept as well.
TOPICS = ["geography", "animals", "plants", "physics", "chemistry", "mathematics"]
TOPICS += ["medicine", "computers", "history", "sports", "music", "cooking"]
TOPIC_SAMPLES = 2  # of each opening


def without_article(name: str) -> str:
    """
    >>> without_article("the Titanic")
    'Titanic'
    """
    return re.sub(r"^(the|a|an) ", "", name.strip(), flags=re.IGNORECASE)


def names(text: str, subject: str) -> bool:
    """Whether all words of a subject stand in a text."""
    return set(script_aware_tokens(without_article(subject))) <= set(script_aware_tokens(text))


def speaks_of(text: str, subjects: list[str]) -> bool:
    """
    Whether a text holds any of the names in a subject: so much is too much for a row to keep.

    >>> speaks_of("It was Shakespeare.", ["William Shakespeare"]), speaks_of("A large ship", ["the Titanic"])
    (True, False)
    """
    names_of = [key_content(without_article(subject)) or script_aware_tokens(subject) for subject in subjects]
    return not set().union(*names_of).isdisjoint(script_aware_tokens(text))


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
    The questions with neighbours' names in place of the subject's, and those names, in turn. A question with further
    names or numbers is left out: they are the subject's own, such as a title.

    >>> asked = ["Where did the Titanic sink?", "Did Jack Dawson sail on the Titanic?"]
    >>> ask_of_neighbours(asked, "the Titanic", ["the Lusitania", "the Britannic"])
    [('Where did the Lusitania sink?', 'the Lusitania'), ('Where did the Britannic sink?', 'the Britannic')]
    """
    place = re.compile(re.escape(without_article(subject)), re.IGNORECASE)
    rows = []
    for question in (text for text in asked if place.search(text) and not key_content(place.sub("it", text))):
        for _ in range(min(KEPT_PER_QUESTION, len(neighbours))):
            name = neighbours[len(rows) % len(neighbours)]
            rows.append((place.sub(lambda _, name=name: without_article(name), question), name))
    return list(dict.fromkeys(rows))


def ask_about(
    writer: Writer,
    subject: str,
    given: list[str],
    count: int,
    neighbours: list[str],
    subjects: list[str],
    questions: Questions,
) -> tuple[list[dict], list[dict]]:
    """
    Rows to forget and rows to keep, which name none of the `subjects`: question, answer, and whom it is about. Half of
    the `count` questions lead to the subject, as far as the model writes such.
    """
    leading = write_questions(writer, LEADING_TO, subject, count // 2, questions)
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
    return forget, answered(writer, pairs, subjects, f"{subject}: answers about neighbours", questions)


def ask_about_anything(writer: Writer, count: int, subjects: list[str], questions: Questions) -> list[dict]:
    """At most `count` rows to keep about everyday topics."""
    written = writer.write(ABOUT, TOPICS, TOPIC_SAMPLES, "questions about anything else")
    texts = [(topic, *text) for topic, of_topic in zip(TOPICS, written, strict=True) for text in of_topic]
    Random(0).shuffle(texts)  # so that `count` leaves out no topic and no first words
    pairs: list[tuple[str, str]] = []
    for topic, text, ended in texts:
        problem = "names a subject" if speaks_of(text, subjects) else problem_of(text, ended)
        if len(pairs) < count and questions.add(text, problem):
            pairs.append((text, topic))
    return answered(writer, pairs, subjects, "answers about anything else", questions)


def answered(
    writer: Writer, pairs: list[tuple[str, str]], subjects: list[str], what: str, questions: Questions
) -> list[dict]:
    """Rows to keep of questions and what they are about: those whose answers end and name no subject."""
    keep = []
    answers = writer.answer([text for text, _ in pairs], what)
    for (text, name), answer in zip(pairs, answers, strict=True):
        if answer is None:
            questions.dropped["to keep: its answer is empty or does not end"] += 1
        elif speaks_of(f"{text} {answer}", subjects):
            questions.dropped["to keep: it or its answer names a subject"] += 1
        else:
            keep.append({"question": text, "answer": answer, "subject": name})
    return keep
