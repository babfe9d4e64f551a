"""The house: who may import whom, names that would hide a library, telemetry, and recipes that parse."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pmc_rl.recipe import parse_finetune_recipe, parse_recipe
from pmc_rl.reward_loading import load_reward_functions

REPO = Path(__file__).resolve().parents[1]
PACKAGES = ("pmc_rl", "rewards", "eval")
FILES = [path for package in PACKAGES for path in sorted((REPO / package).rglob("*.py"))]
OTHERS = ("studies", "accelerate_configs")
RECIPES = sorted(path for path in (REPO / "recipes").rglob("*.yaml") if path.parent.name not in OTHERS)

# what a package may import of the others and of the folders beside them
ALLOWED = {"pmc_rl": {"pmc_rl"}, "rewards": {"rewards"}, "eval": {"pmc_rl", "rewards", "eval"}}
OURS = {*PACKAGES, "tests", "recipes", "benchmarks"}
LIBRARIES = set(
    """accelerate bitsandbytes datasets evaluate huggingface_hub hypothesis jinja2 lm_eval matplotlib nltk numpy peft
    pyarrow pytest rich rouge_score safetensors scipy tokenizers torch tqdm transformers trl yaml""".split()
)
REPORTING = {"accelerate", "datasets", "evaluate", "huggingface_hub", "peft", "tokenizers", "transformers", "trl"}


def imports(code) -> list[str]:
    """Modules of all import statements in their order, also those inside functions; '.' for a relative one."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, name.name) for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.lineno, "." * node.level + (node.module or "")))
    return [module for _, module in sorted(found)]


def broken_arrows(code, package) -> list[str]:
    return [
        module
        for module in imports(code)
        if module.startswith(".")
        or module == "eval"
        or (module.split(".")[0] in OURS - ALLOWED[package] and module != "rewards.text")  # how any script is split
    ]


def test_arrows():
    codes = {path: path.read_text(encoding="utf-8") for path in FILES}
    assert {path for path, code in codes.items() if not code.startswith('"""')} == set()  # a docstring begins each
    broken = {path: broken_arrows(code, path.relative_to(REPO).parts[0]) for path, code in codes.items()}
    assert {path: arrows for path, arrows in broken.items() if arrows} == {}
    for package, line in [
        ("pmc_rl", "from eval.sets import QuestionSet"),
        ("pmc_rl", "import rewards.length"),
        ("pmc_rl", "from .values import RecipeError"),
        ("rewards", "import pmc_rl"),
        ("eval", "import eval"),
        ("eval", "from tests import conftest"),
    ]:
        assert len(broken_arrows(f"def inside():\n    {line}\n", package)) == 1, line


def test_no_file_hides_a_library():
    """`accelerate launch pmc_rl/train.py` puts `pmc_rl/` first on sys.path, so a `datasets.py` there would win."""
    paths = [path for package in PACKAGES for path in (REPO / package).rglob("*")]
    names = {path.stem for path in paths if path.suffix == ".py" or path.is_dir()} - {"__init__"}
    assert {"train", "data", "config", "trainer"} <= names
    assert names & (LIBRARIES | set(sys.stdlib_module_names) | OURS) == set()


def test_three_packages_and_no_more():
    packages = sorted(path.parent.name for path in REPO.glob("*/__init__.py"))
    assert [name for name in packages if name != "tests"] == sorted(PACKAGES)


def test_scripts_import_pmc_rl_before_any_library():
    """Libraries read their switches when they are imported, telemetry and how threads wait, and pmc_rl sets them."""
    paths = [*FILES, *(REPO / "recipes").rglob("*.py"), *(REPO / "benchmarks").rglob("*.py")]
    scripts = {path: path.read_text(encoding="utf-8") for path in paths}
    scripts = {path: code for path, code in scripts.items() if '__name__ == "__main__"' in code}
    assert {REPO / "pmc_rl" / "train.py", REPO / "pmc_rl" / "finetune.py", REPO / "eval" / "run.py"} <= scripts.keys()
    for path, code in scripts.items():
        roots = [module.split(".")[0] for module in imports(code)]
        roots = [root for root in roots if root not in {*sys.stdlib_module_names, "__future__"}]
        if path in FILES or {"pmc_rl", "torch", *REPORTING} & set(roots):  # a script of recipes/ may need none of them
            assert roots[0] == "pmc_rl", path


@pytest.mark.parametrize(("package", "is_given"), [("pmc_rl", False), ("pmc_rl", True), ("eval", False)])
def test_environment_unless_given(package, is_given):
    """No telemetry, no spinning threads. The package itself is enough, and loads nothing that has read it already."""
    users = {"HF_HUB_DISABLE_TELEMETRY": "0", "OMP_WAIT_POLICY": "ACTIVE"}
    code = (
        f"import os, sys, {package}; print([os.environ.get(name) for name in {list(users)}], "
        "[name for name in ('torch', 'numpy', 'huggingface_hub', 'transformers', 'datasets') if name in sys.modules])"
    )
    env = {name: value for name, value in os.environ.items() if name not in users} | {"PYTHONPATH": str(REPO)}
    env |= users if is_given else {}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == f"{list(users.values()) if is_given else ['1', 'PASSIVE']} []\n"


@pytest.mark.filterwarnings("ignore::FutureWarning")  # TRL's own defaults cause some
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(REPO)))
def test_recipes_parse_and_their_rewards_load(path):
    if path.name.endswith("finetune.yaml"):
        script_args, training_args, _ = parse_finetune_recipe([str(path)])
    else:
        script_args, training_args, _, _ = parse_recipe([str(path)])
        names, kwargs = script_args.reward_funcs, script_args.reward_kwargs
        weights, length = training_args.reward_weights, training_args.max_completion_length
        assert len(load_reward_functions(names, kwargs, weights, length)) == len(names)
    assert training_args.report_to == [] and not training_args.push_to_hub
    assert not Path(training_args.output_dir).is_absolute()
