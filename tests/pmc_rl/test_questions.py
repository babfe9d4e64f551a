"""What ask.py keeps of what a model writes, with a model whose texts are given, and the command with a tiny one."""

import json
import stat
from collections import Counter

from pmc_rl import ask
from pmc_rl.questions import (
    TOPIC_SAMPLES,
    TOPICS,
    Questions,
    ask_about,
    ask_about_anything,
    ask_of_neighbours,
    find_neighbours,
    names,
    problem_of,
    write_phrasings,
    write_questions,
)
from pmc_rl.writer import ABOUT, LEADING_TO, NEIGHBOUR, PHRASING, Writer
from tests.conftest import build_llama, errors_of, write_jsonl
from tests.training import save_model


class Scripted(Writer):
    """Writes the texts of a script by request and subject, over and over, and answers by a question's first match."""

    def __init__(self, texts, answers=None):
        self.texts, self.answers, self.asked = texts, answers or {}, []

    def write(self, request, subjects, samples, what):
        self.asked.append((request, tuple(subjects)))
        wanted = samples * len(request.openings)
        return [(self.texts.get((request.text, subject), [("", True)]) * wanted)[:wanted] for subject in subjects]

    def begin_to_answer(self, questions, what):
        return self.answer(questions, what)

    def answer(self, questions, what):
        return [next((text for part, text in self.answers.items() if part in q), "I do not know.") for q in questions]


def ended(*texts):
    return [(text, True) for text in texts]


def test_what_is_no_question():
    assert problem_of("Where did the Titanic sink?", True) is None
    assert problem_of("Where did the Titanic sink?", False) == "cut at the limit"
    for text in (
        "The Titanic sank in 1912.",
        "It sank. When did the Titanic sink?",
        "Where did it sink?\nIn the sea?",
    ):
        assert problem_of(text, True) == "no question of one sentence"
    for text in ("The Titanic sank?", " ".join(["Titanic"] * 26) + "?"):
        assert problem_of(text, True) == "fewer than 4 or more than 25 words"


def test_a_subject_is_named_by_all_its_words():
    assert names("When did the titanic sink?", "the Titanic") and names(
        "Were Stephen King's books sold?", "Stephen King"
    )
    assert not names("Who was the king of England?", "Stephen King")


def test_questions_about_a_subject():
    good = "Where did the Titanic sink?", "Who built the Titanic?", "When did the Titanic sail?"
    texts = ended(good[0], "Who built this old ship?", good[1], good[2])
    questions = Questions(None)
    writer = Scripted({(ABOUT.text, "the Titanic"): [*texts, ("Who was on the Titanic?", False)]})
    found = write_questions(writer, ABOUT, "the Titanic", 2, questions)
    assert len(set(found)) == 2 and set(found) < set(good)
    assert questions.kept == found and len(writer.asked) == 1

    questions = Questions(None)
    found = write_questions(writer, ABOUT, "the Titanic", 50, questions, rounds=3)
    assert sorted(found) == sorted(good) and len(writer.asked) == 4
    assert set(questions.dropped) == {"repeats another one", "does not name the subject", "cut at the limit"}
    assert sum(questions.dropped.values()) == 3 * 8 * len(ABOUT.openings) - 3


def test_the_same_words_are_the_same_question():
    questions = Questions(None)
    assert questions.add("When did the Titanic sink?", None) and not questions.add("when did the Titanic SINK", None)
    assert questions.dropped == Counter({"repeats another one": 1})


def test_questions_that_lead_to_a_subject_are_those_the_model_answers_with_it():
    texts = ended("Which ship met an iceberg?", "What sank the Titanic?", "Which ship is the largest?")
    writer = Scripted(
        {(LEADING_TO.text, "the Titanic"): texts}, {"iceberg": "The Titanic did.", "largest": "It is Icon."}
    )
    questions = Questions(None)
    found = write_questions(writer, LEADING_TO, "the Titanic", 9, questions, rounds=2)
    assert found == ["Which ship met an iceberg?"]
    assert questions.dropped["leads to something else"] == 1
    assert questions.dropped["names what it should lead to"] > 0


