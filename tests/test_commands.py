"""The command line before a real service with made-up mirrors and VMs; and without one.

Most commands are run in this process; each way in and out of a process of its own (exit code, what is printed until it
ends, another user, the shell) is shown with real ones.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from hotpair.actors.said import MirrorSays
from hotpair.commands import main
from hotpair.event_line import event_line
from hotpair.shown import Colour, colour, exit_code
from hotpair.terminal import bytes_text, modules_table
from tests.api_server import ApiServer, Begin, prim, second, stopped

COMMAND = [sys.executable, "-P", "-c", "from hotpair.command_line import main; raise SystemExit(main())"]
END_S = 30.0


def run(*words: str, home: Path | str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """In this process."""
    given = [*words, *(("--home", str(home)) if home is not None else ())]
    out, err = io.StringIO(), io.StringIO()
    shell = mock.patch.dict(os.environ, {"COLUMNS": "200"} | environment)
    with shell, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(given)
    return subprocess.CompletedProcess(given, code, out.getvalue(), err.getvalue())


def process(*words: str, home: Path | str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """In one of its own, through the entry point."""
    given = [*words, *(("--home", str(home)) if home is not None else ())]
    return subprocess.run(
        [*COMMAND, *given], capture_output=True, text=True, timeout=END_S, cwd="/", check=False,
        env=os.environ | {"COLUMNS": "200"} | environment,
    )  # fmt: skip


def one_line(done: subprocess.CompletedProcess[str], code: int) -> str:
    """What a command that failed has said."""
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("hotpair: ")
    return done.stderr


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """Only looked at."""
    waits = Begin(None, True)
    made = ApiServer(tmp_path_factory.mktemp("home"), {"web": prim(), "db": stopped(), "copy": second(), "new": waits})
    yield made
    made.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    made = ApiServer(tmp_path, {"web": prim(), "db": stopped()})
    yield made
    made.close()


def home_of(server: ApiServer) -> str:
    return server.home.configuration


# ---- what is seen


def test_state_shows_both_servers(shown: ApiServer) -> None:
    done = process("state", home=home_of(shown))
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line.strip()}
    assert rows["module"][1:4] == ["alpha", "(here)", "beta"]
    assert rows["web"][1:4] == ["PRIM", "SECOND", "on"]
    assert rows["db"][1:3] == ["STOP", "unknown"]


@pytest.mark.parametrize(("module", "code"), [("db", 0), ("new", 1), ("web", 3), ("copy", 4)])
def test_the_exit_code_of_state_is_the_modules(shown: ApiServer, module: str, code: int) -> None:
    done = process("state", module, "--json", home=home_of(shown))
    assert done.returncode == code, done.stderr
    assert exit_code(json.loads(done.stdout)["state"]) == code


def test_alone_has_its_exit_code_and_what_cannot_be_said_another() -> None:
    assert [exit_code(state) for state in ("STOP", "WAIT", "ALONE", "PRIM", "SECOND")] == [0, 1, 2, 3, 4]
    assert exit_code(None) == exit_code("") == 5


def test_colours_never_claim_too_much() -> None:
    assert colour("PRIM", ready=True) is Colour.GREEN
    assert colour("PRIM", ready=False) is Colour.MAGENTA
    assert colour("SECOND", ready=False) is Colour.MAGENTA
    assert colour("PRIM", ready=True, plan="swap") is Colour.MAGENTA
    assert colour("ALONE", ready=True, vm="stopping") is Colour.MAGENTA
    for state in ("STOP", "WAIT"):
        assert colour(state, ready=True) is Colour.RED
    assert colour("", ready=False) is colour(None, ready=True) is Colour.NONE


def test_the_table_has_the_colours(shown: ApiServer) -> None:
    table = modules_table(shown.call(shown.api.served.modules))
    styles = [[getattr(cell, "style", "") for cell in column.cells] for column in table.columns[1:3]]
    assert styles[0] == ["bold green", "bold red", "bold red", "bold green"]  # copy, db, new, web
    assert styles[1] == ["bold green", "dim", "dim", "bold green"]


def test_show_events_and_log(server: ApiServer) -> None:
    home = home_of(server)
    server.group("web").details = {"vm": {"state": "on"}, "replication": {"sent_bytes": 2048}}
    rows = [
        line.partition(" ")[::2] for line in map(str.strip, run("module", "show", "web", home=home).stdout.split("\n"))
    ]
    said = {name: value.strip() for name, value in rows}
    assert (said["vm"], said["vm.state"], said["mirror.sent_bytes"], said["mirror_port"]) == (
        "on",
        "on",
        "2.0 KiB",
        "5600",
    )
    assert json.loads(run("module", "show", "web", "--json", home=home).stdout)["mirror_port"] == 5600
    events = run("events", home=home).stdout
    assert "STOP -> PRIM" in events
    assert all(
        json.loads(line)["module"] == "web"
        for line in run("events", "web", "--json", home=home).stdout.split("\n")[:-1]
    )
    Path(server.home.application_log("db")).write_text("one\ntwo\n")
    assert run("log", "db", "-n", "1", home=home).stdout == "two\n"


def test_events_and_bytes_are_readable() -> None:
    entry = {"at": 0.0, "module": "web", "kind": "command", "command": "swap", "accepted": False, "text": "Not green."}
    assert event_line(entry).endswith(" web: command swap: refused: Not green.")
    assert [bytes_text(count) for count in (0, 1023, 1536, 5 << 40)] == ["0 bytes", "1023 bytes", "1.5 KiB", "5.0 TiB"]


# ---- what is done


def test_start_wait_and_stop(server: ApiServer) -> None:
    home = home_of(server)
    assert run("start", "db", home=home).returncode == 0
    assert run("wait", "db", "ALONE", "--green", "--timeout", "10", home=home).returncode == 0
    assert run("state", "db", home=home).returncode == 2
    assert run("restart", "db", home=home).returncode == 0
    assert run("wait", "db", "alone", "--green", "--timeout", "10", home=home).returncode == 0
    assert run("stopstart", "db", home=home).returncode == 0
    assert run("wait", "db", "ALONE", "--green", "--timeout", "10", home=home).returncode == 0
    assert run("stop", "db", home=home).returncode == 0
    assert run("wait", "db", "STOP", "--timeout", "10", home=home).returncode == 0
    assert "db is still STOP" in one_line(run("wait", "db", "PRIM", "--timeout", "0", home=home), 1)
    assert [word for word in server.group("db").said if word.startswith("start vm")] == ["start vm"] * 3


def test_refused_commands_say_why(server: ApiServer) -> None:
    home = home_of(server)
    refused = one_line(run("swap", "db", home=home), 1)
    assert one_line(process("swap", "db", home=home), 1) == refused
    assert refused == "hotpair: A swap needs PRIM here and SECOND at the peer, both green.\n"
    assert "runs here already" in one_line(run("prim", "web", "--force", home=home), 1)
    assert "role in the pair" in one_line(run("second", "web", "--full", home=home), 1)
    assert run("swap", "web", home=home).returncode == 0


def test_maintenance(server: ApiServer) -> None:
    home = home_of(server)
    for word, on in (("on", True), ("off", False)):
        assert run("maintenance", word, "web", home=home).returncode == 0
        assert server.call(lambda: server.supervisor.standing("web")).maintenance is on


def verified(server: ApiServer, **said: object) -> subprocess.CompletedProcess[str]:
    empty = {
        "running": False,
        "bytes_done": 7,
        "bytes_total": 7,
        "difference_count": 0,
        "differences": [],
        "repaired": 0,
    }
    server.group("web").details = {"replication": {"verify": {**empty, **said}}}
    return run("verify", "web", home=home_of(server))


def test_verify_says_what_differs(server: ApiServer) -> None:
    equal = verified(server, result="no difference")
    assert (equal.returncode, equal.stdout) == (0, "7 bytes compared: no difference\n")
    difference = {"path": "disk", "what": "content", "offset": 4096, "length": 512, "repaired": False}
    found = verified(server, result="differences found", difference_count=1, differences=[difference])
    assert found.returncode == 1
    assert "disk: content at 4096, 512 bytes\n" in found.stdout
    repaired = verified(server, result="differences found", difference_count=1, differences=[difference], repaired=1)
    assert repaired.returncode == 0
    assert server.mirrors.asked[0] == ("web", "verify_start", {"repair": False})
    assert run("verify", "web", "--repair", "--begin", home=home_of(server)).returncode == 0
    assert server.mirrors.asked[-1] == ("web", "verify_start", {"repair": True})
    assert "for the server that runs it" in one_line(run("verify", "db", home=home_of(server)), 1)


def test_a_stuck_mirror_is_shown_and_tried_again(server: ApiServer) -> None:
    server.call(lambda: server.group("web").hear(MirrorSays("No space left on device")))
    done = run("state", "web", home=home_of(server))
    assert done.returncode == 3 and "Mirror: No space left on device." in done.stdout
    assert "No space left on device" in run("module", "show", "web", home=home_of(server)).stdout
    done = run("retry", "web", home=home_of(server))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert server.mirrors.asked == [("web", "retry", {})]
    assert "retry is for the server that runs it" in one_line(run("retry", "db", home=home_of(server)), 1)
    server.mirrors.refuses = "no answer to retry"
    assert "no answer to retry" in one_line(run("retry", "web", home=home_of(server)), 1)


@pytest.mark.parametrize("words", [("events", "db"), ("log", "db")])
def test_what_is_followed_goes_on_until_the_service_ends(server: ApiServer, words: tuple[str, ...]) -> None:
    Path(server.home.application_log("db")).write_text("the driver said something\n")
    command = [*COMMAND, *words, "--follow", "-n", "1", "--home", home_of(server)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/") as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            if words[0] == "log":
                assert process.stdout.readline() == "the driver said something\n"
            else:
                assert "Stopped." in process.stdout.readline()  # of the past
                assert run("start", "db", home=home_of(server)).returncode == 0
                assert "STOP -> ALONE: command start" in process.stdout.readline()
            server.stop_serving()
            assert process.wait(END_S) == 0, process.stderr.read()
        finally:
            process.kill()


@pytest.mark.parametrize(("words", "code"), [(("events",), 0), (("state", "db", "--json"), 5)])
def test_nothing_is_said_when_nobody_reads(shown: ApiServer, words: tuple[str, ...], code: int) -> None:
    """And the exit code is no state's."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [*COMMAND, *words, "--home", home_of(shown)]
    with open(writing, "wb") as out:
        done = subprocess.run(
            command, stdout=out, stderr=subprocess.PIPE, timeout=END_S, cwd="/", check=False,
            env=os.environ | {"PYTHONUNBUFFERED": ""},
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (code, b"")


# ---- what makes no sense


def test_unknown_modules_and_bad_values_are_one_line(shown: ApiServer) -> None:
    home = home_of(shown)
    assert "there is no module 'wbe'" in one_line(run("start", "wbe", home=home), 2)
    assert "there is no module 'a/../b'" in one_line(run("start", "a/../b", home=home), 2)
    assert "'GREEN' is no state" in one_line(run("wait", "web", "GREEN", home=home), 2)
    for words in (
        ("start",),
        ("start", "web", "--force"),
        ("maintenance", "web"),
        ("explode",),
        ("log", "web", "-n", "x"),
    ):
        one_line(run(*words, home=home), 2)
    one_line(run("state", "wbe", home=home), 5)  # 2 would be ALONE
    one_line(process("state", "--jsno", home=home), 5)


def test_without_a_service_each_command_says_so(tmp_path: Path) -> None:
    for words in (("start", "web"), ("module", "show", "web"), ("events",), ("events", "-f"), ("log", "web", "-f")):
        said = one_line(run(*words, home=tmp_path), 2)
        assert said == "hotpair: hotpair run is not running here: systemctl start hotpair\n"
    assert "systemctl start" in one_line(run("state", "web", home=tmp_path), 5)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_told_that_it_needs_root(shown: ApiServer) -> None:
    script = (
        "import os, sys; from hotpair.command_line import main; given = sys.argv; "
        "sys.argv = ['', 'start', 'web', '--home', '/nowhere']; main(); sys.stderr.flush(); "  # imports all it needs
        "sys.argv = given; os.setuid(65534); os.dup2(1, 2); "
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script + "raise SystemExit(main())", "start", "web", "--home", home_of(shown)],
        capture_output=True, text=True, timeout=END_S, cwd="/", check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "hotpair: this needs root, or a token: sudo hotpair\n"), done.stderr


