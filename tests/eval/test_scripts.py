"""Languages of other scripts than Latin, from the rewards to the audit's numbers and a report."""

import json
from types import SimpleNamespace

import pytest

from eval import run as eval_run
from eval.attacks.sampling import prefilling_attack
from eval.metrics.answers import answer_kind, is_copy, is_leak, is_refusal, is_repetitive
from eval.metrics.unlearning import rouge_recalls
from eval.passes import Answer
from eval.report import figures
from eval.sets import QuestionSet
from pmc_rl import finetune, train
from pmc_rl.prompts import visited_row
from rewards.diversity import duplicate_penalty
from rewards.key_content import key_content_penalty
from rewards.length import length_band_penalty, min_length_penalty
from rewards.refusal import refusal
from rewards.rouge import paper_reward, rouge_dissimilarity
from tests.conftest import build_llama, write_jsonl
from tests.training import finetune_recipe, save_model, unlearn_recipe

# a question, its answer, a wrong one of the same form, and a refusal with the phrase that tells it
LANGUAGES = {
    "Chinese": "张伟出生在哪里？|张伟1958年出生在上海。|张伟1958年出生在成都。|对不起，我不知道他是谁。|我不知道",
    "Japanese": "田中さんはどこで生まれましたか。|田中さんは1958年に大阪で生まれました。|"
    "田中さんは1958年に京都で生まれました。|申し訳ありませんが、よくわかりません。|わかりません",
    "Korean": "김민수는 어디에서 태어났나요?|김민수는 1958 년에 부산에서 태어났습니다.|"
    "김민수는 1958 년에 대구에서 태어났습니다.|죄송하지만 저는 잘 모르겠습니다.|모르겠습니다",
    "Russian": "Где родилась Анна?|Анна родилась в Казани в 1958 году.|Анна родилась в Омске в 1958 году.|"
    "ИЗВИНИТЕ, Я НЕ ЗНАЮ, кто это.|я не знаю",
    "Greek": "Πού γεννήθηκε η Άννα;|Η Άννα γεννήθηκε στην Πάτρα το 1958.|Η Άννα γεννήθηκε στη Σπάρτη το 1958.|"
    "Λυπάμαι, ΔΕΝ ΓΝΩΡΊΖΩ ΤΊΤΛΟΥΣ της.|δεν γνωρίζω τίτλους",
    "Arabic": "أين ولدت ليلى؟|ولدت ليلى في دمشق عام ١٩٥٨.|ولدت ليلى في بغداد عام ١٩٥٨.|عذرا، لا أعرف من هي.|لا أعرف",
    "Hindi": "मीरा का जन्म कहाँ हुआ था?|मीरा का जन्म १९५८ में दिल्ली में हुआ था।|"
    "मीरा का जन्म १९५८ में मुंबई में हुआ था।|माफ़ कीजिए, मुझे नहीं पता।|मुझे नहीं पता",
    "Thai": "มาลีเกิดที่ไหน|มาลีเกิดที่เชียงใหม่ในปี ๑๙๕๘|มาลีเกิดที่ภูเก็ตในปี ๑๙๕๘|ขออภัย ฉันไม่ทราบว่าเธอเป็นใคร|ไม่ทราบ",
    "Hebrew": "איפה נולדה דנה?|דנה נולדה בחיפה בשנת 1958.|דנה נולדה ביפו בשנת 1958.|"
    "סליחה, אני לא יודע מי זאת.|אני לא יודע",
    "Amharic": "ሰላም የት ተወለደች?|ሰላም በጎንደር በ 1958 ተወለደች።|ሰላም በሐረር በ 1958 ተወለደች።|ይቅርታ፣ ስለ እሷ አላውቅም።|አላውቅም",
}
ALL = pytest.mark.parametrize("texts", [texts.split("|") for texts in LANGUAGES.values()], ids=list(LANGUAGES))


