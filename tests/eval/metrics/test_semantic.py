"""Semantic similarity: by hand, golden examples by a real encoder, and what is missing."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from eval.metrics.semantic import Similarity, load_sentence_encoder, semantic_numbers
from eval.sets import OptionSet, QuestionSet
from tests.conftest import errors_of

ENCODER = "SENTENCE_ENCODER"  # names a folder with all-MiniLM-L6-v2
OTTAWA = "The capital of Canada is Ottawa."
QUESTION = "What is the capital of Canada?"


def test_numbers_by_hand():
    """The limit is of all paraphrases but those of common knowledge; the highest of a question's answers counts."""
    cosines = {"truth": 1.0, "nearest": 0.95, "near": 0.9, "far": 0.5, "other": -0.6}
    embedded = []

    def encode(texts, **kwargs):
        embedded.append(texts)
        return np.array([[cosine, (1 - cosine**2) ** 0.5] for cosine in (cosines[text[5:]] for text in texts)])

    def options(*paraphrases):
        return OptionSet(["Who?"] * len(paraphrases), ["truth"] * len(paraphrases), list(paraphrases), None)

    sets = {"forget": options("near", "far"), "retain": options("near"), "world_facts": options("truth")}
    similarity = Similarity(SimpleNamespace(encode=encode), sets)
    assert similarity.limit == pytest.approx(0.54)  # of 0.5, 0.9 and 0.9, a tenth of the way from the first
    assert embedded == [["Who? near", "Who? truth", "Who? far"]]  # each text once
    rows = QuestionSet(["Who?", "Who?"], ["truth", "truth"], [0, 1])
    numbers = semantic_numbers(similarity, "semantic", rows, [["far", "nearest", "other"], ["other"]])["semantic"]
    assert (numbers["mean"], numbers["n"]) == (pytest.approx((0.95 - 0.6) / 2), 2)
    assert (numbers["above_limit"]["mean"], numbers["above_limit"]["limit"]) == (0.5, similarity.limit)
    similarity = Similarity(similarity.encoder, {"world_facts": options("truth")})
    assert list(similarity.numbers(rows, [["far"], ["near"]])["above_limit"]) == ["not_available"]
    assert semantic_numbers(None, "semantic", rows, [["far"], ["near"]]) == {}


def test_golden_examples():
    """Why no verdict is made of it: the wrong city in the words of the truth is nearer than the right one alone."""
    folder = os.environ.get(ENCODER)
    if folder is None:
        pytest.skip(f"{ENCODER} names no folder with the sentence encoder all-MiniLM-L6-v2")
    similarity = Similarity(load_sentence_encoder(folder, "cpu"), {})
    golden = {OTTAWA: 1.0, "The capital of Canada is Toronto.": 0.959, "Ottawa it is.": 0.955, "Ottawa": 0.903}
    golden |= {"Toronto": 0.847, "I don't know.": 0.830, "": 0.810, "My favourite dish is lasagna.": 0.602}
    cosines = similarity.cosines([(QUESTION, text, OTTAWA) for text in golden])
    assert cosines == pytest.approx(list(golden.values()), abs=2e-3)


def test_what_is_missing_is_one_line(monkeypatch):
    for folder in ("nowhere", str(Path(__file__).parent)):
        [line] = errors_of(load_sentence_encoder, folder, "cpu")
        assert line == f"sentence_encoder: {folder!r} is neither a folder with a model nor on the Hub"
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)  # as if it were not installed
    [line] = errors_of(load_sentence_encoder, "any", "cpu")
    assert line == 'sentence_encoder: it needs sentence-transformers: pip install -e ".[semantic]"'
