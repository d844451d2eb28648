"""The API's values out of JSON: all of a value, or a sentence that says which part is none."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest

from hotpair.api_reading import NotReadable, read
from hotpair.api_values import Checker, Details, Done, Log, Module, Verification

MODULE = Module(
    module="web", server="alpha", state=None, ready=False, colour="dim", reason="", vm="", data="", in_sync=False,
    maintenance=False, wanted=True, plan="", peer="beta", peer_state="", peer_ready=False, peer_colour="dim",
    problem="",
)  # fmt: skip
DETAILS = Details(
    module=MODULE, directory="/vm", mirror_port=5600, driver="qemu", preferred=None, failback="auto",
    split_brain="manual", record={"epoch": 1}, bytes_changed=7, mirror={}, vm={"state": "on"}, heartbeat={},
    checkers=[Checker(name="a", kind="tcp", action="none", finding="up", since=1.5, detail="")], age_s=None,
)  # fmt: skip
VERIFICATION = Verification(known=True, differences=[{"path": "disk"}], result="no difference")


@pytest.mark.parametrize("value", [MODULE, DETAILS, VERIFICATION, Log(lines=["a", "b"]), Done()])
def test_what_is_written_is_read(value: Any) -> None:
    said = json.loads(json.dumps(asdict(value)))
    assert read(type(value), said) == value
    assert read(type(value), {**said, "of a later version": 1}) == value


def test_what_may_be_left_out() -> None:
    assert read(Verification, {"known": False}) == Verification(known=False)
    assert read(Done, {}) == Done()
    said = asdict(DETAILS)
    del said["checkers"]
    assert read(Details, said).checkers == []
    assert read(Details, {**said, "age_s": 2}).age_s == 2.0


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"mirror_port": "5600"}, "Details.mirror_port is '5600'"),
        ({"mirror_port": True}, "Details.mirror_port is True"),
        ({"mirror_port": None}, "Details.mirror_port is None"),
        ({"record": []}, "Details.record is []"),
        ({"module": None}, "Details.module is None"),
        ({"module": {**asdict(MODULE), "colour": "blue"}}, "Details.module.colour is 'blue'"),
        ({"module": {}}, "Details.module has no module"),
        ({"checkers": {}}, "Details.checkers is {}"),
        ({"checkers": [asdict(DETAILS.checkers[0]) | {"since": "now"}]}, "Details.checkers[0].since is 'now'"),
    ],
)
def test_what_is_none_is_named(change: dict[str, Any], where: str) -> None:
    with pytest.raises(NotReadable) as found:
        read(Details, {**asdict(DETAILS), **change})
    assert str(found.value) == where


@pytest.mark.parametrize(("kind", "given"), [(Log, []), (Log, {"lines": [1]}), (Done, {"accepted": 1}), (Log, {})])
def test_other_things(kind: type, given: object) -> None:
    with pytest.raises(NotReadable):
        read(kind, given)
