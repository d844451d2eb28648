"""safekit's configuration becomes hotpair's where it means the same; the rest is named, with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from hotpair.actors.home import Home
from hotpair.cluster.checker_rules import Action
from hotpair.cluster.configuration import Cluster, Module
from hotpair.cluster.configuration_io import load_cluster, load_modules
from hotpair.safekit_import import NotConverted, seconds
from hotpair.safekit_import_io import NotImported, import_files
from hotpair.safekit_xml import DEEPEST, ELEMENTS, LARGEST_DOCUMENT, BadXml, parse

CLUSTER = """<?xml version="1.0" encoding="UTF-8"?>
<cluster>
  <lans port="4800">
    <lan name="default">
      <node name="alpha" addr="10.0.0.1"/>
      <node name="beta" addr="10.0.0.2"/>
    </lan>
    <lan name="private" command="off">
      <node name="alpha" addr="192.168.7.1"/>
      <node name="beta" addr="192.168.7.2"/>
    </lan>
  </lans>
</cluster>
"""
KVM = """<?xml version="1.0"?>
<safe>
  <macro name="VM_PATH" value="/var/lib/libvirt/images/%VM_NAME%"/>
  <macro name="VM_NAME" value="shop"/>
  <macro name="NORMAL_STOP" value="save"/>
  <service mode="mirror" defaultprim="beta" maxloop="5" loop_interval="12" boot="on" failover="on">
    <heart pulse="700" timeout="30000">
      <heartbeat name="default" ident="flow"/>
      <heartbeat name="private"/>
    </heart>
    <rfs async="none" acl="off" nbrei="6" reiallowedbw="50000" mountoversuffix="_S">
      <replicated dir="%VM_PATH%" mode="read_only">
        <notreplicated path="tmp"/>
      </replicated>
    </rfs>
    <vip><interface_list/></vip>
    <user nicestoptimeout="2m" logging="userlog"/>
    <check>
      <tcp ident="web" when="prim"><to addr="10.0.0.80" port="80" interval="20" timeout="3s"/></tcp>
      <ping ident="router" action="stopstart"><to addr="10.0.0.254"/></ping>
      <module name="database"/>
      <custom ident="own" exec="check.sh" arg="1"/>
      <splitbrain ident="w" exec="ping" arg="10.0.0.254"/>
    </check>
    <errd polltimer="30">
      <proc name="qemu-system-x86" atleast="1" action="stopstart" class="prim"/>
      <proc name="helper" class="second"/>
    </errd>
    <failover><![CDATA[ f: if (tcp.web == down) then stop; ]]></failover>
  </service>
</safe>
"""
HYPERV = """<safe>
  <macro name="VM_PATH" value="D:\\VMs\\shop"/>
  <macro name="VM_NAME" value="shop"/>
  <macro name="NORMAL_STOP" value="stop"/>
  <service mode="mirror">
    <rfs scripts="on" acl="on" namespacepolicy="0" allocthreshold="10"><replicated dir="%VM_PATH%"/></rfs>
  </service>
