"""The house: six files that import each other in one order, and of assets/ nothing but world.py."""
import ast
import os
import shutil
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SIX = ["clip_model", "losses", "data", "prompts", "evaluate", "train"]       # none imports a later
PACKAGES = {"torch", "torchvision", "ftfy", "regex", "tqdm", "PIL", "numpy", "filelock"}
NEEDED = ["world.py", "bpe_merges.txt.gz", "tiny_clip.pt", "imagenet.tsv", "datasets.csv"]
MODULES = {path.stem: path for path in [*ROOT.glob("*.py"), *ROOT.glob("tests/*.py")]}
MODULES |= {f"assets.{path.stem}": path for path in ROOT.glob("assets/*.py")}


def imported(module):
    """Names of the modules that a module imports, anywhere in it: of assets/ with their folder."""
    names = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            whole = node.module == "assets"
            names |= {f"assets.{a.name}" for a in node.names} if whole else {node.module}
    return {name if name.startswith("assets.") else name.split(".")[0] for name in names}


@pytest.mark.parametrize("module", [*SIX, "assets.world"])
def test_the_six_import_each_other_in_order_and_no_tool(module):
    """And the standard library, the six packages, and what those bring."""
    allowed = {*sys.stdlib_module_names, *PACKAGES}
    if module in SIX:
        allowed |= {*SIX[:SIX.index(module)]}
    assert imported(module) - allowed == ({"assets.world"} if module == "data" else set())


def test_tools_import_no_test_and_nothing_imports_itself_by_way_of_others():
    """textbook.py, the formulas written slowly, is no test."""
    graph = {module: imported(module) & MODULES.keys() for module in MODULES}
    tests = {path.stem for path in ROOT.glob("tests/*.py")} - {"textbook"}
    tools = [module for module in graph if module not in tests]
    assert not [module for module in tools if graph[module] & tests]
    assert [*TopologicalSorter(graph).static_order()]           # CycleError names the circle


def test_the_six_and_their_data_files_train_and_evaluate_alone(tmp_path):
    (tmp_path / "assets").mkdir()
    for file in [*(f"{module}.py" for module in SIX), *(f"assets/{name}" for name in NEEDED)]:
        shutil.copy(ROOT / file, tmp_path / file)
    words = ["--method=coop", "--epochs=1", "--shots=1", "--test-images=2", "--out=run"]
    script = f"import evaluate, train; exit(train.main({words}) or evaluate.main(['run']))"
    process = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, text=True,
                             capture_output=True, env={**os.environ, "PYTHONPATH": ""})
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "run/result.json").is_file()
    assert (tmp_path / "run/evaluation/base-to-novel.json").is_file()
