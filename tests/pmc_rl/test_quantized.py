"""4 and 8 bits on a CPU: gradients survive sampling, training resumes exactly, the merged model is the trained one."""

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel
from trl import ModelConfig

from pmc_rl.checkpoints import last_checkpoint
from pmc_rl.config import RunConfig
from pmc_rl.generation import generate_completions
from pmc_rl.likelihood import mean_log_probs
from pmc_rl.models import check_model, load_merged, load_model, merged_copy
from pmc_rl.original import OriginalLogLikelihood
from pmc_rl.prompts import encode_prompt
from tests.conftest import errors_of
from tests.training import StopAt, figures, forget_prompts, lora, make_trainer, weights

pytest.importorskip("bitsandbytes")

CPU = torch.device("cpu")
BITS = {"4 bit": {"load_in_4bit": True, "use_bnb_nested_quant": True}, "8 bit": {"load_in_8bit": True}}
IDS = torch.tensor([[5, 6, 7]])
# sampling is slow on a CPU: three steps of short answers, the first in the middle of an epoch of three questions
SETTINGS = {"max_steps": 3, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
SETTINGS |= {"max_completion_length": 12, "allow_unfinished": True}


@pytest.fixture(scope="module")
def folder(taught, tmp_path_factory):
    folder = tmp_path_factory.mktemp("taught")
    taught.save_pretrained(folder)
    return str(folder)


def model_args(folder, bits="4 bit", **kwargs) -> ModelConfig:
    return ModelConfig(model_name_or_path=str(folder), **BITS[bits], **kwargs)


def trainer_of(path, folder, bits, tokenizer):
    model = load_model(model_args(folder, bits), torch.float32, CPU)
    return make_trainer(path, model, tokenizer, forget=forget_prompts(3), peft_config=lora(lora_alpha=8), **SETTINGS)


def adapted(args, dtype=torch.float32):
    """The model with an adapter that changes it."""
    torch.manual_seed(0)
    return get_peft_model(load_model(args, dtype, CPU), lora(lora_alpha=8, init_lora_weights=False)).eval()


def adapter(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for name, p in model.named_parameters() if "lora_" in name])


@pytest.fixture(scope="module", params=BITS)
def bits(request):
    return request.param


@pytest.fixture(scope="module")
def trained(bits, folder, tokenizer, tmp_path_factory):
    """A trainer whose training is over; what it was before is asserted here."""
    trainer = trainer_of(tmp_path_factory.mktemp("whole"), folder, bits, tokenizer)
    layers = [module for name, module in trainer.model.named_modules() if name.endswith("fc1.base_layer")]
    assert {type(layer).__name__ for layer in layers} == {"Linear4bit" if bits == "4 bit" else "Linear8bitLt"}
    assert type(trainer.model.get_base_model().lm_head).__name__ == "Linear"
    trainer.train()
    prompts = [encode_prompt(trainer.processing_class, row) for row, _ in trainer.window]
    learned = [(ids, answer.completion_ids) for ids, (_, [answer]) in zip(prompts, trainer.window, strict=True)]
    after = mean_log_probs(trainer.model.eval(), learned)
    with trainer.model.disable_adapter():
        assert sum(after) > sum(mean_log_probs(trainer.model, learned))
    return trainer


def test_gradients_are_the_same_before_and_after_sampling(trained, tokenizer):
    prompts = [row["prompt"] for row in trained.train_dataset]
    batch = copy.deepcopy(tokenizer)(prompts, return_tensors="pt", padding=True)  # padding is remembered
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)

    def gradients() -> torch.Tensor:
        trained.model.train()
        trained.model.zero_grad()
        trained.model(**batch, labels=labels).loss.backward()
        return torch.cat([p.grad.flatten() for p in trained.model.parameters() if p.requires_grad])

    before = gradients()
    trained.sampler.sample(trained.model, list(trained.train_dataset), [2] * 3, step=0)
    assert before.abs().max() > 0 and torch.equal(gradients(), before)
    assert all(p.dtype == torch.float32 for p in trained.model.parameters() if p.requires_grad)


def test_it_resumes_exactly(tmp_path, trained, folder, bits, tokenizer):
    stopped = trainer_of(tmp_path, folder, bits, tokenizer)
    stopped.add_callback(StopAt(1))
    stopped.train()
    resumed = trainer_of(tmp_path, folder, bits, tokenizer)
    resumed.train(resume_from_checkpoint=str(last_checkpoint(tmp_path / "out")))
    assert torch.equal(adapter(resumed.model), adapter(trained.model))
    assert figures(resumed) == figures(trained)


