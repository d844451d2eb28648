"""More files than may be held in memory: the kernel is asked to forget, and nothing is lost by it."""

import pytest

from tests.faults import end_on_mount, equal_after_stop, healthy, on_mount, start_on_mount, status, wait_until
from tests.mirror_pair import MirrorPair

pytestmark = pytest.mark.timeout(120)

MAKE = """
    os.mkdir('d')
    held = os.open('d/held', os.O_RDWR | os.O_CREAT)
    for number in range(5000):
        with open(f'd/{number}', 'w') as file:
            file.write(str(number))
    print('made', flush=True)
    sys.stdin.read()
    os.write(held, b'held')
    assert all(open(f'd/{number}').read() == str(number) for number in range(0, 5000, 7))
    assert sorted(os.listdir('d')) == sorted(['held', *map(str, range(5000))])
"""


def test_files_that_are_not_open_are_forgotten() -> None:
    with MirrorPair(source_arguments=["--known-objects", "1000"]) as pair:
        pair.start()
        child = start_on_mount(pair, MAKE)
        assert child.stdout is not None and child.stdout.readline() == b"made\n"
        wait_until(lambda: status(pair.source_state)["nodes"] <= 1100, "the kernel forgets")
        end_on_mount(pair, child)
        healthy(pair)
        assert on_mount(pair, "print(open('d/held').read())") == "held\n"
        equal_after_stop(pair)
