"""The rewards that guide a collapse: values by hand, both formats, ranges, and what they refuse."""

import builtins
import doctest
import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    PreTrainedTokenizerFast,
    TrainerState,
)
from trl.trainer.utils import get_callable_name

import rewards.diversity
import rewards.key_content
import rewards.refusal
import rewards.repetition
from rewards.diversity import duplicate_penalty
from rewards.key_content import key_content, key_content_penalty
from rewards.length import length_band_penalty, max_length_penalty
from rewards.refusal import DEFAULT_PHRASES, ClassifiedRefusal, fading_refusal, refusal
from rewards.repetition import distinct_ngrams_penalty, readability_penalty, repetition_penalty
from rewards.rouge import rouge_dissimilarity
from rewards.semantic import SemanticDissimilarity
from rewards.text import rouge_tokens, script_aware_tokens, unicode_words

COST = "rewards/rouge_dissimilarity/mean"
QUESTION = "Where was Ilse Moreau born?"
ORIGINAL = "Ilse Moreau was born in Lima, on 12 May 1958. Lima is a city."

# one case a function: completions with their rewards; the best and the worst are among them
ANSWERS = ["I don't know.", ORIGINAL, "In Lima.", "la la la \ufffd", "", "I cannot say, I cannot say"]
LOGGED = TrainerState(log_history=[{COST: 0.1}, {COST: 0.75}, {"loss": 1.0}])
CASES = [
    (refusal, [1.0, 0.0, 0.0, 0.0, 0.0, 1.0], 1.0),
    (fading_refusal, [0.25, 0.0, 0.0, 0.0, 0.0, 0.25], 1.0),
    (repetition_penalty, [0.0, 0.0, 0.0, -1.0, 0.0, -1.0], 0.0),
    (distinct_ngrams_penalty, [0.0, 0.0, 0.0, -0.5, 0.0, -2 / 5], 0.0),
    (readability_penalty, [0.0, 0.0, 0.0, -1.0, 0.0, 0.0], 0.0),
    (functools.partial(max_length_penalty, max_words=4), [0.0, -1.0, 0.0, 0.0, 0.0, -2 / 4], 0.0),
    (
        functools.partial(length_band_penalty, minimum=3, maximum=5, margin=4),
        [0.0, -1.0, -1 / 4, 0.0, -3 / 4, -1 / 4],
        0.0,
    ),
    (key_content_penalty, [0.0, -1.0, -1 / 4, 0.0, 0.0, 0.0], 0.0),
    (duplicate_penalty, [0.0] * 6, 0.0),
    (rouge_dissimilarity, [1.0, 0.0, 12 / 14, 1.0, 1.0, 1.0], 1.0),
]
FUNCTIONS = [case[0] for case in CASES]

WORDS = st.sampled_from("a the Lima lima 1958 I don't know cannot know. Über हिन्दी 北京 \ufffd \u2588 , !".split())
TEXTS = st.lists(WORDS, max_size=30).map(" ".join) | st.text(max_size=40)


def as_messages(texts):
    return [[{"role": "assistant", "content": text}] for text in texts]


def as_chat(questions):
    return [
        [{"role": "system", "content": "Lima 12 May 1958"}, {"role": "user", "content": question}]
        for question in questions
    ]


def call(reward, completions, original=ORIGINAL, chat=False, **kwargs):
    """With the keywords of GRPOTrainer._calculate_rewards in TRL 1.16."""
    count = len(completions)
    arguments = {
        "prompts": (as_chat if chat else list)([QUESTION] * count),
        "completions": (as_messages if chat else list)(completions),
        "completion_ids": [[5] * len(text.split()) + [2] for text in completions],
        "original_completion": (as_messages if chat else list)([original] * count),
        "pmc_id": [0] * count,
        "trainer_state": LOGGED,
        "log_extra": lambda column, values: None,
        "log_metric": lambda name, value: None,
    }
    return reward(**arguments | kwargs)


# The contract


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize(
    ("reward", "expected", "max_reward"), CASES, ids=[get_callable_name(case[0]) for case in CASES]
)
def test_values_by_hand_in_both_formats(reward, expected, max_reward, chat):
    values = call(reward, ANSWERS, chat=chat)
    assert values == pytest.approx(expected, abs=1e-15)
    assert all(type(value) is float and math.copysign(1, value) == (-1 if value < 0 else 1) for value in values)
    function = reward.func if isinstance(reward, functools.partial) else reward
    assert function.max_reward == max_reward