def test_the_model_before_is_the_quantized_base(trained, folder, bits, tokenizer):
    """Rewards that ask the model before unlearning get the adapter switched off, however far it has been trained."""
    prompt, ids = forget_prompts()[0]["prompt"], tokenizer(" bacorden filummor")["input_ids"]
    bare = load_model(model_args(folder, bits), torch.float32, CPU).eval()
    expected = mean_log_probs(bare, [(tokenizer(prompt)["input_ids"], ids)])
    original = OriginalLogLikelihood()
    original.remember(trained.model, tokenizer)
    assert original([prompt], [ids]) == pytest.approx(expected, abs=1e-4)


def test_merged_it_answers_as_the_adapter_does(tmp_path, trained, folder, bits, tokenizer):
    model = trained.model.eval()
    before = adapter(model).clone()
    merged = merged_copy(model, model_args(folder, bits, use_peft=True), torch.float32).eval()
    assert torch.equal(adapter(model), before)
    assert not any("bit" in type(module).__name__ for module in merged.modules())
    prompts = [encode_prompt(trained.processing_class, row) for row in trained.train_dataset]
    limits = {"max_completion_length": 12, "generation_batch_size": 8, "end_ids": [tokenizer.eos_token_id]}
    answers = [generate_completions(one, prompts, **limits) for one in (model, merged)]
    assert bits == "8 bit" or answers[0] == answers[1]  # 8 bit also rounds what goes into a layer, merged it does not
    # merged into the original weights, it is another model than the one that was trained
    model.save_pretrained(tmp_path / "adapter")
    plain = load_model(ModelConfig(model_name_or_path=folder), torch.float32, CPU)
    naive = PeftModel.from_pretrained(plain, tmp_path / "adapter").merge_and_unload().eval()
    logits, after, other = (one(torch.tensor([prompts[0]])).logits.detach() for one in (model, merged, naive))
    error, naive_error = ((off - logits).norm() / logits.norm() for off in (after, other))
    assert error < (1e-5 if bits == "4 bit" else 0.02)
    assert bits == "8 bit" or naive_error > 20 * error


def test_merged_in_16_bit(folder):
    """As the shipped recipes do: what is left is the rounding of the merged weights, and of 16-bit sums."""
    args = model_args(folder, use_peft=True)
    model = adapted(args, torch.bfloat16)
    logits = model(IDS).logits.float()
    merged = merged_copy(model, args, torch.bfloat16).eval()
    assert merged.dtype == torch.bfloat16
    assert (merged(IDS).logits.float() - logits).norm() / logits.norm() < 0.02


def test_layers_of_gpt2_are_merged_as_they_were(tmp_path):
    """They hold their weights the other way round, which quantization turns."""
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=32, n_layer=1, n_head=2)).save_pretrained(tmp_path / "base")
    args = model_args(tmp_path / "base", use_peft=True)
    model = adapted(args)
    merged_copy(model, args, torch.float32).save_pretrained(tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(merged(IDS).logits, model(IDS).logits, atol=1e-4, rtol=1e-4)


def test_saved_quantized_folders_and_adapters_on_them(tmp_path, folder):
    """A quantized base that was saved is trained as it is; an adapter's folder is merged on its quantized base."""
    load_model(model_args(folder), torch.float32, CPU).save_pretrained(tmp_path / "saved")
    args = model_args(tmp_path / "saved", use_peft=True)
    check_model(args, RunConfig(output_dir="unused", use_cpu=True))
    model = adapted(args)
    merged = merged_copy(model, args, torch.float32).eval()
    torch.testing.assert_close(merged(IDS).logits, model(IDS).logits, atol=1e-4, rtol=1e-4)

    args = model_args(folder, use_peft=True)
    model = adapted(args)
    model.save_pretrained(tmp_path / "adapter")
    loaded = load_merged(model_args(tmp_path / "adapter"), torch.float32, CPU)
    assert torch.equal(weights(loaded), weights(merged_copy(model, args, torch.float32)))


def test_what_quantization_needs(folder, monkeypatch):
    args = RunConfig(output_dir="unused", use_cpu=True)
    check_model(model_args(folder, use_peft=True), args)
    [line] = errors_of(check_model, model_args(folder, "8 bit"), args)
    assert "load_in_8bit" in line and "use_peft: true" in line
    monkeypatch.setattr("pmc_rl.models.find_spec", lambda name: None)
    [line] = errors_of(check_model, model_args(folder, use_peft=True), args)
    assert "pip install -e '.[quantization]'" in line
    monkeypatch.undo()
    args.use_cpu = False
    [line] = errors_of(check_model, model_args(folder, use_peft=True), args)
    assert "dtype: bfloat16" in line
