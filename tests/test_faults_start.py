"""What is wrong before anything runs: options, directories, records, certificates. One line that says what to do."""

import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

from hotpair.replication.__main__ import main
from tests.faults import (
    Load,
    equal_after_stop,
    healthy,
    log_of,
    logged,
    on_mount,
    port_of,
    said,
    status,
    visible,
    write_file,
)
from tests.mirror_pair import MirrorPair, ReservedPort, abort_mounts_below, mounts_below

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
def pair() -> Iterator[MirrorPair]:
    """A pair that has not been started."""
    with MirrorPair() as made:
        yield made


@pytest.fixture(scope="module")
def idle() -> Iterator[MirrorPair]:
    """One that is never started."""
    with MirrorPair() as made:
        yield made


@pytest.fixture
def free_address() -> Iterator[str]:
    """An address on which nobody listens."""
    port = ReservedPort()
    yield f"127.0.0.1:{port.number}"
    port.close()


def start_in_sync(pair: MirrorPair) -> None:
    """Start both; a source with a verdict is ready when it has gone alone as well."""
    pair.start()
    said(pair.source, "in sync")


def run_here(arguments: list[str], said: str, complained: str) -> None:
    """The command, in a process that was made for it."""
    for descriptor, path in ((1, said), (2, complained)):
        with open(path, "wb") as file:
            os.dup2(file.fileno(), descriptor)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    os.chdir("/")
    sys.exit(main(arguments))


def refused_at_once(pair: MirrorPair, arguments: list[str], *words: str) -> None:
    """As `refused`, in a fork of this process: to start another one takes far longer than all that it does then."""
    before = mounts_below(pair.base)
    said, complained = f"{pair.base}/said", f"{pair.base}/complained"
    process = multiprocessing.get_context("fork").Process(target=run_here, args=(arguments, said, complained))
    process.start()
    process.join(10)
    if process.exitcode is None:
        process.kill()
        process.join()
        abort_mounts_below(pair.base)
        raise AssertionError(f"accepted: {arguments}")
    with open(said) as output, open(complained) as errors:
        check_refusal(process.exitcode, output.read(), errors.read(), words)
    assert mounts_below(pair.base) == before


def refused(pair: MirrorPair, arguments: list[str], *words: str) -> None:
    """Run a command that must end with 2 and one line that holds all these words, in a moment."""
    before = mounts_below(pair.base)
    try:
        result = subprocess.run(
            [sys.executable, "-P", "-m", "hotpair.replication", *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            env=pair.environment(),
            cwd="/",
        )
    except subprocess.TimeoutExpired as error:
        abort_mounts_below(pair.base)
        raise AssertionError(f"accepted: {arguments}") from error
    check_refusal(result.returncode, result.stdout, result.stderr, words)
    assert mounts_below(pair.base) == before


def check_refusal(code: int, output: str, errors: str, words: tuple[str, ...]) -> None:
    assert code == 2, f"exit code {code}: {errors}"
    assert output == ""
    lines = errors.splitlines()
    assert len(lines) == 1 and lines[0].startswith("hotpair: "), errors
    for word in words:
        assert word in lines[0], f"{word!r} is not in: {lines[0]}"


def source_arguments(pair: MirrorPair) -> list[str]:
    return ["source", "--dir", pair.source_dir, "--state", pair.source_state, "--peer", f"127.0.0.1:{port_of(pair)}"]


def target_arguments(pair: MirrorPair) -> list[str]:
    return ["target", "--dir", pair.target_dir, "--state", pair.target_state, "--listen", f"127.0.0.1:{port_of(pair)}"]


# ---- options


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["command"]),
        (["both"], ["both", "source", "target"]),
        (["source"], ["--dir", "--state", "--peer"]),
        (["target"], ["--dir", "--state", "--listen"]),
    ],
)
def test_bad_commands(idle: MirrorPair, arguments: list[str], words: list[str]) -> None:
    refused(idle, arguments, *words)