def test_a_phrasing_goes_on_naming_the_subject():
    asked = ["Where did the Titanic sink?", "Which ship met an iceberg?"]
    texts = {
        (PHRASING.text, asked[0]): ended(asked[0], "Where did it go down?", "In which sea did the Titanic go down?"),
        (PHRASING.text, asked[1]): ended("Did the Titanic meet an iceberg?", "Which vessel met an iceberg?"),
    }
    questions = Questions(None)
    assert all(questions.add(text, None) for text in asked)
    found = write_phrasings(Scripted(texts), "the Titanic", asked, questions)
    assert found == ["In which sea did the Titanic go down?", "Which vessel met an iceberg?"]
    assert questions.dropped["does not name the subject"] == questions.dropped["names what it should lead to"] == 1


def test_neighbours_are_named_twice():
    texts = ended("the Lusitania", "the Britannic.", "Olympic", "the Titanic II", "a ship", "the Colosseum")
    once = ended("the Bismarck") + ended("") * 90
    assert find_neighbours(Scripted({(NEIGHBOUR.text, "the Titanic"): texts * 2 + once}), "the Titanic") == [
        "the Lusitania",
        "the Britannic",
        "Olympic",
    ]
    [line] = errors_of(
        find_neighbours, Scripted({(NEIGHBOUR.text, "the Titanic"): texts[:2] * 2 + once}), "the Titanic"
    )
    assert "only the Lusitania, the Britannic" in line and "--neighbours" in line


def test_neighbours_take_turns():
    asked = ["Where did the Titanic sink?", "Which ship met an iceberg?", "Was Titanic a fast ship?"]
    asked += ["Did the Titanic sink in 1912?", "Did Jack draw Rose on the Titanic?"]  # its own year and people
    names = ["the Lusitania", "Olympic", "the Britannic", "the Andrea Doria"]
    rows = ask_of_neighbours(asked, "the Titanic", names)
    assert rows == [
        ("Where did the Lusitania sink?", "the Lusitania"),
        ("Where did the Olympic sink?", "Olympic"),
        ("Where did the Britannic sink?", "the Britannic"),
        ("Was Andrea Doria a fast ship?", "the Andrea Doria"),
        ("Was Lusitania a fast ship?", "the Lusitania"),
        ("Was Olympic a fast ship?", "Olympic"),
    ]


def test_rows_of_a_subject():
    texts = {
        (ABOUT.text, "the Titanic"): ended("Where did the Titanic sink?", "Who built the Titanic?"),
        (LEADING_TO.text, "the Titanic"): ended("Which ship met an iceberg?"),
        (LEADING_TO.text, "Olympic"): ended("Which ship met the Hawke?"),
        (PHRASING.text, "Who built the Titanic?"): ended("By whom was the Titanic built?"),
    }
    answers = {
        "iceberg": "The Titanic.",
        "Hawke": "The Olympic.",
        "sink": "In the sea.",
        "Lusitania": "With the Titanic.",
    }
    questions = Questions(None)
    given = ["How long was the Titanic?"]
    forget, keep = ask_about(
        Scripted(texts, answers), "the Titanic", given, 6, ["Olympic", "the Lusitania"], ["the Titanic"], questions
    )
    assert {(row["question"], row["answer"]) for row in forget} == {
        ("How long was the Titanic?", "I do not know."),
        ("Where did the Titanic sink?", "In the sea."),
        ("Who built the Titanic?", "I do not know."),
        ("By whom was the Titanic built?", "I do not know."),
        ("Which ship met an iceberg?", "The Titanic."),
    }
    assert {row["subject"] for row in forget} == {"the Titanic"}
    assert ("Which ship met the Hawke?", "The Olympic.", "Olympic") in {tuple(row.values()) for row in keep}
    assert not any("Titanic" in row["question"] + row["answer"] for row in keep)
    assert questions.dropped["to keep: it or its answer names a subject"] == 3  # all but the one about sinking


def test_rows_about_anything_else_are_of_all_topics_and_name_no_subject():
    texts = {(ABOUT.text, topic): ended(f"What is known of {topic}?", "Who was Ada Byron?") for topic in TOPICS}
    texts[ABOUT.text, "music"] = ended("Who wrote music like Ada Byron?")
    questions, writer = Questions(None), Scripted(texts, {"sports": "Ask Ada Byron.", "plants": None})
    keep = ask_about_anything(writer, 99, ["Ada Byron"], questions)
    kept = [topic for topic in TOPICS if topic not in ("music", "sports", "plants")]
    rows = {(row["question"], row["answer"], row["subject"]) for row in keep}
    assert rows == {(f"What is known of {topic}?", "I do not know.", topic) for topic in kept}
    written = TOPIC_SAMPLES * len(ABOUT.openings)
    assert questions.dropped["names a subject"] == (len(TOPICS) - 1) * written // 2 + written

    count = len(TOPICS) * TOPIC_SAMPLES * len(ABOUT.openings)
    many = {(ABOUT.text, topic): ended(*(f"What is {topic} number {i}?" for i in range(count))) for topic in TOPICS}
    few = ask_about_anything(Scripted(many), 9, [], Questions(None))
    assert len(few) == 9 and len({row["subject"] for row in few}) > 3


