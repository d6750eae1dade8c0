"""What torch's allocator holds, by default and where its segments grow."""

from devctl.models.tracing import segments
from devctl.models.tracing.held import Held, held

MIB = 2**20


def test_what_is_held_is_told_in_parts_that_add_up_to_what_is_reserved() -> None:
    # 5 of 20 MiB, 21 of 22; 40 and 41 of 42 one after another, of which one goes back where memory is short
    requests = [(4, 5 * MIB), (0, 22 * MIB), (0, 0), (1, 21 * MIB), (2, 40 * MIB), (2, 0), (3, 41 * MIB)]
    found = held([requests])
    # 68 MiB of pages hold the same, and a page is for what is not followed
    assert [top // MIB for top in found.tops][:4] == [67, 69, 84, 124]
    assert found == Held(allocated=67 * MIB, rounded=2 * MIB, gaps=15 * MIB, given_back=40 * MIB, paged=found.paged)
    assert 20 * MIB <= found.paged <= 60 * MIB
    assert found.pages == found.paged - 2 * MIB
    assert segments.most_given(requests) == 69 * MIB
    assert held([]) == Held()
    most = Held.most([found, Held(allocated=70 * MIB)])
    assert [top // MIB for top in most.tops][:4] == [70, 70, 84, 124]
