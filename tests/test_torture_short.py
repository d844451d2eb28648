"""The first rounds of the torture, one of each kind, and the proof that its checks can fail."""

import os

import pytest

from hotpair.replication import dirty_log
from tests.faults import on_mount, write_file
from tests.ledger import PAGE, Ledger, WriterProcess, block_path, make_page
from tests.mirror_pair import MirrorPair
from tests.torture import Torture, identity_bytes, kinds_of_rounds, read_things, unmarked_differences

SEED = int(os.environ.get("HOTPAIR_TORTURE_SEED", "1"))


@pytest.mark.timeout(240)
def test_each_kind_of_kill_once() -> None:
    with Torture(SEED) as torture:
        kinds = tuple(kinds_of_rounds())
        torture.run(len(kinds), kinds=kinds)
        assert torture.counts["rounds"] == len(kinds) and torture.counts["comparisons"] == 1


@pytest.mark.timeout(60)
def test_the_ledger_notices_each_kind_of_loss(tmp_path: os.PathLike[str]) -> None:
    """On a plain directory: all is well, then one thing at a time is broken."""
    mount, path = f"{os.fspath(tmp_path)}/data", f"{os.fspath(tmp_path)}/ledger"
    os.mkdir(mount)
    writer = WriterProcess(mount, path, "random,names,names,names,names", dict(os.environ), files=2, pages=128)
    assert writer.wait_acknowledged(4000, 40)
    assert writer.stop() == 0
    writer.close()
    ledger = Ledger(path).read()
    assert not ledger.flying and not ledger.errors and ledger.check(mount) == []
    with open(f"{mount}/{block_path(0)}", "r+b") as file:
        page = file.read(PAGE)
        for data, what in ((bytes(PAGE), "tag 0"), (make_page(0, 0, 5), "tag 5"), (page[:-1] + b"?", "tag -1")):
            file.seek(0)
            file.write(data)
            file.flush()
            (wrong,) = ledger.check(mount)
            assert f"{block_path(0)} page 0: {what}" in wrong
        file.seek(0)
        file.write(page)
    name, names = next((name, names) for names in ledger.names.values() for name, tag in names.items() if tag > 0)
    os.rename(f"{mount}/{name}", f"{mount}/{name}-lost")
    (wrong,) = ledger.check(mount)
    assert f"{name} is None" in wrong and names


@pytest.mark.timeout(60)
def test_a_difference_without_its_mark_is_noticed() -> None:
    with MirrorPair() as pair:
        pair.start()
        on_mount(pair, "os.mkdir('directory')")
        write_file(pair, "file", "b'x' * 300_000")
        pair.stop()
        both = (pair.source_dir, pair.target_dir)
        marks = dirty_log.Marks()
        assert unmarked_differences(*both, marks, 16) == []
        identities = {thing.path: identity_bytes(shown) for shown, thing in read_things(pair.source_dir).items()}
        with open(f"{pair.target_dir}/file", "r+b") as file:
            file.seek(70_000)
            file.write(b"y")
        os.mkdir(f"{pair.target_dir}/directory/surplus")
        os.chmod(f"{pair.target_dir}/file", 0o444)
        assert len(unmarked_differences(*both, marks, 16)) == 3
        for mark in (
            dirty_log.Extents(identities[b"file"], 1, 1),
            dirty_log.Metadata(identities[b"file"]),
            dirty_log.Names(identities[b"directory"]),
        ):
            before = unmarked_differences(*both, marks, 16)
            marks.apply(dirty_log.add(mark))
            assert len(unmarked_differences(*both, marks, 16)) == len(before) - 1