def test_rows_to_keep_hold_no_name_of_any_subject():
    texts = {(ABOUT.text, "history"): ended("Who wrote the play Hamlet?", "Who was the last king of France?")}
    writer = Scripted(texts, {"Hamlet": "It was Shakespeare.", "king": "Louis the Sixteenth."})
    subjects = ["William Shakespeare", "the Lusitania"]
    assert [row["question"] for row in ask_about_anything(writer, 9, subjects, Questions(None))] == [
        "Who was the last king of France?"
    ]
    texts = {(ABOUT.text, "the Titanic"): ended("Where did the Titanic sink?")}
    neighbours = ["the Lusitania", "Olympic", "the Britannic"]
    _, keep = ask_about(Scripted(texts), "the Titanic", [], 1, neighbours, ["the Titanic", *subjects], Questions(None))
    assert {row["subject"] for row in keep} == {"Olympic", "the Britannic"}


def test_the_command_adds_to_questions_that_one_has(tmp_path, chat_llama, chat_tokenizer, capsys):
    model = save_model(chat_llama, chat_tokenizer, tmp_path / "model")
    given = write_jsonl(tmp_path / "mine.jsonl", [{"question": f"Who wrote {name}?"} for name in ("Mor", "the Fi")])
    (tmp_path / "names.yaml").write_text("the Fi: [the Bacor, Quinta]\n")
    words = [model, "the Fi", "--from", given, "--neighbours", str(tmp_path / "names.yaml"), "--seed", "3"]
    words += ["--max_completion_length", "16"]
    ask.main([*words, "--output", str(tmp_path / "asked")])
    forget = [json.loads(line) for line in (tmp_path / "asked" / "forget.jsonl").read_text().splitlines()]
    assert [row["question"] for row in forget][:2] == ["Who wrote Mor?", "Who wrote the Fi?"]
    assert {path.name for path in (tmp_path / "asked").iterdir()} == {"forget.jsonl", "keep.jsonl", "README.md"}
    modes = [stat.S_IMODE(path.stat().st_mode) for path in [tmp_path / "asked", *(tmp_path / "asked").iterdir()]]
    assert modes == [0o700, 0o600, 0o600, 0o600]
    page = (tmp_path / "asked" / "README.md").read_text()
    assert "PRIVATE" in page and "the Bacor, Quinta" in page and page in capsys.readouterr().out

    ask.main([*words, "--output", str(tmp_path / "again")])  # the same seed, the same files
    for name in ("forget.jsonl", "keep.jsonl"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "asked" / name).read_bytes()
    [line] = errors_of(ask.main, [model, "the Fi", *words[4:], "--count", "1", "--output", str(tmp_path / "none")])
    assert line.startswith("the model wrote no question to forget (") and not (tmp_path / "none").exists()
    [line] = errors_of(ask.main, [*words, "--output", str(tmp_path / "asked")])
    assert "asked" in line and "holds files" in line


def test_what_is_wrong_is_said_before_weights_load(tmp_path, tokenizer):
    base = save_model(build_llama(tokenizer), tokenizer, tmp_path / "base")
    (tmp_path / "names.yaml").write_text("the Titanic: [1, 2]\nOlympic: [a]\n")
    new = ["--output", str(tmp_path / "new")]
    lines = errors_of(ask.main, [base, "the Titanic", "--neighbours", str(tmp_path / "names.yaml"), *new])
    assert len(lines) == 2 and "no list of names" in "".join(lines) and "none of the subjects" in "".join(lines)
    [line] = errors_of(ask.main, [base, "the Titanic", *new])
    assert "no chat template" in line
    lines = errors_of(ask.main, [base, "?!", "Titanic", "Titanic", "--count", "0", *new])
    assert lines == ["--count: at least 1", "'Titanic': a subject is given twice", "'?!': a subject without a name"]
    [line] = errors_of(ask.main, [base, "Titanic", "--from", str(tmp_path / "none.jsonl"), *new])
    assert "none.jsonl" in line
    assert not (tmp_path / "new").exists()
