"""The README and the pages beside it say what is there: their map, their commands, their files."""
import ast
import functools
import re
from pathlib import Path

import pytest
import torch

import data
import evaluate
import train
from assets import figures

ROOT = Path(train.__file__).parent
PAGES = ["README.md", *(f"assets/{name}.md" for name in (
    "datasets", "photos", "reproducing", "print", "changing", "walk", "exercises", "install"))]
TEXT = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
README = TEXT["README.md"]
PARSERS = {"train.py": train.parse, "assets/history.py": train.parse, "evaluate.py": evaluate.parse,
           "data.py": data.parse, "assets/figures.py": figures.parse}


@functools.cache
def defined(file):
    """Names of all functions and classes of a file, methods too."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree)
            if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


def words_of(cell):
    return re.findall(r"`([^`]+)`", cell)


def section(title):
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def commands(page):
    """The commands in a page's blocks, each on one line, and `python ...` in its text."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT[page], flags=re.M | re.S)
    lines = [" ".join(line.split()) for language, block in blocks if not language
             for line in block.replace("\\\n", " ").splitlines()]
    shown = [part for line in lines for part in line.split(" && ")]
    inline = [" ".join(code.split()) for code in re.findall(r"`(python [^`]+)`", TEXT[page])]
    return [c for c in shown + inline if c.startswith(("python ", "torchrun "))]


def arguments(script, page):
    """The words behind a script's name in each of a page's commands; "..." is left out."""
    found = [re.fullmatch(rf"(?:python|torchrun --nproc-per-node \w+) {script}(.*)", command)
             for command in commands(page)]
    return [[word for word in match[1].split() if word != "..."] for match in found if match]


# the map ------------------------------------------------------------------------------------------

def test_map_names_what_exists_and_has_every_equation():
    rows = [line for line in section("Map").splitlines() if line.startswith("| ")][2:]
    places = " ".join(row.split(" | ")[0] for row in rows)
    for wanted in ("Eq. (1)", "Eq. (2)", "Eq. (3)", "Eq. (5)", "Eq. (6)", "Eq. (7)", "Def. 1",
                   "Def. 2", "Def. 3", "Sec. 3.2", "Sec. 4.3", "Sec. 5", "Table 1", "Table 3"):
        assert wanted in places, wanted
    for row in rows:
        _, code, test = row.strip("| ").split(" | ")
        module, *names = words_of(code)
        assert set(names) <= defined(module), row
        file, tests = f"test_{Path(module).name}", words_of(test)
        if tests[0].endswith(".py"):
            file, *tests = tests
        assert tests and set(tests) <= defined(f"tests/{file}"), row
        assert all(name.startswith("test_") for name in tests)


def test_the_objective_names_what_exists():
    rows = re.findall(r"^\S.*Eq\. \((\d)\)  (\w+\.py) (\w+)$", README, flags=re.M)
    assert [number for number, _, _ in rows] == ["1", "5", "6", "7"]
    assert all(name in defined(file) for _, file, name in rows)


def test_changing_it_names_what_exists():
    """Every file, and every name in it: a function's, a class's or a table's, or an argument's."""
    named = words_of(TEXT["assets/changing.md"])
    named_files = [ROOT / word for word in named if word.endswith((".py", ".md"))]
    assert len(named) >= 40 and all(file.is_file() for file in named_files)
    files = [file for file in {*named_files, ROOT / "data.py"} if file.suffix == ".py"]
    code = "".join(file.read_text(encoding="utf-8") for file in files)
    known = set().union(*(defined(file.relative_to(ROOT)) for file in files))
    known |= {*re.findall(r"^ *(\w+)\b.* = ", code, flags=re.M), *re.findall(r"(\w+)=", code)}
    for word in named:
        name = word.split(".")[-1].split(" = ")[0]
        assert word.endswith((".py", ".md", ".csv", ".json")) or name in known, word


# commands and code --------------------------------------------------------------------------------

def test_the_two_commands_and_the_one_that_the_bare_one_stands_for():
    assert "pip install -r requirements.txt && python train.py\npython -m pytest\n" in README
    assert f"`python train.py {train.BARE}`" in README


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_of_a_script_that_takes_it(page):
    for command in commands(page):
        script = re.search(r"\S+\.py\b", command)
        assert script or command == "python -m pytest", command
        text = (ROOT / script[0]).read_text(encoding="utf-8") if script else ""
        for option in re.findall(r"(?<=\s)--[a-z-]+", command.partition(".py")[2]):
            shared = ("--data-root", "--device", "--precision", "--help")
            if script[0] not in ("train.py", "assets/history.py"):
                assert option in shared or f'"{option}"' in text, command
    for script, parse in PARSERS.items():
        for words in arguments(re.escape(script), page):
            assert "--help" in words or parse(words), words


def test_a_grid_has_as_many_runs_as_the_page_says():
    grids = [len(train.parse(words)) for words in arguments(r"train\.py", "assets/reproducing.md")]
    assert len(grids) >= 6 and {36, 396} <= {*grids}
    assert "396 runs with three seeds" in TEXT["assets/reproducing.md"]


def test_every_tool_is_named_on_some_page():
    for script in (ROOT / "assets").glob("*.py"):
        if not script.name.startswith("make_") and "__main__" in script.read_text("utf-8"):
            assert any(script.name in text for text in TEXT.values()), script.name


def test_the_lines_of_import_run():
    """As they stand, but for the weights: the tiny CLIP's."""
    code, = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    names = {"images": torch.zeros(3, 3, 32, 32), "y": torch.tensor([0, 1, 1])}
    exec(code.replace("ViT-B/16", "tiny"), names)
    assert names["loss"].isfinite() and set(names["terms"]) == {"l_clip", "l_lc", "l_mi"}
    assert names["learner"].show_prompt("River") == "[u_1] [u_2] of a River."


def test_counts_of_learned_numbers_on_vit_b_16():
    """From the sizes of the two towers, written out."""
    w, w_v, d = 512, 768, 512
    maple = 9 * (2 * w + w * w_v + w_v)
    cocoop = 4 * w + d * (d // 16) + d // 16 + d // 16 * w + w
    text = " ".join(README.split())
    assert f"{maple:,} are learned" in text
    assert f"CoOp learns {16 * w:,}, CoCoOp {cocoop:,}" in text


# form, datasets, packages -------------------------------------------------------------------------

@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_lines_fit_into_100_columns(page):
    for link in re.findall(r"\]\((?!https:|#)([^)]+)\)", TEXT[page]):
        assert ((ROOT / page).parent / link).is_file(), link
    for line in TEXT[page].splitlines():
        assert len(line) <= 100 or line.startswith("| "), line
    assert page != "README.md" or len(README.split()) <= 1600


def test_every_dataset_of_the_paper_stands_in_the_table():
    for name, row in data.ROWS.items():
        line, = [line for line in TEXT["assets/datasets.md"].splitlines()
                 if line.startswith(f"| {name} |")]
        assert f"| {row.classes} |" in line and f"`{row.template}`" in line
        assert ("fetched" in line) == bool(row.fetch)
        assert ("split by hand" in line) == bool(row.fetch and row.split)


def test_requirements_are_six_ordinary_packages():
    packages = (ROOT / "requirements.txt").read_text().split()
    assert packages == ["torch", "torchvision", "ftfy", "regex", "tqdm", "pytest"]
