"""The configuration: what is accepted, what is refused and how it is said, what must fit together, the digest."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotpair.cluster import configuration_tables as tables
from hotpair.cluster.checker_rules import Action
from hotpair.cluster.configuration import Cluster, Module, digest, parse_cluster, parse_module
from hotpair.cluster.configuration_checks import conflicts
from hotpair.cluster.configuration_keys import ConfigurationError, line_of
from hotpair.replication import limits

CLUSTER = """\
name = "rack7"

[[servers]]
name = "alpha"
address = "10.0.0.1"
networks = { lan = "10.0.0.1", direct = "192.168.7.1" }

[[servers]]
name = "beta"
address = "10.0.0.2"
[servers.networks]
lan = "10.0.0.2"
direct = "192.168.7.2"

[heartbeat]
timeout_s = 5

[arbitration]
kind = "none"
"""
MODULE = """\
directory = "/vm/web"
mirror_port = 5600

[vm]
driver = "qemu"
"""


def cluster(text: str = CLUSTER) -> Cluster:
    return parse_cluster(text)


def module(text: str = MODULE, name: str = "web", pair: Cluster | None = None) -> Module:
    return parse_module(text, name, pair or cluster())


def problems_of_cluster(text: str) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        parse_cluster(text)
    return str(caught.value).splitlines()


def problems_of_module(text: str, pair: Cluster | None = None, name: str = "web") -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        module(text, name, pair)
    return str(caught.value).splitlines()


def one(problems: list[str]) -> str:
    (problem,) = problems
    return problem


def heartbeat(**values: object) -> str:
    return CLUSTER.replace("timeout_s = 5\n", "".join(f"{key} = {value}\n" for key, value in values.items()))


def arbitration(lines: str) -> str:
    return CLUSTER.replace('kind = "none"\n', lines)


# ---- what is accepted


def test_a_short_file_and_its_defaults() -> None:
    pair = cluster()
    assert [server.name for server in pair.servers] == ["alpha", "beta"]
    assert pair.servers[1].networks == {"lan": "10.0.0.2", "direct": "192.168.7.2"}
    assert (pair.heartbeat.pulse_s, pair.heartbeat.timeout_s) == (0.5, 5.0)
    assert pair.arbitration.kind == "none" and pair.arbitration.asking_s == 0
    assert pair.security.tls is not None and pair.security.key_file == "pair.key"
    assert pair.peer_of("alpha").name == "beta" and pair.peer_of("beta").name == "alpha"
    web = module()
    assert (web.boot, web.failback, web.split_brain, web.preferred, web.data_on) == (
        "as-before",
        "manual",
        "manual",
        None,
        None,
    )
    assert (web.mirror.extent_size, web.mirror.durability, web.mirror.cache) == (4 << 20, "memory", "direct")
    assert web.checkers == () and (web.loop.max_loop, web.loop.loop_interval_s) == (3, 86400.0)


def test_the_examples_in_the_documentation_are_accepted() -> None:
    page = (Path(__file__).resolve().parent.parent / "docs" / "configuration.md").read_text(encoding="utf-8")
    first, second = (part.split("```")[0] for part in page.split("```toml\n")[1:])
    pair = parse_cluster(first)
    assert pair.arbitration.options["address"] == "witness.example:4811"
    web = parse_module(second, "web", pair)
    assert web.preferred == "alpha" and web.checkers[0].options == {"address": "10.0.0.80:80"}


@pytest.mark.parametrize(
    ("lines", "options"),
    [
        ('kind = "manual"', {}),
        ('kind = "ping"\nping = { addresses = ["10.0.0.254", "[fd00::1]:53"] }', {"addresses", "timeout_s"}),
        ('kind = "etcd"\n[arbitration.etcd]\nendpoints = ["a:2379", "b:2379"]', {"endpoints", "prefix", "timeout_s"}),
        ('kind = "witness"\n[arbitration.witness]\naddress = "w:4811"', {"address", "key_file", "timeout_s"}),
        ('kind = "fence"\n[arbitration.fence]\ncommand = ["/bin/off"]\ntimeout_s = 1.2', {"command", "timeout_s"}),
    ],
)
def test_every_kind_of_arbitration(lines: str, options: set[str]) -> None:
    found = cluster(arbitration(lines)).arbitration
    assert set(found.options) == set(options)
    assert (found.tls is not None) is (found.kind in ("witness", "etcd"))


def test_tls_is_off_only_when_the_file_says_so() -> None:
    assert cluster(CLUSTER + "[security]\ntls = false\n").security.tls is None
    text = 'kind = "witness"\n[arbitration.witness]\naddress = "w:4811"\ntls = false'
    assert cluster(arbitration(text)).arbitration.tls is None


@pytest.mark.parametrize("kind", tables.CHECKER_KINDS)
def test_every_kind_of_checker_becomes_a_rule(kind: str) -> None:
    own = {
        "tcp": 'address = "10.0.0.80:80"',
        "ping": 'address = "router"',
        "process": 'process = "qemu"',
        "interface": 'interface = "eth0"',
        "disk-space": 'path = "/vm"',
        "command": 'command = ["/bin/true"]',
        "module": 'module = "db"',
    }
    web = module(MODULE + f'[checkers.one]\nkind = "{kind}"\n{own.get(kind, "")}\n')
    (checker,) = web.checkers
    assert checker.action is Action(tables.CHECKER_KINDS[kind].action)
    assert web.rules.rules["one"].action is checker.action and web.rules.rules["one"].confirm_s == 15
    chosen = module(MODULE + f'[checkers.one]\nkind = "{kind}"\naction = "swap"\n{own.get(kind, "")}\n')
    assert chosen.checkers[0].action is Action.SWAP


def test_the_limits_are_those_of_the_mirror_and_of_the_pulse() -> None:
    assert tables.PROBE_INTERVAL_S == limits.PROBE_INTERVAL_S
    assert tables.EXTENT_SIZE_SMALLEST == limits.EXTENT_SIZE_SMALLEST
    assert tables.EXTENT_SIZE_LARGEST == limits.EXTENT_SIZE_LARGEST
    assert module().mirror.extent_size == limits.EXTENT_SIZE
    assert module().mirror.hot_extents == limits.HOT_EXTENTS
    assert tables.SHORTEST_SILENCE_S == limits.SHORTEST_SILENCE_S > limits.PROBE_INTERVAL_S
    assert module().mirror.silence_timeout_s == limits.SILENCE_TIMEOUT_S
    assert module().mirror.stall_timeout_s == limits.STALL_TIMEOUT_S


# ---- what is refused, and how


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "timeout_s = 5",
            "timout_s = 5",
            "line 16: heartbeat.timout_s: there is no such key: did you mean timeout_s?",
        ),
        ("[heartbeat]", "[hartbeat]", "cluster.toml, line 15: hartbeat: there is no such key: did you mean heartbeat?"),
        ("timeout_s = 5", 'timeout_s = "5"', '"5" is not accepted: give a number of seconds from 0.5 to 3600'),
        ("timeout_s = 5", "timeout_s = nan", "a number of seconds"),
        ("timeout_s = 5", "timeout_s = true", "true is not accepted"),
        ('name = "rack7"\n', "", "cluster.toml: name: it is missing"),
        ('"none"', '"nobody"', 'line 19: arbitration.kind: "nobody" is not accepted: give "witness" or "etcd"'),
        ('kind = "none"', "", "line 18: arbitration.kind: it is missing"),
        ('name = "beta"', 'name = "be ta"', "line 9: servers[2].name"),
        ('lan = "10.0.0.2"', 'lan = "10.0.0.300"', "line 12: servers[2].networks.lan"),
        ('lan = "10.0.0.1"', 'lan = "0.0.0.0"', "line 6: servers[1].networks.lan"),
        ('name = "beta"', 'name = "Alpha"', "line 9: servers[2].name: the first server is called alpha as well"),
        ('address = "10.0.0.2"', 'address = "10.0.0.1"', "line 10: servers[2].address: the first server has the same"),
        ('lan = "10.0.0.2"', 'lan = "10.0.0.1"', "line 12: servers[2].networks.lan: both servers have 10.0.0.1"),
        ('lan = "10.0.0.2"', 'lan = "fd00::2"', "not of the same IP version"),
        ('lan = "10.0.0.2"', 'lan = "192.168.7.2"', "line 13: servers[2].networks.direct: 192.168.7.2 is the"),
        ('direct = "192.168.7.2"', 'back = "192.168.7.2"', "line 11: servers[2].networks: the networks are lan, back"),
        ("[heartbeat]", '[[servers]]\nname = "c"\n[heartbeat]', "servers: give exactly two tables [[servers]]"),
        ("[heartbeat]", "[heartbeat", "this is not TOML"),
        ("timeout_s = 5", "timeout_s = " + "9" * 5000, "this is not TOML"),
        ("timeout_s = 5", "timeout_s = " + "[" * 3000, "this is not TOML"),
    ],
)
def test_what_is_wrong_in_cluster_toml_is_said_with_its_place(old: str, new: str, said: str) -> None:
    assert old in CLUSTER
    assert any(said in problem for problem in problems_of_cluster(CLUSTER.replace(old, new, 1)))


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('kind = "witness"', "arbitration.witness.address: it is missing"),
        ('kind = "none"\n[arbitration.ping]\naddresses = ["10.0.0.254"]', 'is for kind = "ping", but'),
        ('kind = "ping"\n[arbitration.ping]\naddresses = ["router"]', "a numeric address"),
        ('kind = "ping"\n[arbitration.ping]\naddresses = []', "a list of 1 to 9"),
        ('kind = "fence"\n[arbitration.fence]\ncommand = ["off"]\ntimeout_s = 1', "absolute path"),
        ('kind = "etcd"\n[arbitration.etcd]\nendpoints = ["a"]', '"HOST:PORT"'),
        ('kind = "etcd"\n[arbitration.etcd]\nendpoints = ["a:1"]\nprefix = "x"', 'text that begins with "/"'),
        ('kind = "witness"\n[arbitration.witness]\naddress = "w:4811"\ntimeout_s = 5', "would have taken over"),
    ],
)
def test_what_is_wrong_in_the_arbitration(lines: str, said: str) -> None:
    assert said in one(problems_of_cluster(arbitration(lines)))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('preferred = "gamma"', "modules/web.toml, line 1: preferred: there is no server gamma"),
        ('preferred = "alfa"', "did you mean alpha?; give alpha or beta"),
        ('data_on = "gamma"', "line 1: data_on: there is no server gamma"),
        ('split_brain = "server:gamma"', "there is no server gamma"),
        ('split_brain = "newest"', '"manual" or "former-primary" or "most-changes" or "server:NAME"'),
        ('failback = "automatic"', "line 1: failback: automatic needs to know where to"),
        ('boot = "yes"', '"on" or "off" or "as-before"'),
        ('durability = "disk"', "line 1: durability: there is no such key"),
        ("checkers = 5", "give at most 16 tables"),
        ("mirror = 5", "line 1: mirror: this is 5: give a table of keys"),
        ("data_on = 5", "line 1: data_on: 5 is not accepted"),
    ],
)
def test_what_is_wrong_at_the_top_of_a_module(line: str, said: str) -> None:
    assert said in one(problems_of_module(line + "\n" + MODULE))


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('[mirror]\nextent_size = "3m"', "line 7: mirror.extent_size"),
        ("[mirror]\nextent_size = 4095", "a power of two"),
        ("[mirror]\nextent_size = 32768", "from 65536 to 1073741824"),
        ("[mirror]\nsilence_timeout_s = 1.1", "from 1.2 to 600"),
        ("[mirror]\nsilence_timeout_s = 2.5", "give less than 2.5 here, or more than 2.5 for fence_after_s"),
        ("[mirror]\nstall_timeout_s = 1.4", "than one that is silent: give at least 1.5"),
        ('[checkers.http]\nkind = "tpc"', 'line 7: checkers.http.kind: "tpc" is not accepted: did you mean tcp?'),
        ('[checkers.http]\nkind = "tcp"', "line 6: checkers.http.address: it is missing"),
        ('[checkers.http]\nkind = "vm-state"\naddress = "a:1"', "line 8: checkers.http.address: there is no such key"),
        ('[checkers.http]\nkind = "vm-state"\ntimeout_s = 11', "one check would run into the next"),
        ('[checkers.me]\nkind = "module"\nmodule = "web"', "a module cannot wait for itself"),
        ("[checkers.http]\nperiod_s = 1", "checkers.http.kind: it is missing"),
        ('[checkers."a b"]\nkind = "vm-state"', "a checker cannot be called"),
        ("[vm.options]\nmemory = 1.5", "line 7: vm.options.memory"),
        ("[loop]\nmax_loop = 0", "a whole number from 1 to 1000"),
    ],
)
def test_what_is_wrong_in_a_table_of_a_module(lines: str, said: str) -> None:
    assert said in one(problems_of_module(MODULE + lines))


@pytest.mark.parametrize("directory", ["", ".", "../vm", "/vm/../etc", "vm/./web", "a\\u0000b", "x" * 1025])
def test_what_is_no_path(directory: str) -> None:
    assert "line 1: directory: " in one(problems_of_module(MODULE.replace("/vm/web", directory)))


def test_a_driver_is_any_name_and_looked_up_by_whoever_uses_it() -> None:
    assert module(MODULE.replace('"qemu"', '"partners-own"')).vm.driver == "partners-own"
    assert "vm.driver: " in one(problems_of_module(MODULE.replace('"qemu"', '"no name"')))


def test_a_module_needs_a_name_that_is_one_and_its_required_keys() -> None:
    assert "a module cannot be called" in one(problems_of_module(MODULE, name="we b"))
    found = problems_of_module("")
    assert [problem.split(": ")[1] for problem in found] == ["directory", "mirror_port", "vm.driver"]


def test_too_many_checkers_are_refused() -> None:
    lines = [f'[checkers.c{i}]\nkind = "vm-state"\n' for i in range(tables.CHECKERS_PER_MODULE + 1)]
    assert len(module(MODULE + "".join(lines[:-1])).checkers) == tables.CHECKERS_PER_MODULE
    assert "give at most 16 tables" in one(problems_of_module(MODULE + "".join(lines)))


def test_all_that_is_wrong_is_said_at_once() -> None:
    text = CLUSTER.replace('"rack7"', '"rack 7"').replace("timeout_s = 5", "timeout_s = 0\npulse = 1")
    assert len(problems_of_cluster(text)) == 3


# ---- time limits

FENCE = 'kind = "fence"\nfence = { command = ["/usr/local/sbin/peer-off"] }'


def test_the_defaults_fit_together_with_every_arbitration() -> None:
    for lines in (
        'kind = "none"',
        'kind = "manual"',
        'kind = "ping"\nping = { addresses = ["10.0.0.254"] }',
        'kind = "etcd"\netcd = { endpoints = ["a:2379"] }',
        'kind = "witness"\nwitness = { address = "w:4811" }',
        FENCE,
    ):
        module(pair=cluster(arbitration(lines)))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"timeout_s": 4.75}, "are 4.75 s, and must be less than timeout_s (4.75 s)"),
        ({"timeout_s": 5, "fence_after_s": 2.75}, "give fence_after_s less than 2.75, or timeout_s more than 5"),
        ({"timeout_s": 5, "vm_kill_s": 0.75}, "give fence_after_s less than 2.5"),
        ({"timeout_s": 5, "pulse_s": 0.75}, "give fence_after_s less than 2.5"),
        ({"timeout_s": 5, "vm_kill_s": 4}, "give timeout_s more than 8.25"),
        ({"timeout_s": 5, "fence_after_s": 5}, "5 s is not less than timeout_s (5 s)"),
        ({"timeout_s": 20, "pulse_s": 5.1}, "give at most 5"),
    ],
)
def test_times_that_would_let_two_vms_run_are_refused(values: dict[str, float], said: str) -> None:
    assert said in one(problems_of_cluster(heartbeat(**values)))


def test_times_just_inside_the_limits_are_accepted() -> None:
    cluster(heartbeat(timeout_s=4.7500001))
    cluster(heartbeat(timeout_s=5, fence_after_s=2.7499999))
    cluster(heartbeat(timeout_s=20, pulse_s=5))
    module(MODULE + "[mirror]\nsilence_timeout_s = 2.4999999\n")
    module(MODULE + "[mirror]\nsilence_timeout_s = 1.2\nstall_timeout_s = 1.2\n")


def fence(fence_after_s: float | None = None, *, command_s: float = 30, timeout_s: float = 5) -> str:
    text = arbitration(FENCE.replace(" }", f", timeout_s = {command_s} }}")).replace("_s = 5", f"_s = {timeout_s}")
    return (
        text
        if fence_after_s is None
        else text.replace("[heartbeat]\n", f"[heartbeat]\nfence_after_s = {fence_after_s}\n")
    )


def test_a_survivor_waits_for_a_slow_fencing_command_and_the_peer_takes_over_no_later() -> None:
    """The limit is longer than the command may take, and has nothing to do with timeout_s."""
    assert cluster(fence()).heartbeat.fence_after_s == 40
    assert cluster(fence(command_s=600)).heartbeat.fence_after_s == 610
    assert cluster(fence(command_s=0.1)).heartbeat.fence_after_s == 10.1
    assert cluster(fence(500)).heartbeat.fence_after_s == 500
    assert cluster().heartbeat.fence_after_s == 2.5
    for text in (fence(), fence(33.3), fence(33.3, timeout_s=45)):
        assert cluster(text).heartbeat.timeout_s in (5, 45)


@pytest.mark.parametrize("fence_after_s", [2.5, 29, 30, 33.2])
def test_a_survivor_that_would_not_wait_for_the_fencing_command_is_refused(fence_after_s: float) -> None:
    said = one(problems_of_cluster(fence(fence_after_s)))
    assert said.startswith("cluster.toml, line 16: heartbeat.fence_after_s: ")
    assert "timeout_s is 30 s): leave it out, or give more than 33.2" in said


def test_a_module_notices_the_loss_before_the_fencing_command_is_asked() -> None:
    silence = MODULE + "[mirror]\nsilence_timeout_s = {}\n"
    module(silence.format(7.9), pair=cluster(fence()))
    said = one(problems_of_module(silence.format(8), cluster(fence())))
    assert "takes 8 s to notice it and up to 32 s to have the fencing command's answer" in said
    assert "give less than 8 here, or more than 40 for fence_after_s" in said


@given(
    st.floats(0.05, 5), st.floats(0.5, 60), st.floats(0.1, 60), st.floats(0.05, 10), st.floats(0, 1), st.floats(0, 1)
)
@settings(max_examples=200, deadline=None)
def test_in_whatever_is_accepted_the_primary_has_stopped_before_the_peer_starts(
    pulse_s: float, timeout_s: float, fence_after_s: float, vm_kill_s: float, pulse_phase: float, probe_phase: float
) -> None:
    """Played with the break at 0: both sides' last words before it, and the primary's first question after it."""
    text = heartbeat(pulse_s=pulse_s, timeout_s=timeout_s, fence_after_s=fence_after_s, vm_kill_s=vm_kill_s)
    try:
        times = cluster(text).heartbeat
    except ConfigurationError:
        assert pulse_s * 4 > timeout_s or pulse_s + 1 + fence_after_s + vm_kill_s + 0.25 >= timeout_s
        return
    heard_by_the_peer = -pulse_s * pulse_phase
    unanswered = limits.PROBE_INTERVAL_S * probe_phase
    stopped = unanswered + times.fence_after_s + times.vm_kill_s
    assert stopped < heard_by_the_peer + times.timeout_s


# ---- several modules


def test_modules_do_not_share_ports_or_directories() -> None:
    web, db = module(), module(MODULE.replace("5600", "5601").replace("web", "db"), "db")
    assert conflicts(web, [db]) == []
    assert [key for key, _ in conflicts(web, [module(name="again")])] == ["mirror_port", "directory"]
    for directory in ("/vm", "/vm/web/disk", "/vm//web/", "//vm/web", "/"):
        other = module(MODULE.replace("5600", "5601").replace("/vm/web", directory), "other")
        assert [key for key, _ in conflicts(web, [other])] == ["directory"]
    other = module(MODULE.replace("5600", "5601").replace("/vm/web", "/vm/web2"), "other")
    assert conflicts(web, [other]) == []
    many = [module(MODULE.replace("5600", str(5601 + i)).replace("web", f"m{i}"), f"m{i}") for i in range(25)]
    assert conflicts(web, many[1:]) == []
    assert [text for _, text in conflicts(web, many)] == ["a pair takes at most 25 modules: remove one"]


# ---- the digest


def test_the_digest_says_the_same_however_the_file_is_written() -> None:
    rewritten = """
    arbitration.kind = "none" # nobody is asked
    heartbeat = { timeout_s = 5.0, pulse_s = 0.50 }
    name = 'rack7'
    servers = [
      { name = "alpha", address = "10.0.0.1", networks = { direct = "192.168.7.1", lan = "10.0.0.1" } },
      { networks = { lan = "10.0.0.2", direct = "192.168.7.2" }, address = "10.0.0.2", name = "beta" },
    ]
    """
    assert cluster(rewritten) == cluster()
    assert digest(cluster(rewritten)) == digest(cluster())
    assert digest(module('boot = "as-before"\n' + MODULE)) == digest(module())
    assert len(digest(module())) == 32


def test_every_value_counts_in_the_digest() -> None:
    swapped = CLUSTER.replace('"alpha"', '"x"').replace('"beta"', '"alpha"').replace('"x"', '"beta"')
    others = [
        cluster(CLUSTER.replace("rack7", "rack8")),
        cluster(swapped),
        cluster(CLUSTER.replace("192.168.7.2", "192.168.7.3")),
        cluster(heartbeat(timeout_s=6)),
        cluster(CLUSTER.replace('"none"', '"manual"')),
        cluster(CLUSTER + "[security]\ntls = false\n"),
    ]
    checker = '[checkers.c]\nkind = "vm-state"\n'
    others_of_module = [
        module(name="web2"),
        module(MODULE.replace("5600", "5601")),
        module(MODULE.replace("qemu", "hyperv")),
        module(MODULE + "[vm.options]\ncores = 2\n"),
        module(MODULE + "[vm.options]\ncores = 3\n"),
        module(MODULE + checker),
        module(MODULE + checker + 'action = "swap"\n'),
        module(MODULE + checker.replace(".c]", ".d]")),
        module('preferred = "alpha"\n' + MODULE),
    ]
    everything = [digest(value) for value in (cluster(), module(), *others, *others_of_module)]
    assert len(set(everything)) == len(everything)


# ---- lines


def test_lines_of_keys_in_every_way_of_writing() -> None:
    text = """\