def test_help_lists_every_command() -> None:
    done = process("--help")
    assert done.returncode == 0
    for word in (
        "state",
        "swap",
        "firewall",
        "support",
        "import-safekit",
        "run",
        "mirror",
        "witness",
        "simulate",
        "token",
    ):
        assert word in done.stdout.split(), word
    assert process("--version").stdout.startswith("hotpair ")
    assert "usage: hotpair simulate" in process("simulate", "--help").stdout


def test_the_documentation_names_every_command() -> None:
    text = (Path(__file__).parent.parent / "docs" / "commands.md").read_text()
    shown = run("--help", COLUMNS="100").stdout
    listed = shown.partition("  COMMAND\n")[2].splitlines()
    words = [line.split()[0] for line in listed if line.startswith("    ") and not line.startswith("     ")]
    assert len(words) > 20
    assert [word for word in words if f"`hotpair {word}" not in text] == []


def test_without_a_command_there_is_help() -> None:
    for words in ((), ("module",)):
        done = run(*words)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == run(*words, "--help").stdout


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("hotpair sta", {"state", "start"}),
        ("hotpair retr", {"retry"}),
        ("hotpair module ", {"show", "add", "edit", "remove"}),
        ("hotpair module show web --j", {"--json"}),
        ("hotpair init --witness-", {"--witness-key", "--witness-authority", "--witness-tls"}),
        ("hotpair token add x --role ", {"monitor", "control", "admin"}),
        ("hotpair firewall --home /et", {"/etc"}),
    ],
)
def test_a_shell_completes(typed: str, offered: set[str]) -> None:
    words = typed.split(" ")
    script = f"""{run("completion", "bash").stdout}
        COMP_WORDS=({" ".join(words[:-1])} '{words[-1]}') COMP_CWORD={len(words) - 1}
        $(complete -p hotpair | sed 's/.*-F \\([^ ]*\\).*/\\1/') && printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=END_S, check=False)
    assert (set(done.stdout.split()), done.stderr) == (offered, "")


def test_zsh_is_given_its_own_completion() -> None:
    assert run("completion", "zsh").stdout.startswith("#compdef hotpair\n")


def test_tokens_are_made_listed_and_removed(tmp_path: Path) -> None:
    token = run("token", "add", "prometheus", "--role", "monitor", home=tmp_path).stdout.strip()
    assert len(token) >= 43
    path = tmp_path / "tokens.toml"
    assert token not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert run("token", "list", home=tmp_path).stdout == "prometheus monitor\n"
    assert "already" in one_line(run("token", "add", "prometheus", home=tmp_path), 2)
    assert "invalid choice: 'root'" in one_line(run("token", "add", "x", "--role", "root", home=tmp_path), 2)
    assert run("token", "remove", "prometheus", home=tmp_path).returncode == 0
    assert "there is no token" in one_line(run("token", "remove", "prometheus", home=tmp_path), 2)