BAD_FOR_BOTH = [
    (["--dir", "/nonexistent/dir"], ["--dir", "/nonexistent/dir", "create"]),
    (["--dir", "/etc/hostname"], ["--dir", "directory"]),
    (["--dir", "/proc"], ["--dir", "/proc"]),
    (["--state", "/proc/nowhere"], ["--state", "/proc/nowhere"]),
    (["--state", "/etc/hostname"], ["--state", "/etc/hostname"]),
    (["--durability", "paper"], ["--durability", "paper", "memory", "disk"]),
    (["--stall-timeout", "soon"], ["--stall-timeout", "soon", "seconds"]),
    (["--stall-timeout", "-1"], ["--stall-timeout", "-1", "seconds"]),
    (["--stall-timeout", "0"], ["--stall-timeout", "0", "seconds"]),
    (["--stall-timeout", "nan"], ["--stall-timeout", "nan", "seconds"]),
    (["--stall-timeout", "inf"], ["--stall-timeout", "inf", "seconds"]),
    (["--stall-timeout"], ["--stall-timeout"]),
    (["--tls-certificate", "/etc/hostname"], ["--tls-certificate", "--tls-key", "--tls-ca"]),
    (["--tls-key", "/etc/hostname"], ["--tls-certificate", "--tls-key", "--tls-ca"]),
    (["--tls-certificate", "/none", "--tls-key", "/none", "--tls-ca", "/none"], ["TLS", "/none"]),
    (["--tls-certificate", "/etc/hostname", "--tls-key", "/etc/hostname", "--tls-ca", "/etc/hostname"], ["TLS"]),
    (["--frobnicate"], ["--frobnicate"]),
    (["surplus"], ["surplus"]),
]
BAD_FOR_SOURCE = [
    (["--peer", "nowhere"], ["nowhere", "HOST:PORT"]),
    (["--peer", "127.0.0.1:0"], ["127.0.0.1:0", "HOST:PORT"]),
    (["--peer", "127.0.0.1:65536"], ["65536", "HOST:PORT"]),
    (["--peer", "127.0.0.1:http"], ["http", "HOST:PORT"]),
    (["--peer", ":5600"], [":5600", "HOST:PORT"]),
    (["--peer", "127.0.0.1:\u0665\u0666"], ["HOST:PORT"]),
    (["--peer", "192.0.2.1:5600"], ["192.0.2.1", "loopback", "--tls", "--no-tls"]),
    (["--alone-after", "never"], ["--alone-after", "never", "seconds"]),
    (["--alone-after", "-1"], ["--alone-after", "-1", "seconds"]),
    (["--alone-after", "nan"], ["--alone-after", "nan", "seconds"]),
    (["--fence-after", "0"], ["--fence-after", "0", "seconds"]),
    (["--fence-after", "3.5", "--alone-after", "2"], ["--fence-after", "3.5", "--alone-after", "--silence-timeout"]),
    (["--silence-timeout", "1"], ["--silence-timeout", "1", "seconds", "1.2"]),
    (["--cache", "write-back"], ["--cache", "write-back", "direct", "page"]),
    (["--extent-size", "3m"], ["--extent-size", "3m", "power of two", "4m"]),
    (["--extent-size", "1k"], ["--extent-size", "1k", "power of two"]),
    (["--extent-size", "2g"], ["--extent-size", "2g", "power of two"]),
    (["--extent-size", "m"], ["--extent-size", "power of two"]),
    (["--extent-size", ""], ["--extent-size", "power of two"]),
    (["--extent-size", "\u00b2m"], ["--extent-size", "power of two"]),
    (["--extent-size", "9" * 5000], ["--extent-size", "power of two"]),
    (["--hot-extents", "63"], ["--hot-extents", "63", "64"]),
    (["--hot-extents", "many"], ["--hot-extents", "many", "64"]),
    (["--hot-extents", "\u00b2"], ["--hot-extents", "64"]),
    (["--hot-extents", "99999999999"], ["--hot-extents", "64"]),
    (["--overwrite"], ["--overwrite"]),
    (["--listen", "127.0.0.1:1"], ["--listen"]),
]
BAD_FOR_TARGET = [
    (["--listen", "nowhere"], ["nowhere", "HOST:PORT"]),
    (["--listen", "192.0.2.1:5600"], ["192.0.2.1", "loopback", "--tls", "--no-tls"]),
    (["--listen", "192.0.2.1:5600", "--no-tls"], ["192.0.2.1:5600", "listen"]),
    (["--listen", "[::1:5600"], ["[::1:5600", "HOST:PORT"]),
    (["--listen", "does.not.exist.invalid:5600", "--no-tls"], ["does.not.exist.invalid", "listen"]),
    (["--alone-after", "1"], ["--alone-after"]),
    (["--extent-size", "4m"], ["--extent-size"]),
]