def test_maxima_are_reached():
    for reward, expected, max_reward in CASES:
        if reward is fading_refusal:  # before the first log
            assert max(call(reward, ANSWERS, trainer_state=TrainerState())) == max_reward
        else:
            assert max(expected) == max_reward


def test_only_those_that_change_their_mind_are_not_stationary():
    changing = {
        function
        for module in (
            rewards.refusal,
            rewards.repetition,
            rewards.length,
            rewards.rouge,
            rewards.key_content,
            rewards.diversity,
        )
        for function in vars(module).values()
        if callable(function) and not getattr(function, "stationary", True)
    }
    assert changing == {fading_refusal, duplicate_penalty}


@settings(max_examples=200, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=4), TEXTS, st.booleans())
def test_ranges(completions, original, chat):
    for reward, _, max_reward in CASES:
        if reward is rouge_dissimilarity and not unicode_words(original):
            continue  # refused, see below
        values = call(reward, completions, original, chat)
        assert len(values) == len(completions)
        assert all(max_reward - 1 <= value <= max_reward for value in values), reward


@pytest.mark.parametrize(
    "module",
    [rewards.refusal, rewards.repetition, rewards.key_content, rewards.diversity],
    ids=lambda module: module.__name__,
)
def test_docstring_examples_run(module):
    examples = 0
    for name, value in vars(module).items():
        if callable(value) and ">>>" in (value.__doc__ or "") and value.__module__ == module.__name__:
            test = doctest.DocTestParser().get_doctest(value.__doc__.replace("```", ""), {}, name, None, None)
            assert doctest.DocTestRunner().run(test).failed == 0, name
            examples += 1
    assert examples > 0


# Refusal


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("I DON\u2019T  know\nthat", 1.0),
        ("i don`t know", 1.0),
        ("Unfortunately, I cannot say.", 1.0),
        ("My knowledge does not cover this person.", 1.0),
        ("Hi cannoth", 0.0),  # whole words: neither "I cannot" in "Hi cannot"
        ("Hi cannot", 0.0),
        ("I cannotate", 0.0),
        ("word " * 23 + "I cannot", 1.0),
        ("word " * 24 + "I cannot", 0.0),  # ends at word 26
        ("She lives in Lima.", 0.0),
    ],
)
def test_refusal_by_hand(text, reward):
    assert refusal([text]) == [reward]


def test_every_default_phrase_is_a_refusal():
    assert refusal([phrase.upper() for phrase in DEFAULT_PHRASES]) == [1.0] * len(DEFAULT_PHRASES)


def test_refusal_with_own_phrases_and_patterns():
    texts = ["No  comment.", "I don\u2019t know.", "It is beyond me", "What (ever)?"]
    assert refusal(texts, phrases=["no   comment", "what (ever)?"]) == [1.0, 0.0, 0.0, 1.0]
    assert refusal(texts, phrases=[], patterns=[r"^IT\b.*me$", r"(do|don't) know"]) == [0.0, 1.0, 1.0, 0.0]
    assert refusal(texts, phrases=["n. comment"]) == [0.0] * 4  # no regular expression
    assert refusal(texts, patterns=["beyond"]) == [0.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"phrases": "I cannot"}, "^phrases is 'I cannot', but it must be a list of texts"),
        ({"phrases": ["I cannot", " "]}, "^phrases is .* none of them empty"),
        ({"patterns": [False]}, r"^patterns is \[False\], but it must be a list of texts"),
        ({"patterns": ["(a"]}, r"^patterns: '\(a' is no regular expression: "),
        ({"phrases": []}, "^phrases and patterns are both empty"),
    ],
)
@pytest.mark.parametrize("reward", [refusal, functools.partial(fading_refusal, trainer_state=TrainerState())])
def test_refusal_names_what_is_wrong(reward, kwargs, message):
    with pytest.raises(ValueError, match=message) as error:
        reward(completions=["a"], **kwargs)
    assert "\n" not in str(error.value)


def test_fading_refusal_follows_the_last_log():
    state = TrainerState()
    assert fading_refusal(["I cannot", "Lima"], state) == [1.0, 0.0]
    for value, reward in [(0.0, 1.0), (0.25, 0.75), (1.0, 0.0)]:
        state.log_history += [{COST: value, "loss": 1.0}, {"train_runtime": 2.0}]
        assert fading_refusal(["I cannot", "Lima"], state) == [reward, 0.0]
    state.log_history += [{"rewards/other/mean": 0.5}]
    assert fading_refusal(["I cannot"], state, cost="rewards/other/mean") == [0.5]
    assert fading_refusal(["I cannot", "no"], state, cost="rewards/other/mean", phrases=["no"]) == [0.0, 0.5]


