import os
import sys
import time
from pathlib import Path

import peer_processes
import pytest
from peer_processes import NotRun, find_python, last_words, prepare_venv, run_process, tree_rss_bytes

MANY_BYTES = 120_000_000

needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system tells no process's memory")


def run(code: str, folder: Path, timeout_s: float = 60, *, own: bool = False):
    return run_process([sys.executable, "-c", code], folder, folder / "log.txt", timeout_s, own=own)


def test_the_last_line_is_the_answer(tmp_path):
    done = run("print('calibrating'); print('{\"version\": \"2.6\"}')", tmp_path)
    assert done.answer == {"version": "2.6"}
    assert 0 < done.seconds < 60


@needs_proc
def test_peak_memory_is_that_of_the_process_and_its_children(tmp_path):
    held = f"held = b'x' * {MANY_BYTES}; import time; time.sleep(0.4)"
    small = run("print('{}')", tmp_path).peak_rss_mb
    alone = run(f"{held}; print('{{}}')", tmp_path).peak_rss_mb
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {held!r}]); print('{{}}')"
    with_child = run(child, tmp_path).peak_rss_mb
    assert alone > MANY_BYTES / 1e6 > small
    assert with_child > alone  # both interpreters count


def test_processor_time_is_that_of_this_process(tmp_path):
    busy = run("import time\nwhile time.process_time() < 0.5: pass\nprint('{}')", tmp_path).cpu_seconds
    idle = run("import time; time.sleep(0.5); print('{}')", tmp_path).cpu_seconds
    assert busy >= 0.5 > idle


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise RuntimeError('no such operator')", "exit code 1: RuntimeError: no such operator"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "signal 9: it said nothing"),
        ("print('done')", "no answer: done"),
    ],
    ids=["fails", "killed", "says something else"],
)
def test_why_a_process_gave_nothing(tmp_path, code, reason):
    with pytest.raises(NotRun) as caught:
        run(code, tmp_path)
    assert str(caught.value) == reason


@needs_proc
def test_a_process_that_hangs_is_ended_with_its_children(tmp_path):
    child = "import pathlib, os, time; pathlib.Path('pid').write_text(str(os.getpid())); time.sleep(60)"
    with pytest.raises(NotRun, match="longer than --timeout"):
        run(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])", tmp_path, timeout_s=3)
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and is_running(pid):
        time.sleep(0.05)
    assert not is_running(pid)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_only_qtool_s_own_process_gets_a_path(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    code = "import json, os; print(json.dumps(os.environ.get('PYTHONPATH')))"
    assert run(code, tmp_path).answer is None
    root = run(code, tmp_path, own=True).answer
    assert (Path(root) / "qtoolkit" / "__init__.py").exists()


def test_memory_of_a_tree_is_the_sum(tmp_path):
    pages, tree = {1: 10, 2: 20, 3: 40, 4: 80}, {1: "2 3", 3: "4"}
    for pid, resident in pages.items():
        task = tmp_path / str(pid) / "task" / str(pid)
        task.mkdir(parents=True)
        (task / "children").write_text(tree.get(pid, ""))
        (tmp_path / str(pid) / "statm").write_text(f"999 {resident} 5")
    assert tree_rss_bytes(1, tmp_path) == 150 * peer_processes.PAGE_BYTES
    assert tree_rss_bytes(3, tmp_path) == 120 * peer_processes.PAGE_BYTES
    assert tree_rss_bytes(9, tmp_path) == 0


def test_last_words_leave_out_what_pip_adds():
    assert last_words("ERROR: no match\n\n[notice] a new release\nWARNING: old\n") == "ERROR: no match"
    assert last_words(" \n") == "it said nothing"
    assert last_words("Reading\nqtool: error: nobody is there\n  found: 3 photos\n") == "qtool: error: nobody is there"


def fake_python(folder: Path, body: str) -> str:
    path = folder / "fake-python"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


MAKE_VENV = """mkdir -p "$3/bin"
printf '#!/bin/sh\\necho "$@" > "$0.arguments"\\n%s\\n' '{pip}' > "$3/bin/python"
chmod +x "$3/bin/python"
"""


def test_an_environment_is_built_once(tmp_path):
    requirements, log = tmp_path / "tool.txt", tmp_path / "log.txt"
    requirements.write_text("tool==1\n")
    python = fake_python(tmp_path, MAKE_VENV.replace("{pip}", "exit 0"))
    made = prepare_venv(tmp_path / "venv", requirements, python, log)
    assert made == tmp_path / "venv" / "bin" / "python"
    assert str(requirements) in Path(f"{made}.arguments").read_text()
    Path(f"{made}.arguments").unlink()
    assert prepare_venv(tmp_path / "venv", requirements, "/no/such/python", log) == made
    assert not Path(f"{made}.arguments").exists()


def test_an_environment_that_cannot_be_built_leaves_nothing(tmp_path):
    requirements, log = tmp_path / "tool.txt", tmp_path / "log.txt"
    requirements.write_text("tool==1\n")
    python = fake_python(tmp_path, MAKE_VENV.replace("{pip}", "echo no matching distribution; exit 1"))
    with pytest.raises(NotRun, match="cannot be built: no matching distribution"):
        prepare_venv(tmp_path / "venv", requirements, python, log)
    assert not (tmp_path / "venv").exists()


def test_an_interpreter_that_is_not_there_falls_back_to_this_one():
    assert find_python("no-such-python") == sys.executable
    assert os.access(find_python(None), os.X_OK)