# comment
[a]
b = 1
"quoted" = 2
c.d = 3
text = \"\"\"
b2 = not a key
[not.a.table]
\"\"\"
  [ a . e ]
  f = { g = 1 }
[[many]]
x = 1
[many.inner]
y = 1
[[many]]
x = 2
[many.inner]
y = 2
"""
    tomllib.loads(text)
    assert line_of(text, ("a",)) == 2
    assert line_of(text, ("a", "b")) == 3
    assert line_of(text, ("a", "quoted")) == 4
    assert line_of(text, ("a", "c", "d")) == 5
    assert line_of(text, ("a", "b2")) == 2 and line_of(text, ("not", "a")) is None
    assert line_of(text, ("a", "e", "f", "g")) == 11
    assert line_of(text, ("many", 0, "x")) == 13 and line_of(text, ("many", 1, "x")) == 17
    assert line_of(text, ("many", 0, "inner", "y")) == 15 and line_of(text, ("many", 1, "inner", "y")) == 19
    assert line_of(text, ("missing",)) is None


# ---- anything at all

toml_values: st.SearchStrategy[Any] = st.recursive(
    st.booleans() | st.integers(-10, 10**6) | st.floats() | st.sampled_from(["", "a", "none", "10.0.0.9", "ü"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "kind", "x y"]), inner, max_size=3)
    ),
    max_leaves=6,
)


def written(value: Any) -> str:
    """A TOML value; inline, so that it fits anywhere."""
    if isinstance(value, dict):
        return "{" + ", ".join(f'"{key}" = {written(entry)}' for key, entry in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"'.replace("\n", "\\n") if isinstance(value, str) else repr(value)


@given(st.data(), toml_values)
@settings(max_examples=120, deadline=None)
def test_any_value_anywhere_is_accepted_or_a_problem_with_a_text(data: st.DataObject, value: Any) -> None:
    lines = (CLUSTER + "[security]\ntls = true\n").splitlines()
    places = [i for i, line in enumerate(lines) if " = " in line]
    place = data.draw(st.sampled_from(places))
    lines[place] = f"{lines[place].split(' = ')[0]} = {written(value)}"
    try:
        digest(parse_cluster("\n".join(lines)))
    except ConfigurationError as error:
        assert error.problems and all(str(problem).startswith("cluster.toml") for problem in error.problems)


@given(st.data(), toml_values)
@settings(max_examples=120, deadline=None)
def test_any_value_anywhere_in_a_module_is_accepted_or_a_problem(data: st.DataObject, value: Any) -> None:
    head = 'preferred = ""\nsplit_brain = "manual"\n' + MODULE
    tail = '[mirror]\ncache = "page"\n[vm.options]\nx = 1\n[loop]\nmax_loop = 1\n'
    lines = (head + tail + '[checkers.c]\nkind = "tcp"\naddress = "a:1"').splitlines()
    places = [i for i, line in enumerate(lines) if " = " in line]
    place = data.draw(st.sampled_from(places))
    lines[place] = f"{lines[place].split(' = ')[0]} = {written(value)}"
    try:
        digest(module("\n".join(lines)))
    except ConfigurationError as error:
        assert error.problems and all(str(problem).startswith("modules/web.toml") for problem in error.problems)