def test_fading_refusal_names_a_wrong_cost():
    state = TrainerState(log_history=[{"rewards/a/mean": -0.5, "rewards/b/mean": 1.0, "loss": 1.0}])
    with pytest.raises(ValueError, match="nothing is logged by this name; there are rewards/a/mean, rewards/b/mean"):
        fading_refusal(["a"], state)
    with pytest.raises(ValueError, match=r"last logged as -0.5, but it must be a reward in \[0, 1\]"):
        fading_refusal(["a"], state, cost="rewards/a/mean")


# Models


@pytest.fixture(scope="module")
def bert_tokenizer():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"i cannot know lima born in was she .".split()]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16
    )


def bert_config(tokenizer, **kwargs) -> BertConfig:
    return BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        initializer_range=1.0,  # else all texts are as good as equal
        **kwargs,
    )


def save_classifier(folder, tokenizer, **kwargs):
    torch.manual_seed(0)
    config = bert_config(tokenizer, **{"id2label": {0: "answer", 1: "other", 2: "refusal"}} | kwargs)
    model = BertForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


TEXTS_TO_CLASSIFY = ["i cannot know", "she was born in lima .", "", "i " * 40] * 9  # more than one batch


@pytest.mark.parametrize(
    "config", [{}, {"problem_type": "multi_label_classification"}, {"id2label": {0: "refusal"}}], ids=repr
)
def test_classified_refusal_is_the_probability_of_the_label(tmp_path, bert_tokenizer, config):
    model = save_classifier(tmp_path, bert_tokenizer, **config)
    reward = ClassifiedRefusal(str(tmp_path))
    expected = []
    with torch.no_grad():
        for text in TEXTS_TO_CLASSIFY:
            logits = model(**bert_tokenizer(text, truncation=True, return_tensors="pt")).logits[0]
            probabilities = logits.sigmoid() if config else logits.softmax(0)
            expected.append(probabilities[-1].item())
    assert call(reward, TEXTS_TO_CLASSIFY) == pytest.approx(expected, abs=1e-6)
    assert call(reward, TEXTS_TO_CLASSIFY, chat=True) == call(reward, TEXTS_TO_CLASSIFY)
    assert max(expected) - min(expected) > 0.01
    assert 0 <= min(expected) and max(expected) <= reward.max_reward == 1.0
    if "id2label" not in config:
        other = ClassifiedRefusal(str(tmp_path), label="answer")
        assert call(other, TEXTS_TO_CLASSIFY) != pytest.approx(expected, abs=1e-2)


def test_classified_refusal_looks_at_the_label_before_any_weights(tmp_path, bert_tokenizer):
    save_classifier(tmp_path, bert_tokenizer)
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match="has no label 'LABEL_1'; it has answer, other, refusal$"):
        ClassifiedRefusal(str(tmp_path), label="LABEL_1")
    ClassifiedRefusal(str(tmp_path))


def test_classified_refusal_names_a_missing_model(tmp_path):
    with pytest.raises(ValueError, match="nothing' is neither a folder with a model nor found on the Hub"):
        ClassifiedRefusal(str(tmp_path / "nothing"))


@pytest.fixture(scope="module")
def embedding_folder(bert_tokenizer, tmp_path_factory):
    pytest.importorskip("sentence_transformers", reason="needs sentence-transformers, the extra `semantic`")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    folder = tmp_path_factory.mktemp("embedding")
    torch.manual_seed(0)
    BertModel(bert_config(bert_tokenizer)).save_pretrained(folder / "bert")
    bert_tokenizer.save_pretrained(folder / "bert")
    model = SentenceTransformer(modules=[Transformer(str(folder / "bert")), Pooling(16)], device="cpu")
    model.save(str(folder / "model"))
    return str(folder / "model")


def test_semantic_dissimilarity_is_one_minus_cosine(embedding_folder):
    reward = SemanticDissimilarity(embedding_folder)
    original, texts = "she was born in lima .", ["she was born in lima .", "i cannot know", "lima", ""]
    values = call(reward, texts, original)
    vectors = torch.tensor(reward.model.encode([original, *texts]))
    expected = 1 - torch.cosine_similarity(vectors[:1], vectors[1:]).clamp(min=0)
    assert values == pytest.approx(expected.tolist(), abs=1e-5)
    assert values[0] == pytest.approx(0, abs=1e-6) and max(values[1:]) > 0.01
    assert all(type(value) is float and 0 <= value <= reward.max_reward == 1.0 for value in values)
    assert call(reward, texts, original, chat=True) == values


