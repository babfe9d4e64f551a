"""The house: who may import whom, names that would hide a library, telemetry, and recipes that parse."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from eval.study.settings import parse_study
from pmc_rl.recipe import parse_finetune_recipe, parse_recipe
from pmc_rl.scoring import load_reward_functions

REPO = Path(__file__).resolve().parents[1]
PACKAGES = ("pmc_rl", "rewards", "eval")
FILES = [path for package in PACKAGES for path in sorted((REPO / package).rglob("*.py"))]
SCRIPTS = [*FILES, *sorted((REPO / "recipes").rglob("*.py")), *sorted((REPO / "benchmarks").rglob("*.py"))]
SCRIPTS = [path for path in SCRIPTS if '__name__ == "__main__"' in path.read_text(encoding="utf-8")]
STUDIES = sorted((REPO / "recipes" / "studies").glob("*.yaml"))  # name recipes, and are none
ACCELERATE = sorted((REPO / "recipes" / "accelerate_configs").glob("*.yaml"))
RECIPES = sorted(set((REPO / "recipes").rglob("*.yaml")) - set(STUDIES) - set(ACCELERATE))

# what a package may import of the others and of the folders beside them; how words are told is shared by all
ALLOWED = {"pmc_rl": {"pmc_rl"}, "rewards": {"rewards"}, "eval": {"pmc_rl", "rewards", "eval"}}
OURS = {*PACKAGES, "tests", "recipes", "benchmarks"}
LIBRARIES = set(
    """accelerate bitsandbytes datasets evaluate huggingface_hub hypothesis jinja2 lm_eval matplotlib nltk numpy peft
    pyarrow pytest rich rouge_score safetensors scipy tokenizers torch tqdm transformers trl yaml""".split()
)
REPORTING = {"accelerate", "datasets", "evaluate", "huggingface_hub", "peft", "tokenizers", "transformers", "trl"}


def in_repo(path) -> str:
    return str(path.relative_to(REPO))


def imports(path) -> list[tuple[str, int]]:
    """Modules of all import statements, also those inside functions, with their lines; '.' for a relative one."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(name.name, node.lineno) for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append(("." * node.level + (node.module or ""), node.lineno))
    return sorted(found, key=lambda found: found[1])


def broken_arrows(path, package) -> list[str]:
    forbidden = OURS - ALLOWED[package]
    return [
        f"line {line}: {module}"
        for module, line in imports(path)
        if (module.split(".")[0] in forbidden and module != "rewards.text")
        or module.startswith(".")
        or module == "eval"
    ]


def test_arrows():
    broken = {in_repo(path): broken_arrows(path, path.relative_to(REPO).parts[0]) for path in FILES}
    assert {path: arrows for path, arrows in broken.items() if arrows} == {}


@pytest.mark.parametrize(
    ("package", "line"),
    [
        ("pmc_rl", "from eval.data import QuestionSet"),
        ("pmc_rl", "from rewards.rouge import rouge_dissimilarity"),
        ("pmc_rl", "import rewards.length"),
        ("pmc_rl", "from .values import RecipeError"),
        ("rewards", "import pmc_rl"),
        ("rewards", "from eval.metrics import unlearning"),
        ("eval", "import eval"),
        ("eval", "from tests import conftest"),
    ],
)
def test_arrows_are_seen(tmp_path, package, line):
    path = tmp_path / "module.py"
    path.write_text(f"def inside():\n    {line}\n")
    assert len(broken_arrows(path, package)) == 1


def test_modules_begin_with_a_docstring():
    docstrings = {in_repo(path): ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) for path in FILES}
    assert [path for path, docstring in docstrings.items() if not (docstring or "").strip()] == []


def test_no_file_hides_a_library():
    """`accelerate launch pmc_rl/train.py` puts `pmc_rl/` first on sys.path, so a `datasets.py` there would win."""
    own = {path.stem if path.suffix == ".py" else path.name for path in (REPO / "pmc_rl").iterdir()}
    assert {"train", "data", "config", "trainer"} <= own  # the names are those that count
    hidden = [
        in_repo(path)
        for package in PACKAGES
        for path in (REPO / package).rglob("*")
        if (path.suffix == ".py" or path.is_dir())
        and (path.stem in LIBRARIES | set(sys.stdlib_module_names) | OURS and path.stem != "__init__")
    ]
    assert hidden == []


def test_three_packages_and_no_more():
    packages = sorted(path.parent.name for path in REPO.glob("*/__init__.py"))
    assert [name for name in packages if name != "tests"] == sorted(PACKAGES)


@pytest.mark.parametrize("path", SCRIPTS, ids=in_repo)
def test_scripts_import_pmc_rl_before_any_library(path):
    """Libraries read their switches when they are imported, telemetry and how threads wait, and pmc_rl sets them."""
    roots = [module.split(".")[0] for module, _ in imports(path)]
    roots = [root for root in roots if root not in {*sys.stdlib_module_names, "__future__"}]
    if path in FILES or {"pmc_rl", "torch", *REPORTING} & set(roots):  # a script of recipes/ may need none of them
        assert roots[0] == "pmc_rl"


def test_scripts_are_found():
    assert {in_repo(path) for path in SCRIPTS} >= {"pmc_rl/train.py", "pmc_rl/finetune.py", "eval/run.py"}


@pytest.mark.parametrize(
    ("variable", "default", "own"), [("HF_HUB_DISABLE_TELEMETRY", "1", "0"), ("OMP_WAIT_POLICY", "PASSIVE", "ACTIVE")]
)
@pytest.mark.parametrize(("package", "is_given"), [("pmc_rl", False), ("pmc_rl", True), ("eval", False)])
def test_environment_unless_given(package, is_given, variable, default, own):
    """No telemetry, no spinning threads. The package itself is enough, and loads nothing that has read it already."""
    code = (
        f"import os, sys, {package}; print(os.environ.get({variable!r}), "
        "[name for name in ('torch', 'numpy', 'huggingface_hub', 'transformers', 'datasets') if name in sys.modules])"
    )
    env = {name: value for name, value in os.environ.items() if name != variable} | {"PYTHONPATH": str(REPO)}
    env |= {variable: own} if is_given else {}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == f"{own if is_given else default} []\n"


def test_there_are_recipes():
    assert {"recipes/quickstart/unlearn.yaml", "recipes/quickstart/finetune.yaml"} <= set(map(in_repo, RECIPES))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # TRL's own defaults cause some
@pytest.mark.parametrize("path", RECIPES, ids=in_repo)
def test_recipes_parse_and_their_rewards_load(path):
    if path.name.endswith("finetune.yaml"):
        script_args, training_args, _ = parse_finetune_recipe([str(path)])
    else:
        script_args, training_args, _, _ = parse_recipe([str(path)])
        rewards = load_reward_functions(
            script_args.reward_funcs,
            script_args.reward_kwargs,
            training_args.reward_weights,
            training_args.max_completion_length,
        )
        assert len(rewards) == len(script_args.reward_funcs)
    assert training_args.report_to == [] and not training_args.push_to_hub
    assert not Path(training_args.output_dir).is_absolute()


@pytest.mark.parametrize("path", STUDIES, ids=in_repo)
def test_studies_parse(path):
    """What they name is checked in test_study.py."""
    study = parse_study([str(path)])
    assert {str(REPO / study.recipe)} <= set(map(str, RECIPES))
    assert not Path(study.output_dir).is_absolute()
