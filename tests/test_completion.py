"""Completion in the shell: what Click offers, and what a real bash makes of it."""

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.shell_completion import BashComplete, CompletionItem

from compressor.commands.main import compress
from compressor_command import main

ROOT = Path(__file__).parent.parent


def offered(typed: str, monkeypatch: pytest.MonkeyPatch) -> list[CompletionItem]:
    """What is offered for the last word of what is typed."""
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split(" ")) - 1))
    complete = BashComplete(compress, {}, "compress", "_COMPRESS_COMPLETE")
    return complete.get_completions(*complete.get_completion_args())


@pytest.mark.parametrize(
    ("typed", "values"),
    [
        ("compress ru", ["run"]),
        ("compress re", ["report", "reproduce"]),
        ("compress run --de", ["--device"]),
        ("compress run --device c", ["cpu", "cuda"]),
        ("compress bench --engine o", ["onnxruntime", "openvino"]),
        ("compress stages prune", ["prune", "prune_blocks"]),
        ("compress completion z", ["zsh"]),
    ],
)
def test_words_are_completed(typed: str, values: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert sorted(item.value for item in offered(typed, monkeypatch)) == values


@pytest.mark.parametrize("typed", ["compress run p", "compress predict m.onnx a b", "compress run p.yaml --out r"])
def test_files_are_left_to_the_shell(typed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [item.type for item in offered(typed, monkeypatch)] == ["file"]


@pytest.mark.parametrize(
    ("shell", "sign"), [("bash", "complete -o"), ("zsh", "compdef"), ("fish", "complete --no-files --command compress")]
)
def test_each_shell_gets_its_script(shell: str, sign: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    out = capsys.readouterr().out
    assert sign in out
    assert "_COMPRESS_COMPLETE" in out
    if found := shutil.which(shell):
        subprocess.run([found, "-n"], input=out, text=True, check=True)


def test_a_real_bash_completes(tmp_path: Path) -> None:
    """Tab, as a user presses it: a command, an option, a file."""
    if shutil.which("bash") is None:
        pytest.skip("there is no bash")
    command = tmp_path / "bin" / "compress"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m compressor_command "$@"\n')
    command.chmod(0o755)
    (tmp_path / "mine.yaml").touch()
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        path = f"{command.parent}:{os.environ['PATH']}"
        os.execvpe(
            "bash", ["bash", "--norc", "--noprofile", "-i"], {"PATH": path, "PYTHONPATH": str(ROOT), "PS1": "$ "}
        )
    os.write(terminal, b'eval "$(compress completion bash)"\n')
    os.write(terminal, b"compress ru\tmi\t--fre\t\x01echo \n")  # ^A: to the start of the line
    seen, until = b"", time.monotonic() + 30
    while b"\ncompress run mine.yaml --fresh" not in seen and time.monotonic() < until:
        if select.select([terminal], [], [], 1)[0]:
            seen += os.read(terminal, 65536)
    os.close(terminal)
    os.waitpid(child, 0)
    assert b"\ncompress run mine.yaml --fresh" in seen
