"""Sampling: the distribution is HF's, the samples depend on nothing but their names, the model is left as it was."""

import pytest
import torch
from scipy.stats import chisquare
from transformers import GenerationConfig
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from pmc_rl import generation, generation_check, original, train
from pmc_rl.config import PMCConfig
from pmc_rl.generation import (
    InverseCDFSampler,
    Sampling,
    generate_completions,
    generate_together,
    sample_seeds,
)
from pmc_rl.generation_check import check_generation
from pmc_rl.models import end_token_ids
from tests import architectures
from tests.conftest import errors_of
from tests.training import end_often, unlearn_recipe


@pytest.fixture
def ending_phi(tiny_phi, tokenizer):
    return end_often(tiny_phi, tokenizer.eos_token_id)


def prompts(tokenizer, count: int) -> list[list[int]]:
    """Prompts of clearly different lengths."""
    return [
        tokenizer("Question: Who wrote" + " bacorden" * (1 + 3 * i) + "?\nAnswer:")["input_ids"] for i in range(count)
    ]


def sample(
    model, prompt_ids, tokenizer, row_ids=None, k=1, length=12, batch=64, temperature=1.2, top_k=0, suppressed=()
):
    seeds = sample_seeds(7, 0, row_ids or list(range(len(prompt_ids))), k)
    return generate_completions(
        model,
        [ids for ids in prompt_ids for _ in range(k)],
        max_completion_length=length,
        generation_batch_size=batch,
        end_ids=[tokenizer.eos_token_id],
        sampling=Sampling(temperature, top_k, 0.95, seeds, list(suppressed)),
    )


def test_samples_do_not_depend_on_chunks_or_neighbours(ending_phi, tokenizer):
    model = ending_phi
    ids = prompts(tokenizer, 6)
    whole = sample(model, ids, tokenizer, k=5)
    assert len({tuple(row) for row in whole}) > 20
    assert len({len(row) for row in whole}) > 3
    ended = [row for row in whole if row[-1] == tokenizer.eos_token_id]
    assert 0 < len(ended) < len(whole) and all(len(row) == 12 for row in whole if row not in ended)
    assert all(tokenizer.eos_token_id not in row[:-1] for row in whole)
    for chunk in (1, 7):
        assert sample(model, ids, tokenizer, k=5, batch=chunk) == whole
    # a question alone, as when all others are solved, draws what it draws among them
    assert sample(model, [ids[4]], tokenizer, row_ids=[4], k=5) == whole[20:25]


def test_seeds_are_prompt_major_and_independent_of_other_rows():
    seeds = sample_seeds(3, 5, [10, 20], 3)
    assert sample_seeds(3, 5, [20], 3) == seeds[3:] and all(0 <= seed < 2**63 for seed in seeds)
    others = [sample_seeds(seed, step, [10, 20], 3) for seed, step in ((3, 6), (4, 5), (3, "audit"))]
    assert len({*seeds, *sum(others, [])}) == 24


@pytest.mark.parametrize(("training", "checkpointing"), [(True, False), (False, True), (True, True)])
def test_nothing_leaks_from_a_model_and_all_comes_back(tiny_llama, tokenizer, training, checkpointing):
    """Neither gradient checkpointing nor train mode nor defaults of the checkpoint change a sample."""
    ids = prompts(tokenizer, 3)
    expected = sample(tiny_llama.eval(), ids, tokenizer)
    leaky = {"temperature": 0.1, "top_k": 1, "repetition_penalty": 5.0, "no_repeat_ngram_size": 2}
    tiny_llama.generation_config = before = GenerationConfig(**leaky, suppress_tokens=list(range(50, 300)))
    if checkpointing:
        tiny_llama.gradient_checkpointing_enable()
    tiny_llama.train(training)
    assert sample(tiny_llama, ids, tokenizer) == expected
    with pytest.raises(IndexError):  # a token id beyond the embedding
        sample(tiny_llama, [[10_000]], tokenizer)
    assert tiny_llama.training == training and tiny_llama.generation_config is before
    assert tiny_llama.is_gradient_checkpointing == checkpointing


def test_end_ids_are_those_of_tokenizer_and_model(tiny_llama):
    for configured, expected in (([9, 4], [4, 7, 9]), (7, [7]), (None, [7])):
        tiny_llama.generation_config.eos_token_id = configured
        assert end_token_ids(tiny_llama.generation_config, 7) == expected


def hf_probabilities(logits, temperature, top_k, top_p) -> torch.Tensor:
    warped = TemperatureLogitsWarper(temperature)(None, logits)
    if top_k:
        warped = TopKLogitsWarper(top_k)(None, warped)
    return TopPLogitsWarper(top_p)(None, warped).softmax(-1)[0]


