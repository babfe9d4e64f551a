"""4 and 8 bits on a CPU: gradients survive sampling, training resumes exactly, the merged model is the trained one."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel
from trl import ModelConfig

from pmc_rl.checkpoints import last_checkpoint
from pmc_rl.config import RunConfig
from pmc_rl.generation import generate_completions
from pmc_rl.models import check_model, load_merged, load_model, merged_copy
from tests.conftest import errors_of
from tests.training import SETTINGS, StopAt, figures, forget_prompts, make_trainer, weights

pytest.importorskip("bitsandbytes")

CPU = torch.device("cpu")
BITS = {
    "4 bit": {"load_in_4bit": True, "use_bnb_nested_quant": True},
    "8 bit": {"load_in_8bit": True},
}
both = pytest.mark.parametrize("bits", BITS)


@pytest.fixture(scope="module")
def folder(taught, tmp_path_factory):
    folder = tmp_path_factory.mktemp("taught")
    taught.save_pretrained(folder)
    return str(folder)


def model_args(folder, bits, **kwargs) -> ModelConfig:
    return ModelConfig(model_name_or_path=folder, **BITS[bits], **kwargs)


def lora(**kwargs) -> LoraConfig:
    return LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", **kwargs)


def trainer_of(path, folder, bits, tokenizer, **kwargs):
    model = load_model(model_args(folder, bits), torch.float32, CPU)
    return make_trainer(path, model, tokenizer, peft_config=lora(), **SETTINGS | kwargs)


def adapter(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for name, p in model.named_parameters() if "lora_" in name])


@both
def test_the_linear_layers_are_quantized_but_not_the_head(folder, bits):
    model = load_model(model_args(folder, bits), torch.float32, CPU)
    kinds = {type(module).__name__ for name, module in model.named_modules() if name.endswith("fc1")}
    assert kinds == {"Linear4bit" if bits == "4 bit" else "Linear8bitLt"}
    assert type(model.lm_head).__name__ == "Linear"


@both
def test_gradients_are_the_same_before_and_after_sampling(tmp_path, folder, bits, tokenizer):
    trainer = trainer_of(tmp_path, folder, bits, tokenizer)
    prompts = [row["prompt"] for row in forget_prompts()]
    batch = copy.deepcopy(tokenizer)(prompts, return_tensors="pt", padding=True)  # padding is remembered
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)

    def gradients() -> torch.Tensor:
        trainer.model.train()
        trainer.model.zero_grad()
        trainer.model(**batch, labels=labels).loss.backward()
        return torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.requires_grad])

    before = gradients()
    trainer._generate([ids for ids in trainer.prompt_ids.values()])
    assert before.abs().max() > 0
    assert torch.equal(gradients(), before)
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters() if p.requires_grad)


@both
def test_it_trains_and_resumes_exactly(tmp_path, folder, bits, tokenizer):
    whole = trainer_of(tmp_path / "whole", folder, bits, tokenizer)
    start = adapter(whole.model).clone()
    whole.train()
    assert whole.state.log_history[-2]["reward_selected"] > whole.state.log_history[0]["reward_selected"]
    assert not torch.equal(adapter(whole.model), start)
    stopped = trainer_of(tmp_path / "stopped", folder, bits, tokenizer)
    stopped.add_callback(StopAt(3))
    stopped.train()
    resumed = trainer_of(tmp_path / "stopped", folder, bits, tokenizer)
    resumed.train(resume_from_checkpoint=str(last_checkpoint(tmp_path / "stopped" / "out")))
    assert torch.equal(adapter(resumed.model), adapter(whole.model))
    assert figures(resumed) == figures(whole)


@both
def test_the_model_before_is_the_quantized_base(tmp_path, folder, bits, tokenizer):
    """Rewards that ask the model before unlearning get the adapter switched off, however far it has been trained."""
    trainer = trainer_of(tmp_path, folder, bits, tokenizer, log_kl=True)
    original = trainer.original_log_likelihood
    row = forget_prompts()[0]["prompt"]
    ids = [tokenizer(" bacorden filummor")["input_ids"]]
    before = original([row], ids)
    trainer.train()
    assert original([row], ids) == before
    bare = load_model(model_args(folder, bits), torch.float32, CPU).eval()
    prompt = tokenizer(row)["input_ids"]
    with torch.no_grad():
        logits = bare(torch.tensor([prompt + ids[0]])).logits[0].log_softmax(-1)
    own = [logits[len(prompt) + i - 1, token].item() for i, token in enumerate(ids[0])]
    assert before[0] == pytest.approx(sum(own) / len(own), abs=1e-4)


@both
def test_merged_it_answers_as_the_adapter_does(tmp_path, folder, bits, tokenizer):
    trainer = trainer_of(tmp_path, folder, bits, tokenizer)
    trainer.train()
    trainer.model.eval()
    before = adapter(trainer.model).clone()
    merged = merged_copy(trainer.model, model_args(folder, bits, use_peft=True), torch.float32).eval()
    assert torch.equal(adapter(trainer.model), before)
    assert not any("bit" in type(module).__name__ for module in merged.modules())

    prompts = list(trainer.prompt_ids.values())
    answer = {"max_completion_length": 20, "generation_batch_size": 8, "end_ids": [tokenizer.eos_token_id]}
    said = [generate_completions(model, prompts, **answer) for model in (trainer.model, merged)]
    assert bits == "8 bit" or said[0] == said[1]  # 8 bit also rounds what goes into a layer, merged it does not
    logits = [model(torch.tensor([prompts[0]])).logits.detach() for model in (trainer.model, merged)]
    trained, after = logits
    error = (after - trained).norm() / trained.norm()
    # merged into the original weights, it is another model than the one that was trained
    trainer.model.save_pretrained(tmp_path / "adapter")
    plain = load_model(ModelConfig(model_name_or_path=folder), torch.float32, CPU)
    naive = PeftModel.from_pretrained(plain, tmp_path / "adapter").merge_and_unload().eval()
    other = (naive(torch.tensor([prompts[0]])).logits - trained).norm() / trained.norm()
    print(f"{bits}: merged {error:.5f}, into the original weights {other:.5f}")
    assert error < (1e-5 if bits == "4 bit" else 0.02)
    assert bits == "8 bit" or other > 20 * error


def test_merged_in_16_bit(tmp_path, folder, tokenizer):
    """As the shipped recipes do: what is left is the rounding of the merged weights, and of 16-bit sums."""
    own = model_args(folder, "4 bit", use_peft=True)
    trainer = make_trainer(
        tmp_path, load_model(own, torch.bfloat16, CPU), tokenizer, peft_config=lora(), **SETTINGS, learning_rate=3e-2
    )
    trainer.train()
    trainer.model.eval()
    prompt = torch.tensor([next(iter(trainer.prompt_ids.values()))])
    trained = trainer.model(prompt).logits.float().detach()
    merged = merged_copy(trainer.model, own, torch.bfloat16).eval()
    assert merged.dtype == torch.bfloat16
    error = (merged(prompt).logits.float() - trained).norm() / trained.norm()
    print(f"merged in 16 bit {error:.5f}")
    assert error < 0.02


def test_layers_of_gpt2_are_merged_as_they_were(tmp_path):
    """They hold their weights the other way round, which quantization turns."""
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=32, n_layer=1, n_head=2)).save_pretrained(tmp_path / "base")
    own = model_args(str(tmp_path / "base"), "4 bit", use_peft=True)
    config = lora(init_lora_weights=False)
    model = get_peft_model(load_model(own, torch.float32, CPU), config).eval()
    merged_copy(model, own, torch.float32).save_pretrained(tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(merged(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-4)


def test_a_saved_quantized_folder_is_trained_as_it_is(tmp_path, folder):
    load_model(model_args(folder, "4 bit"), torch.float32, CPU).save_pretrained(tmp_path / "saved")
    own = model_args(str(tmp_path / "saved"), "4 bit", use_peft=True)
    check_model(own, RunConfig(output_dir="unused", use_cpu=True))
    model = get_peft_model(load_model(own, torch.float32, CPU), lora(init_lora_weights=False)).eval()
    ids = torch.tensor([[5, 6, 7]])
    merged = merged_copy(model, own, torch.float32).eval()
    torch.testing.assert_close(merged(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-4)


def test_an_adapter_folder_is_merged_on_its_quantized_base(tmp_path, folder, tokenizer):
    trainer = trainer_of(tmp_path, folder, "4 bit", tokenizer, max_steps=2)
    trainer.train()
    trainer.model.save_pretrained(tmp_path / "adapter")
    own = model_args(str(tmp_path / "adapter"), "4 bit")
    merged = load_merged(own, torch.float32, CPU)
    assert torch.equal(weights(merged), weights(merged_copy(trainer.model, own, torch.float32)))


def test_what_quantization_needs(folder, monkeypatch):
    args = RunConfig(output_dir="unused", use_cpu=True)
    check_model(model_args(folder, "4 bit", use_peft=True), args)
    [line] = errors_of(check_model, model_args(folder, "8 bit"), args)
    assert "load_in_8bit" in line and "use_peft: true" in line
    monkeypatch.setattr("pmc_rl.models.find_spec", lambda name: None)
    [line] = errors_of(check_model, model_args(folder, "4 bit", use_peft=True), args)
    assert "pip install -e '.[quantization]'" in line
    monkeypatch.undo()
    on_gpu = copy.copy(args)
    on_gpu.use_cpu = False
    [line] = errors_of(check_model, model_args(folder, "4 bit", use_peft=True), on_gpu)
    assert "dtype: bfloat16" in line
