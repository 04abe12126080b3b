import ast
import re

import pytest
from peer_settings import HERE, TOOLS, chosen, label_of


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_the_script_knows_every_setting(tool):
    tree = ast.parse(tool.script.read_text(encoding="utf-8"))
    call = next(node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "main")
    known = {ast.literal_eval(key) for key in call.args[1].keys}
    assert known == {setting.name for setting in tool.settings}


@pytest.mark.parametrize("tool", [tool for tool in TOOLS if tool.venv], ids=lambda tool: tool.name)
def test_every_requirement_is_pinned_and_comes_from_no_named_place(tool):
    lines = [line for line in tool.requirements.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert lines and all(re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.!]+", line) for line in lines)


def test_every_tool_has_a_default_and_a_best():
    for tool in TOOLS:
        assert {setting.is_default for setting in tool.settings} == {True, False}


def test_rows_are_chosen_in_the_order_of_the_table():
    rows = [label_of(*row) for row in chosen(("ort", "qtool"), default_only=False)]
    qtool = ["qtool-int8", "qtool-mixed", "qtool-openvino-int8", "qtool-openvino-mixed"]
    assert rows == [*qtool, "ort-default", "ort-best", "ort-best-float-last"]
    assert [label_of(*row) for row in chosen(("ort", "qtool"), default_only=True)] == ["qtool-int8", "ort-default"]


def test_the_page_explains_every_setting():
    page = (HERE / "README.md").read_text(encoding="utf-8")
    for tool, setting in chosen(tuple(tool.name for tool in TOOLS), default_only=False):
        assert f"`{label_of(tool, setting)}`" in page