def assert_drawn_from(expected: torch.Tensor, tokens: list[int]) -> None:
    """Chi-squared test; rare tokens share a cell, of which it wants five expected draws at least."""
    counts, expected = torch.bincount(torch.tensor(tokens), minlength=len(expected)), expected * len(tokens)
    assert (counts[expected == 0] == 0).all()
    common = expected >= 5
    rare = ~common & (expected > 0)
    cells = [
        [*values[common].tolist(), *([values[rare].sum().item()] if rare.any() else [])]
        for values in (counts, expected)
    ]
    assert len(cells[0]) > 3 and chisquare(*cells, sum_check=False).pvalue > 1e-3


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.25, 0, 0.95), (0.7, 10, 1.0), (1.0, 1000, 0.9)],
)
def test_one_step_follows_hf_sampling(temperature, top_k, top_p):
    """Chi-squared test of 40,000 draws against the distribution that HF's own warpers leave."""
    torch.manual_seed(0)
    logits = 2.0 * torch.randn(1, 60)
    expected = hf_probabilities(logits, temperature, top_k, top_p)

    draws = 40_000
    uniforms = torch.rand(draws, 1, generator=torch.Generator().manual_seed(1))
    sampler = InverseCDFSampler(uniforms, 1, Sampling(temperature, top_k, top_p, []))
    scores = sampler(torch.zeros(draws, 1, dtype=torch.long), logits.expand(draws, -1))
    assert (torch.isfinite(scores).sum(-1) == 1).all()
    assert_drawn_from(expected, scores.argmax(-1).tolist())


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (2.0, 1.0), (1.0, 0.9), (1.5, 0.9)])
def test_the_likeliest_tokens_tell_what_the_whole_vocabulary_would(monkeypatch, temperature, top_p):
    """Of peaked rows and of flat ones, for which the likeliest tokens are not enough."""
    torch.manual_seed(0)
    logits = torch.randn(300, 500) * torch.linspace(0, 6, 300)[:, None]
    sampler = InverseCDFSampler(torch.rand(300, 1), 1, Sampling(temperature, 0, top_p, []))
    sizes, topk = [], torch.Tensor.topk

    def recorded(self, size, **kwargs):
        sizes.append((len(self), size))
        return topk(self, size, **kwargs)

    monkeypatch.setattr(torch.Tensor, "topk", recorded)
    picks = []
    for size in (500, 40):
        monkeypatch.setattr(generation, "HEAD", size)
        picks.append(sampler(torch.zeros(300, 1, dtype=torch.long), logits).argmax(-1).tolist())
    assert picks[0] == picks[1]
    assert sizes[:2] == [(300, 500), (300, 40)] and sizes[2][1] == 500 and 50 < sizes[2][0] < 290


def test_first_token_of_the_whole_path_follows_hf_sampling(tiny_phi, tokenizer):
    """As above, but through `generate` and the seeds that name the samples."""
    with torch.no_grad():
        tiny_phi.lm_head.weight *= 20
    [prompt] = prompts(tokenizer, 1)
    draws = 4000
    settings = {"length": 1, "batch": draws, "temperature": 1.0, "top_k": 12}
    completions = sample(tiny_phi, [prompt], tokenizer, k=draws, **settings)
    logits = tiny_phi.eval()(torch.tensor([prompt])).logits[:, -1].detach()
    assert_drawn_from(hf_probabilities(logits, 1.0, 12, 0.95), [row[0] for row in completions])


