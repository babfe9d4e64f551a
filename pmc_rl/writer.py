"""What ask.py asks a model to write, in English, and how: after a few examples, sampled, with given first words."""

from dataclasses import dataclass
from typing import NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pmc_rl.config import DataArguments, PMCConfig
from pmc_rl.generation import Sampling, generate_together, sample_seeds
from pmc_rl.prompts import begin_answer, decode_completion, encode_prompt, format_prompt


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
QUESTION_TOKENS = 32
APOSTROPHES = ("'", "’")  # what they begin goes on without a space


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