def shown(case: tuple[list[str], list[str]]) -> str:
    return " ".join(case[0])[:40].encode("ascii", "replace").decode()


@pytest.mark.parametrize("case", BAD_FOR_BOTH + BAD_FOR_SOURCE, ids=shown)
def test_bad_options_of_the_source(idle: MirrorPair, case: tuple[list[str], list[str]]) -> None:
    refused_at_once(idle, source_arguments(idle) + case[0], *case[1])


@pytest.mark.parametrize("case", BAD_FOR_BOTH + BAD_FOR_TARGET, ids=shown)
def test_bad_options_of_the_target(idle: MirrorPair, case: tuple[list[str], list[str]]) -> None:
    refused_at_once(idle, target_arguments(idle) + case[0], *case[1])


def test_port_in_use(pair: MirrorPair) -> None:
    pair.start_target()
    arguments = ["target", "--dir", pair.source_dir, "--state", pair.source_state]
    refused(pair, [*arguments, "--listen", f"127.0.0.1:{port_of(pair)}"], "cannot listen", "another")


# ---- directories and records


def test_two_processes_on_one_state_directory(pair: MirrorPair, free_address: str) -> None:
    pair.start()
    load = Load(pair)
    load.goes_on()
    refused(pair, target_arguments(pair), pair.target_state, "another mirror process")
    arguments = ["target", "--dir", pair.target_dir, "--state", pair.source_state, "--listen", free_address]
    refused(pair, arguments, pair.source_state, "another mirror process")
    load.goes_on()
    load.stop()
    assert not pair.troubles()
    assert status(pair.source_state)["in_sync"], "the control socket is gone"
    load.check()


@pytest.mark.parametrize("side", ["source", "target"])
def test_one_directory_in_two_mirrors(pair: MirrorPair, side: str, free_address: str) -> None:
    """Another state directory does not help: the data directory is in use."""
    pair.start()
    used = pair.source_dir if side == "source" else pair.target_dir
    other = f"{pair.base}/other-state"
    refused(pair, ["target", "--dir", used, "--state", other, "--listen", free_address], "--dir", used)
    assert not pair.troubles()
    equal_after_stop(pair)


@pytest.mark.parametrize("side", ["source", "target"])
def test_wrong_directory(pair: MirrorPair, side: str) -> None:
    """A disk that is not mounted: an empty directory in its place. It is refused, and not touched."""
    pair.start()
    write_file(pair, "file")
    pair.stop()
    directory = pair.source_dir if side == "source" else pair.target_dir
    os.rename(directory, f"{directory}-away")
    os.mkdir(directory)
    arguments = source_arguments(pair) if side == "source" else target_arguments(pair)
    refused(pair, arguments, directory, "identity", "mounted")
    assert os.listdir(directory) == [] and os.listxattr(directory) == [], "the wrong directory was changed"
    os.rmdir(directory)
    os.rename(f"{directory}-away", directory)
    pair.start()
    equal_after_stop(pair)


def test_swapped_directories(pair: MirrorPair) -> None:
    """The two disks are exchanged after the source went on alone: refused, or right, but never the old data."""
    pair.source_arguments += ["--alone-after", "1"]
    start_in_sync(pair)
    write_file(pair, "file", "b'old' * 10_000")
    pair.kill_target()
    said(pair.source, "state ALONE")
    write_file(pair, "file", "b'new' * 10_000")
    pair.stop_source()
    os.rename(pair.source_dir, f"{pair.base}/away")
    os.rename(pair.target_dir, pair.source_dir)
    os.rename(f"{pair.base}/away", pair.target_dir)
    try:
        pair.start()
    except RuntimeError as error:
        assert "directory" in str(error) and "Traceback" not in str(error)
        return
    assert on_mount(pair, "print(open('file').read())").strip() == "new" * 10_000, "what was acknowledged is gone"