</safe>
"""
APPLICATION = """<safe><service mode="mirror" defaultprim="alone">
<rfs><replicated dir="/srv/db"/><replicated dir="/srv/other"/></rfs><user/></service></safe>
"""


def imported(folder: Path, userconfig: str, cluster: str | None = CLUSTER) -> tuple[Cluster, Module, list[str]]:
    """Read back by hotpair itself."""
    conf = folder / "safekit" / "shop" / "conf"
    conf.mkdir(parents=True)
    (conf / "userconfig.xml").write_text(userconfig)
    (folder / "cluster.xml").write_text(cluster or "")
    home = Home.at(str(folder / "home"))
    given = None if cluster is None else str(folder / "cluster.xml")
    said = import_files(home, str(conf / "userconfig.xml"), given, None)
    pair = load_cluster(home.configuration)
    modules = load_modules(home.configuration, pair)
    assert modules.refused == {}
    return pair, modules.accepted["shop"], said


def test_a_vm_of_kvm(tmp_path: Path) -> None:
    pair, module, said = imported(tmp_path, KVM)
    assert [(one.name, one.address) for one in pair.servers] == [("alpha", "10.0.0.1"), ("beta", "10.0.0.2")]
    assert pair.servers[1].networks == {"default": "10.0.0.2", "private": "192.168.7.2"}
    assert (pair.heartbeat.pulse_s, pair.heartbeat.timeout_s) == (0.7, 30.0)
    assert (pair.arbitration.kind, pair.arbitration.options["addresses"]) == ("ping", ("10.0.0.254",))
    assert (module.directory, module.mirror_port, module.boot) == ("/var/lib/libvirt/images/shop", 5600, "on")
    assert (module.preferred, module.failback) == ("beta", "automatic")
    assert (module.loop.max_loop, module.loop.loop_interval_s) == (5, 12 * 3600.0)
    assert (module.vm.driver, module.vm.normal_stop, module.vm.stop_timeout_s) == ("libvirt", "save", 120.0)
    assert module.mirror.durability == "disk"
    checkers = {one.name: (one.kind, one.action, dict(one.options)) for one in module.checkers}
    assert checkers == {
        "web": ("tcp", Action.RESTART, {"address": "10.0.0.80:80"}),
        "router": ("ping", Action.STOPSTART, {"address": "10.0.0.254"}),
        "database": ("module", Action.WAIT, {"module": "database"}),
        "qemu-system-x86": ("process", Action.STOPSTART, {"process": "qemu-system-x86"}),
    }
    web = next(one for one in module.checkers if one.name == "web")
    assert (web.period_s, web.timeout_s) == (20.0, 3.0)
    text = "\n".join(said)
    for left in (
        "<vip>",
        "<failover>",
        "'check.sh 1'",
        "<notreplicated> 'tmp'",
        "reiallowedbw='50000'",
        "logging=",
        "atleast='1'",
    ):
        assert left in text, left
    for taken in ("nbrei", "async", "maxloop", "%VM_"):
        assert taken not in text
    lines = KVM.splitlines()
    for note in said:
        if "userconfig.xml: line " in note:
            line, _, what = note.partition("userconfig.xml: line ")[2].partition(": ")
            element = what.split(">")[0].split()[0].strip("<>:")
            assert f"<{element}" in lines[int(line) - 1], note


def test_a_vm_of_hyper_v(tmp_path: Path) -> None:
    _, module, said = imported(tmp_path, HYPERV)
    assert (module.vm.driver, module.directory, module.preferred) == ("hyperv", "/vm/shop", None)
    assert module.mirror.durability == "memory"
    assert any("Windows path" in line for line in said)


def test_an_application_and_a_pair_without_a_witness(tmp_path: Path) -> None:
    pair, module, said = imported(tmp_path, APPLICATION)
    assert pair.arbitration.kind == "manual"  # and not "none", by which both may run
    assert (module.vm.driver, module.vm.options["start"]) == ("command", "/bin/false")
    assert any("start_prim" in line for line in said)
    assert any("'/srv/other'" in line for line in said)


def test_a_second_module_gets_a_port_of_its_own_and_nothing_is_written_over(tmp_path: Path) -> None:
    imported(tmp_path, APPLICATION)
    home, source = Home.at(str(tmp_path / "home")), tmp_path / "userconfig.xml"
    source.write_text(APPLICATION.replace("/srv/db", "/srv/web"))
    before = Path(home.cluster_file).read_text()
    import_files(home, str(source), None, "web")
    assert "mirror_port = 5601" in Path(home.module_file("web")).read_text()
    for given, why in (
        ((None, "web"), "is there already"),
        ((str(tmp_path / "cluster.xml"), "new"), "is there already"),
    ):
        with pytest.raises(NotImported, match=why):
            import_files(home, str(source), *given)
    with pytest.raises(NotImported, match="directory"):
        import_files(home, str(source), None, "same-directory")
    assert Path(home.cluster_file).read_text() == before
    assert not Path(home.module_file("new")).exists()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not XML"),
        ("<safe>", "line 1: this is not XML"),
        ("<other/>", "<other>"),
        ("<safe/>", "no <service>"),
        ('<safe><service mode="farm"/></safe>', "only mirror modules"),
        ("<safe><service/></safe>", "nothing is mirrored"),
        (APPLICATION.replace("defaultprim=\"alone\"", 'maxloop="many"'), "line 1: maxloop: 'many' is no number"),
        (APPLICATION.replace("defaultprim=\"alone\"", 'loop_interval="soon"'), "'soon' is no time"),
        ('<!DOCTYPE safe [<!ENTITY a "b">]><safe/>', "DOCTYPE"),
        ('<!DOCTYPE safe SYSTEM "file:///etc/passwd"><safe/>', "DOCTYPE"),
        ('<?xml version="1.0" encoding="no-such"?><safe/>', "not XML"),
        ("<safe>&undefined;</safe>", "not XML"),
    ],
)  # fmt: skip
def test_what_cannot_be_taken_over_is_said_and_nothing_is_written(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(NotImported, match=why):
        imported(tmp_path, text)
    assert not (tmp_path / "home").exists()


def test_a_pair_has_two_servers_in_one_network(tmp_path: Path) -> None:
    for cluster, why in (
        (CLUSTER.replace('name="beta"', 'name="alpha"'), "1 nodes"),
        (
            CLUSTER.replace('<node name="beta" addr="10.0.0.2"/>', "").replace(
                '<node name="alpha" addr="192.168.7.1"/>', ""
            ),
            "no lan that both",
        ),
        ("<safe/>", "not <cluster>"),
    ):  # fmt: skip
        folder = tmp_path / why.replace("<", "").replace(">", "")
        folder.mkdir()
        with pytest.raises(NotImported, match=why):
            imported(folder, APPLICATION, cluster)


def test_without_a_pair_there_is_no_module(tmp_path: Path) -> None:
    with pytest.raises(NotImported, match=r"give cluster\.xml as well"):
        imported(tmp_path, APPLICATION, None)


def test_the_reader_has_limits() -> None:
    with pytest.raises(BadXml, match="levels"):
        parse(b"<a>" * (DEEPEST + 1) + b"</a>" * (DEEPEST + 1))
    with pytest.raises(BadXml, match="elements"):
        parse(b"<a>" + b"<b/>" * ELEMENTS + b"</a>")
    with pytest.raises(BadXml, match="bytes"):
        parse(b" " * (LARGEST_DOCUMENT + 1))
    assert [one.line for one in parse(b"<a>\n<b/>\n<c><d/></c></a>").walk()] == [1, 2, 3, 3]


@pytest.mark.parametrize(
    ("text", "unit", "result"),
    [
        ("700", "ms", 0.7),
        ("30s", "ms", 30),
        ("2m", "s", 120),
        ("24", "h", 86400),
        ("1d", "s", 86400),
        ("5us", "s", 5e-6),
    ],
)
def test_times_with_and_without_a_unit(text: str, unit: str, result: float) -> None:
    assert seconds(text, unit) == result


@pytest.mark.parametrize("text", ["", "-1s", "1 hour", "1e9", "٣"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(NotConverted):
        seconds(text, "s")