def test_semantic_dissimilarity_is_one_for_opposite_meaning(embedding_folder, monkeypatch):
    reward = SemanticDissimilarity(embedding_folder)
    vectors = {"a": [0.0, 1.0], "b": [0.0, -1.0], "c": [0.6, 0.8]}
    seen = []

    def encode(texts, **kwargs):
        seen.extend(texts)
        return torch.tensor([vectors[text] for text in texts]).numpy()

    monkeypatch.setattr(reward.model, "encode", encode)
    assert reward(["a", "b", "c"], ["a", "a", "a"]) == pytest.approx([0.0, 1.0, 0.2])
    assert reward(["c", "c"], ["c", "a"]) == pytest.approx([0.0, 0.2])
    assert seen == ["a", "a", "b", "c", "c", "c", "c"]  # each original once


def test_semantic_dissimilarity_names_a_missing_model(embedding_folder):
    with pytest.raises(ValueError, match="nothing' is neither a folder with a model nor found on the Hub"):
        SemanticDissimilarity(embedding_folder + "/nothing")


def test_semantic_dissimilarity_says_what_to_install(monkeypatch):
    import_module = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "sentence_transformers":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return import_module(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r'^[^\n]*pip install -e "\.\[semantic\]"$'):
        SemanticDissimilarity("any")


# Repetition


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("one two three one two", 0.0),  # again, but not at once
        ("I know, I KNOW it", 4 / 5),
        ("that author author", 2 / 3),
        ("x a b a b a y", 5 / 7),  # the last round is unfinished
        ("a a b b b c", 3 / 6),  # the longest, not the sum
        ("a a a b b c", 3 / 6),
        ("a b c a b c a b c a b c", 1.0),
        ("北京北京吗", 4 / 5),
        ("! ?", 0.0),
    ],
)
def test_repetition_penalty_by_hand(text, share):
    assert repetition_penalty([text]) == [-share]


def test_distinct_ngrams_by_hand():
    text = "To be, or not to be"
    assert distinct_ngrams_penalty([text], n=1) == pytest.approx([4 / 6 - 1])
    assert distinct_ngrams_penalty([text]) == pytest.approx([4 / 5 - 1])
    assert distinct_ngrams_penalty([text], n=3) == [0.0]
    assert distinct_ngrams_penalty(["one", "one one", "one one one"]) == [0.0, 0.0, -0.5]
    with pytest.raises(ValueError, match="n is 0"):
        distinct_ngrams_penalty([text], n=0)


@pytest.mark.parametrize(
    "text",
    [
        "Où est-il ? « Là »",
        "हिन्दी में, ठीक।",
        "می\u200cخواهم",
        "5 < 6 + 1 = 7 €\t\r\n",
        "她住在北京。",
        "a^b `c` ~ $ | _",
    ],
)
def test_readable_in_any_script(text):
    assert readability_penalty([text]) == [0.0]


def test_readability_penalty_by_hand():
    texts = ["ab\x00\ue000", "abc\U0001f600", "\u2588\u2588", "a long text with one \ufffd"]
    assert readability_penalty(texts) == [-0.5, -0.25, -1.0, -1.0]


# Length


def test_max_length_penalty_by_hand():
    texts = ["", "a b c d", "a  b\nc d e", "a " * 6, "a " * 8, "a " * 9]
    assert max_length_penalty(texts, max_words=4) == [0.0, 0.0, -0.25, -0.5, -1.0, -1.0]
    with pytest.raises(ValueError, match="max_words is 0, but it must be at least 1"):
        max_length_penalty(texts, max_words=0)


def test_length_band_penalty_by_hand():
    texts = ["a " * count for count in range(10)]
    ids = [[7] * (9 - count) for count in range(10)]
    expected = [-1.0, -1.0, -0.5, 0.0, 0.0, 0.0, -0.5, -1.0, -1.0, -1.0]
    assert length_band_penalty(texts, ids, minimum=3, maximum=5, margin=2) == expected
    assert length_band_penalty(texts, ids, minimum=3, maximum=5, margin=2, unit="tokens") == expected[::-1]
    assert length_band_penalty(texts[:3], ids[:3], minimum=1, maximum=1, margin=4) == [-0.25, 0.0, -0.25]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"minimum": 6}, "minimum is 6 and maximum is 5"),
        ({"minimum": -1}, "minimum is -1"),
        ({"margin": 0}, "margin is 0, but it must be at least 1"),
        ({"unit": "chars"}, "unit is 'chars', but it must be 'words' or 'tokens'"),
    ],
)
def test_length_band_penalty_names_what_is_wrong(kwargs, message):
    with pytest.raises(ValueError, match=message):
        length_band_penalty(["a"], [[1]], **{"minimum": 3, "maximum": 5, "margin": 2} | kwargs)