@pytest.mark.parametrize("side", ["source", "target"])
def test_damaged_record(pair: MirrorPair, side: str) -> None:
    """Shown to the operator, never taken for an empty record; the data is not touched."""
    pair.start()
    write_file(pair, "file")
    pair.stop()
    path = f"{pair.source_state if side == 'source' else pair.target_state}/record"
    with open(path, "rb") as file:
        data = file.read()
    flipped = data[:20] + bytes([data[20] ^ 1]) + data[21:]
    arguments = source_arguments(pair) if side == "source" else target_arguments(pair)
    for damaged in (b"", data[:-3], flipped, os.urandom(200), data + bytes(1 << 24)):
        with open(path, "wb") as file:
            file.write(damaged)
        refused_at_once(pair, arguments, path)
    os.unlink(path)
    os.mkdir(path)
    refused_at_once(pair, arguments, path)
    os.rmdir(path)
    assert pair.compare() == []
    with open(path, "wb") as file:
        file.write(data)
    pair.start()
    equal_after_stop(pair)


@pytest.mark.parametrize("damage", ["missing", "garbage", "empty", "cut"])
def test_damaged_dirty_log(pair: MirrorPair, damage: str) -> None:
    """A full comparison, said in the log, finds what the log would have told."""
    pair.source_arguments += ["--alone-after", "1"]
    start_in_sync(pair)
    for name in ("changed", "same"):
        write_file(pair, name, "os.urandom(3_000_000)")
    pair.kill_target()
    said(pair.source, "state ALONE")
    write_file(pair, "changed", "b'x'", 1_234_567)
    pair.stop_source()
    path = f"{pair.source_state}/dirty-log"
    with open(path, "rb") as file:
        data = file.read()
    os.unlink(path)
    if damage != "missing":
        with open(path, "wb") as file:
            file.write({"garbage": os.urandom(50_000), "empty": b"", "cut": data[:6000]}[damage])
    pair.source_arguments[:] = []
    pair.start()
    logged(pair.source, "dirty log unusable", "compared")
    healthy(pair)
    equal_after_stop(pair)


def test_target_directory_not_empty(pair: MirrorPair) -> None:
    """Somebody's files are replaced only when that is said."""
    with open(f"{pair.target_dir}/precious", "w") as file:
        file.write("mine")
    pair.source_arguments += ["--alone-after", "0"]
    pair.start()
    said(pair.source, "is not empty")
    said(pair.source, "--overwrite")
    with open(f"{pair.target_dir}/precious") as file:
        assert file.read() == "mine"
    assert visible(pair.target_dir) == ["precious"]
    pair.stop_target()
    pair.target_arguments += ["--overwrite"]
    pair.start_target()
    said(pair.source, "in sync")
    assert not os.path.exists(f"{pair.target_dir}/precious")
    equal_after_stop(pair)


def test_source_of_another_module(pair: MirrorPair) -> None:
    """Refused with the reason, and the pair that works together does not notice."""
    pair.start()
    load = Load(pair)
    load.goes_on()
    with MirrorPair(source_arguments=["--alone-after", "0", "--peer", f"127.0.0.1:{port_of(pair)}"]) as other:
        other.start_source()
        said(other.source, "link lost: the peer refused")
        assert "another module" in status(other.source_state)["reason"]
        load.goes_on()
        other.stop_source()
    load.stop()
    assert not pair.troubles()
    load.check()


def test_different_durability(pair: MirrorPair) -> None:
    pair.source_arguments += ["--alone-after", "0", "--durability", "disk"]
    pair.start()
    said(pair.source, "--durability")
    assert visible(pair.target_dir) == []
    pair.stop()