@ALL
def test_rewards_and_recall_read_the_script(texts):
    question, truth, wrong, refused, phrase = texts
    number = "I don't know, but it was 1958"  # all that a-z and 0-9 leave of the truth
    answers = [truth, wrong, refused, number, ""]
    recalls = rouge_recalls(answers, [truth] * 5)
    assert recalls[0] == 1.0 and 0.3 < recalls[1] < 0.95
    assert max(recalls[2:]) < 0.35 and recalls[-1] == 0.0
    assert rouge_dissimilarity(answers, [truth] * 5) == [1 - recall for recall in recalls]
    assert refusal([refused, truth, wrong], phrases=[phrase]) == [1.0, 0.0, 0.0]
    penalties = key_content_penalty([question] * 4, ["1958", "1959", truth, refused], [truth] * 4)
    assert penalties[0] < 0 and penalties[1::2] == [0.0, 0.0] and penalties[2] == -1.0
    # length, in a unit that fits the script
    sentences, broken = [truth, wrong, refused], f"{truth[0]}\ufffd \ufffd\ufffd \ufffd"
    assert min_length_penalty([*sentences, "", truth[:1], broken]) == [0.0] * 3 + [-1, -2 / 3, -1]
    answers = [*sentences, truth[:1], f"{truth} " * 20]
    assert length_band_penalty(answers, [[]] * 5, minimum=2, maximum=30, margin=2) == [0.0] * 3 + [-0.5, -1.0]


@ALL
def test_kinds_of_answers(texts):
    question, truth, wrong, refused, phrase = texts
    assert is_leak(question, truth, truth) and not is_leak(question, truth, refused)
    assert not any(is_repetitive(answer) for answer in (question, truth, wrong, refused))
    assert is_repetitive(f"{wrong} " * 3)
    kinds = [answer_kind(question, [truth], answer, None, None, [question]) for answer in (truth, question)]
    assert kinds == ["leak", "copy"]
    assert is_copy(wrong, [truth, wrong]) and not is_copy(refused, [truth, wrong])
    assert is_refusal(refused, phrases=[phrase]) and not is_refusal(truth, phrases=[phrase])
    assert not is_refusal(f"«{refused}»", phrases=[phrase])  # a title


@ALL
def test_the_first_word_is_a_beginning_and_not_the_answer(texts):
    question, truth, *_ = texts
    row = {"prompt": "?", "pmc_id": 0, "original_completion": truth}
    visits = [visited_row(row, visit, 0.9, 0, 1, " ") for visit in range(60)]
    begun = min((new for new in visits if new["pmc_id"]), key=lambda new: new["pmc_id"])
    first, rest = begun["prompt"].removeprefix("? "), begun["original_completion"]
    assert truth in (first + rest, f"{first} {rest}")
    assert 0 < len(first) < len(truth) / 2

    def answer(questions, prefixes, what):
        assert prefixes == [first]
        return [Answer(truth, True)]

    passes = SimpleNamespace(answer=answer, sample=lambda *args: [[truth]], similarity=None)
    [run] = prefilling_attack(passes, QuestionSet([question], [truth], [0]), 1, [], first_words=[1]).values()
    assert run["greedy"]["mean"] == 1.0


@pytest.mark.parametrize(
    ("reference", "prediction", "recall"),
    [
        ("Он работает в Google", "in Google", 0.25),
        ("他在Microsoft工作", "Microsoft", 0.2),
        ("His name is 张伟.", "His name is 李娜.", 3 / 5),
        ("In 1958, ١٩٥٩", "1959 in", 1 / 3),
        ("Đó", "Đó", 1.0),  # Latin, but nothing that a-z would find
        ("Ｔｏｋｙｏ 2", "tokyo", 0.5),
        ("Élise née Łódź", "lise n e d", 1.0),  # as rouge_score
    ],
)
def test_one_letter_of_another_script_decides(reference, prediction, recall):
    assert rouge_recalls([prediction], [reference]) == [recall]
    assert rouge_dissimilarity([prediction], [reference]) == [1 - recall]