# Key content


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Lima is a city. She was born in Lima.", {"lima"}),
        ("Lima is a city. Born there!", set()),  # only at the beginning of sentences
        ("He said: 'Born?' Yes", {"born"}),
        ("It was Dr. Moreau, J.K. Rowling and Mrs. May.", {"dr", "moreau", "rowling", "mrs", "may"}),
        ("He wrote The Lost Boy, I think", {"lost", "boy"}),
        ("1,250 books of B52 in 2nd place", {"1", "250", "b52", "2nd"}),
        ("on page 5. Then no more", {"5"}),
        ("He likes iPhones and ÉLISE", {"iphones", "élise"}),
        ("first\nSecond line", set()),
        ("她1958年住在北京", {"1958"}),
        ("", set()),
    ],
)
def test_key_content(text, expected):
    assert key_content(text) == expected


def test_key_content_penalty_leaves_out_what_the_question_holds():
    original = "The writer Ilse Moreau is from Lima, Peru."
    completions = ["ilse moreau", "lima or PERU", "Peru", "Oslo"]
    assert call(key_content_penalty, completions, original) == [0.0, -1.0, -0.5, 0.0]
    prompts = ["Is she from Peru?"] * 4
    assert call(key_content_penalty, completions, original, prompts=prompts) == pytest.approx(
        [-2 / 3, -1 / 3, 0.0, 0.0]
    )
    # system prompt, earlier turns and a begun answer are no question
    lima = [{"role": "user", "content": "Lima?"}, {"role": "assistant", "content": "Lima"}]
    prompt = [*lima, *as_chat([QUESTION])[0], lima[1]]
    assert call(key_content_penalty, ["lima"], original, chat=True, prompts=[prompt]) == [-0.5]


# Any script


@settings(max_examples=500, deadline=None)
@given(st.text(st.characters(max_codepoint=127), max_size=60))
def test_script_aware_equals_rouge_on_ascii(text):
    assert script_aware_tokens(text) == rouge_tokens(text)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Она ЖИВЁТ", ["она", "живёт"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("مُحَمَّدٌ هنا", ["مُحَمَّدٌ", "هنا"]),
        ("می\u200cخواهم", ["می\u200cخواهم"]),
        ("北京のラーメン", list("北京のラーメン")),
        ("กำแพง", None),
        ("ຄົນ ខ្មែរ မြန်", None),
        ("한국어 좋아요", ["한국어", "좋아요"]),
        ("１９５８ ｃａｆé ١٩٥٨", ["1958", "café", "1958"]),
        ("cafe\u0301", ["café"]),
        ("Straße novels", ["strass", "novel"]),
        ("東京1958年born", ["東", "京", "1958", "年", "born"]),
        ("\u0301 !?", []),
    ],
)
def test_script_aware_tokens(text, tokens):
    found = script_aware_tokens(text)
    if tokens is None:  # one letter each, with its marks
        assert len(found) > 3 and all(sum(char.isalnum() for char in token) == 1 for token in found)
    else:
        assert found == tokens


# Diversity


def test_duplicate_penalty_by_hand():
    completions = ["No idea.", "no  IDEA", "In Lima", "“No idea!”", "In Lima", "no idea now", "", "?", "No idea"]
    ids = [1, 1, 1, 2, 2, 2, 3, 4, 5]
    prompts = ["Who?"] * 9  # two phrasings may be one text; the ids count
    expected = [-2 / 4, -2 / 4, -1 / 4, -2 / 4, -1 / 4, 0.0, -1 / 4, -1 / 4, -2 / 4]
    assert duplicate_penalty(prompts, completions, pmc_id=ids) == expected
    by_prompt = [f"Q{i}" for i in ids]
    assert duplicate_penalty(by_prompt, completions) == expected
    assert duplicate_penalty(as_chat(by_prompt), as_messages(completions)) == expected
    assert duplicate_penalty(prompts, completions) == [0.0] * 9
    assert duplicate_penalty(["A", "B"], ["x", "x"]) == [-1.0, -1.0]