# ---- TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two authorities, each with a certificate for a server: ``ca.pem one.pem one.key``, and the same in ``other/``."""
    top = str(tmp_path_factory.mktemp("certificates"))
    os.mkdir(f"{top}/other")
    for where in (top, f"{top}/other"):
        new = ["openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
        made = [
            [*new, "-x509", "-subj", f"/CN=authority-{os.path.basename(where)}", "-keyout", "ca.key", "-out", "ca.pem"],
            [*new, "-subj", "/CN=server", "-keyout", "one.key", "-out", "one.request"],
            ["openssl", "x509", "-req", "-in", "one.request", "-CA", "ca.pem", "-CAkey", "ca.key"]
            + ["-CAcreateserial", "-days", "2", "-out", "one.pem"],
        ]
        for command in made:
            subprocess.run(command, cwd=where, check=True, capture_output=True)
    return top


def tls(top: str, key: str = "one.key") -> list[str]:
    return ["--tls-certificate", f"{top}/one.pem", "--tls-key", f"{top}/{key}", "--tls-ca", f"{top}/ca.pem"]


def test_tls_works(certificates: str) -> None:
    with MirrorPair(source_arguments=tls(certificates), target_arguments=tls(certificates)) as pair:
        pair.start()
        load = Load(pair)
        load.goes_on(500)
        load.stop()
        healthy(pair)
        load.check()


def test_key_of_another_certificate(pair: MirrorPair, certificates: str) -> None:
    shutil.copy(f"{certificates}/other/one.key", f"{certificates}/wrong.key")
    for arguments in (source_arguments(pair), target_arguments(pair)):
        refused_at_once(pair, arguments + tls(certificates, "wrong.key"), "TLS", "one.pem", "wrong.key")


@pytest.mark.parametrize("of_source", ["other", "foreign", "none", "own"])
def test_tls_does_not_fit(certificates: str, of_source: str) -> None:
    """No connection, a reason on both sides that says TLS, and the source carries out its verdict."""
    other = f"{certificates}/other"
    given = {
        "own": tls(certificates),  # against a target without TLS
        "other": tls(other),  # which does not trust the target either
        "foreign": [*tls(other), "--tls-ca", f"{certificates}/ca.pem"],  # which the target does not trust
        "none": [],
    }
    of_target = [] if of_source == "own" else tls(certificates)
    arguments = [*given[of_source], "--alone-after", "1"]
    with MirrorPair(source_arguments=arguments, target_arguments=of_target) as pair:
        pair.start()  # ready because it went alone
        logged(pair.source, "TLS")
        logged(pair.target, "refused a connection", "TLS")
        assert pair.source is not None and pair.target is not None
        assert "in sync" not in pair.source.said and "state ALONE" in pair.source.said
        assert visible(pair.target_dir) == []
        assert status(pair.source_state)["reason"]
        for process in (pair.source, pair.target):
            assert log_of(process).count("\n") < 100, "the log fills with repetitions"
        healthy(pair)
        pair.stop()


def test_directory_that_another_mirror_has_mounted(pair: MirrorPair) -> None:
    """Neither a source nor a target with another state takes a healthy mirror's mount away."""
    pair.start()
    write_file(pair, "file")
    for role, address in (("source", "--peer"), ("target", "--listen")):
        state = f"{pair.base}/another-{role}"
        os.mkdir(state)
        arguments = [role, "--dir", pair.source_dir, "--state", state, address, "127.0.0.1:1"]
        refused(pair, arguments, pair.source_dir, pair.source_state, "stop")
    write_file(pair, "file", "b'after'")
    healthy(pair)
    equal_after_stop(pair)


def test_target_where_a_source_was_killed(pair: MirrorPair) -> None:
    """Its mount is taken away, and with it the lock that the keeper holds."""
    pair.start()
    write_file(pair, "file")
    pair.kill_source()
    assert mounts_below(pair.source_dir)
    pair.kill_target()
    pair.source_dir, pair.target_dir = pair.target_dir, pair.source_dir
    pair.source_state, pair.target_state = pair.target_state, pair.source_state
    pair.start_target()
    assert not mounts_below(pair.target_dir)
    assert visible(pair.target_dir) == ["file"]
