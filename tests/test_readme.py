"""The README says what is there: its map, its commands, its files."""
import ast
import re
from pathlib import Path

import data
import train

ROOT = Path(train.__file__).parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODULES = ["clip_model.py", "prompts.py", "losses.py", "data.py", "train.py", "evaluate.py"]


def defined(file):
    """Names of all functions and classes of a file, methods too."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


def test_map_names_what_exists():
    rows = [line for line in README.split("## Map")[1].split("\n\nTo read")[0].splitlines() if line.startswith("| ")][2:]
    assert len(rows) >= 14
    for row in rows:
        _, code, test = row.strip("| ").split(" | ")
        assert "tests/test_" in test, row
        file = None
        for word in re.findall(r"`([^`]+)`", f"{code} {test}"):
            if word.endswith(".py"):
                file = word
            else:
                assert word in defined(file), f"{file} has no {word}"


def test_every_equation_and_definition_has_a_row():
    place = README.split("## Map")[1].split("## Where")[0]
    for wanted in ("Eq. (1)", "Eqs. (2), (3)", "Eq. (5)", "Eq. (6)", "Eq. (7)", "Def. 1", "Def. 2", "Def. 3", "Sec. 4.3"):
        assert wanted in place


def test_commands_parse():
    commands = re.findall(r"^python train\.py(.*)$", README, flags=re.M)
    assert " --method maple --npt --tau 0.01 --dataset eurosat" in commands
    for words in commands:
        train.parse(words.split())
    assert "pip install -r requirements.txt && python train.py" in README and "python -m pytest" in README


def test_every_dataset_of_the_paper_stands_in_the_table():
    table = README.split("## Datasets")[1].split("## Speed")[0]
    for name, row in data.ROWS.items():
        line, = [line for line in table.splitlines() if line.startswith(f"| {name} |")]
        assert f"| {row.classes} |" in line and f"`{row.template}`" in line
        assert ("fetched" in line) == bool(row.fetch)


def test_requirements_are_six_ordinary_packages():
    assert (ROOT / "requirements.txt").read_text().split() == ["torch", "torchvision", "ftfy", "regex", "tqdm", "pytest"]


def test_matplotlib_is_imported_only_where_a_figure_is_drawn():
    for file in MODULES:
        for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert not any(name.startswith("matplotlib") for name in names), file


def test_weights_are_never_unpickled():
    for file in [*MODULES, *(f"assets/{p.name}" for p in (ROOT / "assets").glob("*.py"))]:
        text = (ROOT / file).read_text(encoding="utf-8")
        assert len(re.findall(r"torch\.load\(", text)) == len(re.findall(r"torch\.load\([^\n]*weights_only=True", text)), file
        assert "import pickle" not in text