def test_suppressed_tokens_are_never_sampled_and_the_others_as_if_they_were_alone():
    """Each row's own; 40,000 draws against what HF's warpers leave of the other tokens."""
    torch.manual_seed(0)
    logits = 2.0 * torch.randn(1, 60)
    [likely, likelier] = logits[0].topk(2).indices.tolist()
    others = logits.clone()
    others[0, [likely, likelier]] = -torch.inf
    draws = 40_000
    uniforms = torch.rand(draws, 1, generator=torch.Generator().manual_seed(1))
    suppressed = [[likely, likelier], []] * (draws // 2)
    sampler = InverseCDFSampler(uniforms, 1, Sampling(1.0, 20, 0.95, [], suppressed))
    picked = sampler(torch.zeros(draws, 1, dtype=torch.long), logits.expand(draws, -1)).argmax(-1)
    for part, expected in ((picked[::2], others), (picked[1::2], logits)):
        assert_drawn_from(hf_probabilities(expected, 1.0, 20, 0.95), part.tolist())


def test_suppressed_tokens_go_with_their_rows(ending_phi, tokenizer, monkeypatch):
    """Through batches sorted by length and rows that leave; rows with none are as ever."""
    ids = prompts(tokenizer, 6)[::-1]
    plain = sample(ending_phi, ids, tokenizer)
    suppressed = [sorted(set(answer) - {tokenizer.eos_token_id}) if i % 2 else [] for i, answer in enumerate(plain)]
    monkeypatch.setattr(generation, "STRIDE", 3)
    for batch in (64, 4):
        answers = sample(ending_phi, ids, tokenizer, batch=batch, suppressed=suppressed)
        assert answers[::2] == plain[::2]
        assert not any(set(answer) & set(tokens) for answer, tokens in zip(answers, suppressed, strict=True))


def test_uniform_numbers_at_the_ends_pick_valid_tokens():
    logits = torch.tensor([[3.0, 2.0, 1.0, -50.0]]).repeat(2, 1)
    uniforms = torch.tensor([[0.0], [1.0 - 2**-24]])
    sampler = InverseCDFSampler(uniforms, 1, Sampling(1.0, 0, 0.9, []))
    picked = sampler(torch.zeros(2, 1, dtype=torch.long), logits).argmax(-1)
    assert picked.tolist() == [0, 1]


@pytest.mark.filterwarnings("error::FutureWarning")  # nothing deprecated is used
@pytest.mark.parametrize("stride", [1, 5, 100])
def test_when_finished_rows_leave_changes_no_sample(ending_phi, tokenizer, monkeypatch, stride):
    model = ending_phi
    ids = prompts(tokenizer, 4)
    expected = sample(model, ids, tokenizer, k=6)
    assert min(map(len, expected)) < 5 < max(map(len, expected))
    monkeypatch.setattr(generation, "STRIDE", stride)
    sizes = []
    embed = model.get_input_embeddings()
    hook = embed.register_forward_hook(lambda module, args, output: sizes.append(tuple(args[0].shape)))
    assert sample(model, ids, tokenizer, k=6) == expected
    hook.remove()
    assert sizes[0][0] == 4  # each prompt is read once, for all of its samples
    rows = [count for count, length in sizes[1:]]
    assert rows[0] == 24 and rows == sorted(rows, reverse=True)
    assert (rows[-1] < 24) == (stride < 12)


def test_prompts_of_a_single_token(ending_phi, tokenizer):
    """Behind nothing but the last token of a prompt there is nothing to read once for all."""
    ids = [[5], *prompts(tokenizer, 1)]
    together = sample(ending_phi, ids, tokenizer, k=3)
    assert together[:3] == sample(ending_phi, ids[:1], tokenizer, k=3)
    assert together[3:] == sample(ending_phi, ids[1:], tokenizer, row_ids=[1], k=3)


def test_out_of_memory_halves_the_batch_for_good(tiny_phi, tokenizer, monkeypatch, tmp_path):
    args = PMCConfig(output_dir=str(tmp_path), use_cpu=True, generation_batch_size=12, max_completion_length=6)
    ids, calls = prompts(tokenizer, 9), []
    complete = generation._complete

    def scarce(model, prompt_ids, *rest):
        calls.append(len(prompt_ids))
        if len(prompt_ids) > 3:
            raise torch.OutOfMemoryError("too much")
        return complete(model, prompt_ids, *rest)

    expected = generate_together(tiny_phi, ids, args, [tokenizer.eos_token_id])
    monkeypatch.setattr(generation, "_complete", scarce)
    monkeypatch.setattr(torch.accelerator, "empty_cache", lambda: None)
    assert generate_together(tiny_phi, ids, args, [tokenizer.eos_token_id]) == expected
    assert calls == [9, 4, 2, 2, 2, 2, 1] and args.generation_batch_size == 2
    generate_together(tiny_phi, ids, args, [tokenizer.eos_token_id])
    assert calls[7:] == [2, 2, 2, 2, 1]
    args.generation_batch_size = 1
    monkeypatch.setattr(generation, "_complete", lambda *args: (_ for _ in ()).throw(torch.OutOfMemoryError("no")))
    with pytest.raises(torch.OutOfMemoryError):
        generate_together(tiny_phi, ids, args, [tokenizer.eos_token_id])


@pytest.mark.parametrize(
    "kind", "mamba mamba2 recurrent_gemma lfm2 minimax gemma3_text mixtral openai-gpt".split()
)  # with states, windows, experts, without a cache
def test_architectures(kind):
    """Greedy answers are those of HF, question by question, and no sample depends on what shares its batch."""
    assert architectures.outcome(kind) == "right"


@pytest.mark.parametrize("kind", ["rwkv", "roberta", "bart"])  # the last two count positions otherwise in a batch
def test_architectures_that_are_refused(kind):
    model = architectures.build(kind)
    [error] = errors_of(check_generation, model, architectures.tokenize)
    assert type(model).__name__ in error and "cannot be sampled" in error


def test_a_run_is_refused_before_its_first_answer(tmp_path, data, model_folder, monkeypatch):
    monkeypatch.setattr(generation_check, "LOGITS_TOLERANCE", (0.0, 0.0))
    monkeypatch.setattr(original, "generate_together", lambda *args, **kwargs: pytest.fail("an answer was made"))
    [error] = errors_of(train.main, [unlearn_recipe(tmp_path, data, str(model_folder))])
    assert "LlamaForCausalLM cannot be sampled" in error