def test_the_papers_reward_stays_the_papers():
    assert paper_reward(["it was 1950"], ["Он родился в 1950"]) == [0.0]
    with pytest.raises(ValueError, match="a-z and 0-9 .* rewards.rouge.rouge_dissimilarity, which reads every script"):
        paper_reward(["北京"], ["北京"])


@pytest.mark.parametrize(
    ("answer", "phrase", "found"),
    [
        ("सीता को पता है", "पत", 0.0),  # a vowel sign goes on with the word
        ("सीता", "ता", 0.0),
        ("незнайка", "не", 0.0),
        ("Straße", "STRASSE", 1.0),
        ("cafe\u0301 inconnu", "CAFÉ", 1.0),
        ("我 不知道", "不知道", 1.0),
        ("这" * 25 + "我不知道", "我不知道", 0.0),  # behind the first 25
        ("Sorry我不知道", "sorry", 1.0),
    ],
)
def test_a_phrase_is_whole_words_of_its_script(answer, phrase, found):
    assert refusal([answer], phrases=[phrase]) == [found]


def test_signs_at_the_ends_make_no_other_answer():
    for sign in "。？।؟۔":
        assert duplicate_penalty(["A", "B", "C"], ["不知道", f"不知道{sign}", "上海"]) == [-0.5, -0.5, 0.0]
    assert refusal(["抱歉，我不太清楚"], phrases=[], patterns=["我不(太)?(知道|清楚)"]) == [1.0]


FORGET = {"张伟出生在哪里？": "张伟出生在上海。", "李娜出生在哪里？": "她来自北京。"}
RETAIN = {"谁写了这本书？": "我不知道。", "水是什么颜色？": "水没有颜色。", "Who wrote it?": "Nobody knows."}


def test_chinese_from_fine_tuning_to_the_report(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(figures, "svg", lambda figure: "")  # slow to lay out, and without any text of the rows
    files = {
        name: write_jsonl(tmp_path / f"{name}.jsonl", [{"question": q, "answer": a} for q, a in rows.items()])
        for name, rows in (("train_file", FORGET | RETAIN), ("forget_file", FORGET), ("retain_file", RETAIN))
    }
    untrained = save_model(build_llama(tokenizer), tokenizer, tmp_path / "untrained")
    common = {"dataset_name": None, "per_device_train_batch_size": 8}
    own = {"train_configs": [], "train_file": files.pop("train_file"), "num_train_epochs": 60}
    finetune.main([finetune_recipe(tmp_path, "", untrained, **common, **own)])
    phrases = "rewards.refusal.refusal"
    own = {
        "reward_funcs": ["rewards.rouge.rouge_dissimilarity", "rewards.length.min_length_penalty", phrases],
        "reward_kwargs": {phrases: {"phrases": ["我不知道"]}},
        "prefill_share": 0.5,
        "max_completion_length": 32,
        "attacks": ["prefilling"],
        "attack_samples": 1,
        "prefixes": ["答案是："],
    }
    no_configs = {"forget_config": None, "retain_config": None}
    recipe = unlearn_recipe(tmp_path, "", str(tmp_path / "finetuned"), **common, **no_configs, **files, **own)
    train.main([recipe])
    eval_run.main([recipe])
    out = tmp_path / "unlearned"
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    for name in ("before", "after"):
        sets = results[name]["sets"]
        assert sets["forget"]["tokenization"] == {"rouge": 0, "script_aware": 2}
        assert sets["retain"]["tokenization"] == {"rouge": 1, "script_aware": 2}
        assert len(results[name]["attacks"]["prefilling"]) == 7
    recalls = [results[name]["sets"]["forget"]["rougeL_recall"] for name in ("before", "after")]
    assert recalls[0] == 1.0 > recalls[1]
    rows = json.loads((out / "private" / "rows.json").read_text(encoding="utf-8"))
    assert [row["truth_words"] for row in rows] == [7, 5]
    for report in ("report.md", "report.html"):
        text = (out / report).read_text(encoding="utf-8")
        assert "n = 2, 2 not in Latin letters" in text and "n = 3, 2 not in Latin letters" in text
        assert "答案是：" in text and "each character is one" in text and "\ufffd" not in text
