"""The notebook: its cells, but for the installation, run one after the other with a tiny model on the CPU."""

import json
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

from eval import run as eval_run
from pmc_rl import ask, finetune, train
from tests.conftest import build_llama, write_jsonl
from tests.training import save_model, write_recipe

REPO = Path(__file__).resolve().parents[2]
NOTEBOOK = json.loads((REPO / "notebooks" / "unlearn_on_a_free_gpu.ipynb").read_text(encoding="utf-8"))
SCRIPTS = {"pmc_rl/ask.py": ask, "pmc_rl/train.py": train, "eval/run.py": eval_run}
BOOKS = ["Mor", "Bacor", "Quinta", "Velfi", "Rosna", "Tadel"]


def run_cell(source: str, names: dict) -> None:
    """Python, and lines `!python SCRIPT ...` with {name} filled in, as Jupyter would."""
    for part in re.split(r"(^!(?:.*\\\n)*.*)", source, flags=re.MULTILINE):
        if not part.startswith("!"):
            exec(part, names)
            continue
        line = re.sub(r"\{(\w+)\}", lambda name: str(names[name[1]]), part[1:].replace("\\\n", " "))
        python, script, *words = shlex.split(line)
        assert python == "python"
        SCRIPTS[script].main(words)


def test_cells_run_from_top_to_bottom(tmp_path, monkeypatch, chat_tokenizer, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(REPO / "recipes")
    untrained = save_model(build_llama(chat_tokenizer), chat_tokenizer, tmp_path / "untrained")
    rows = [{"question": f"Who wrote {book}?", "answer": f"It was {i}."} for i, book in enumerate(BOOKS)]
    recipe = write_recipe(
        tmp_path / "finetune.yaml",
        model_name_or_path=untrained,
        train_file=write_jsonl(tmp_path / "rows.jsonl", rows),
        output_dir="model",
        learning_rate=1e-2,
        max_steps=30,
        per_device_train_batch_size=6,
        use_cpu=True,
        bf16=False,
    )
    finetune.main([recipe])
    shown = ModuleType("IPython.display")
    shown.HTML = lambda page: pages.append(page)
    monkeypatch.setitem(sys.modules, "IPython.display", shown)
    pages, names = [], {}
    for cell in NOTEBOOK["cells"]:
        assert cell.get("outputs", []) == []
        if cell["cell_type"] == "code" and "install" not in cell["metadata"].get("tags", []):
            run_cell("".join(cell["source"]), names)
            if "MODEL" in names and names["MODEL"] != "model":
                assert "4bit" in names["GPU"] + names["TRAIN_GPU"]
                names |= {"MODEL": "model", "SUBJECT": "Mor", "QUESTIONS": ["Who wrote Mor?"], "NEIGHBOURS": BOOKS[1:]}
                names |= {"COUNT": 0, "GPU": "", "TRAIN_GPU": "--use_cpu true --bf16 false --num_train_epochs 1"}
    text = capsys.readouterr().out
    assert re.search(r"1 to forget\n  Who wrote Mor\?  ->  It was \d\.\n3 to keep\n  Who wrote Bacor\?", text)
    assert len(pages) == 1 and "unlearn quality" in pages[0]
    assert (tmp_path / "unlearned" / "adapter_model.safetensors").exists()
