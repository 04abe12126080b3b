"""What the documents say exists: links, make targets, commands and their options."""

import re
import shlex
from pathlib import Path

import click
import pytest

from qtoolkit.artifacts.scorecard import Scorecard
from qtoolkit.artifacts.table_recipe import TABLE_KIND, read_table_recipe
from qtoolkit.cli.main import cli
from qtoolkit.recipe import parse_yaml, read_recipe
from qtoolkit.training.recipe import read_train_recipe

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "benchmarks/README.md",
]


def _commands() -> list[str]:
    found = []
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        found += re.findall(r"^(?:\$ )?(qtool [^\n#]+)", text, flags=re.MULTILINE)
        found += re.findall(r"`(qtool [^`]+)`", text)
    return sorted(set(found))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    for link in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
        if "://" not in link:
            assert (document.parent / link).exists(), link


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    for document in DOCUMENTS:
        for target in re.findall(r"(?:^|`)make ([a-z]+)", document.read_text(encoding="utf-8"), flags=re.MULTILINE):
            assert target in targets, target


@pytest.mark.parametrize("command", _commands())
def test_commands_and_options_exist(command):
    words = [word.strip("[]") for word in shlex.split(command.replace("…", "")) if word.strip("[]")][1:]
    group: click.Command = cli
    while words and isinstance(group, click.Group):
        if words[0].startswith("-"):
            break
        found = group.get_command(click.Context(group), words[0])
        assert found is not None, f"no command {words[0]}"
        group, words = found, words[1:]
    options = {option for parameter in group.params for option in (*parameter.opts, *parameter.secondary_opts)} | {
        "--help"
    }
    for word in words:
        if word.startswith("--"):
            assert word.split("=")[0] in options, word


def test_ci_runs_what_the_readme_says():
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert "make test" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert "make test" in script and "make check" in script


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_recipes_can_be_read(path):
    kind = parse_yaml(path.read_text(encoding="utf-8")).get("kind")
    if kind == "train":
        read_train_recipe(path)
        return
    if kind == TABLE_KIND:
        assert read_table_recipe(path).out == Path("runs") / path.stem
        return
    recipe = read_recipe(path)
    assert recipe.model.parent == recipe.data.parent == ROOT / "recipes"


@pytest.mark.parametrize("path", sorted((ROOT / "reports/baselines").glob("*.json")), ids=lambda path: path.name)
def test_baselines_are_scorecards_whose_every_latency_has_conditions(path):
    scorecard = Scorecard.read(path)
    latencies = [row.latency for row in scorecard.rows if row.latency]
    assert all(each.measured and each.device and each.version and each.conditions["count"] for each in latencies)
