"""Whose turn it is."""

from server.delivery.attempt import Group
from server.delivery.backlog import LANES_LIMIT, Backlog
from server.delivery.window import Window
from server.next_hop import parse_next_hop
from storage.lanes import Lane
from storage.queue import Pick
from storage.records import Delivery, DeliveryState, Envelope, Recipient, Source


def delivery(number: int, domain: str = "peer.test") -> Delivery:
    recipient = Recipient("r@" + domain)
    return Delivery(
        id=f"dlv_{number}",
        organization_id="org_a",
        message_id=f"msg_{number}",
        recipient=recipient,
        domain=domain,
        state=DeliveryState.ACTIVE,
        tries=0,
        created_at=0,
        next_attempt_at=0,
        expires_at=1,
        lease="t",
        envelope=Envelope(None, (recipient,)),
        octets=1,
        source=Source.API,
    )


def group(number: int, domain: str = "peer.test") -> Group:
    return Group(domain, parse_next_hop("mx"), (delivery(number, domain),))


def lane(organization: str, domain: str, priority: int = 0) -> Lane:
    return Lane(organization, domain, priority, 0, 1000)


def test_organizations_are_leased_in_turn_and_higher_priority_first() -> None:
    backlog = Backlog(concurrency=100, per_domain_concurrency=10)
    backlog.note([lane("a", "x.test"), lane("a", "y.test", 5), lane("a", "z.test"), lane("b", "w.test")])
    assert [(pick.organization_id, pick.domain) for pick in backlog.choose()] == [
        ("a", "y.test"),
        ("b", "w.test"),
        ("a", "x.test"),
        ("a", "z.test"),
    ]


def test_whoever_was_served_last_is_last_next_time() -> None:
    backlog = Backlog(concurrency=100, per_domain_concurrency=10)
    backlog.note([lane("a", "x.test"), lane("b", "y.test"), lane("c", "z.test")])
    backlog.drained(Pick("c", "z.test", 0, 1))
    backlog.choose()
    backlog.note([lane("c", "z.test")])
    assert [pick.organization_id for pick in backlog.choose()] == ["a", "b", "c"]


def test_a_domain_shared_by_organizations_is_never_leased_beyond_its_room() -> None:
    backlog = Backlog(concurrency=100, per_domain_concurrency=10)
    backlog.note([lane("a", "x.test"), lane("b", "x.test"), lane("a", "x.test", 3)])
    assert sum(pick.limit for pick in backlog.choose()) == Window(10).ahead


def test_a_destination_starts_no_more_than_its_window() -> None:
    backlog = Backlog(concurrency=100, per_domain_concurrency=10)
    for number in range(9):
        backlog.add(group(number))
    turns = [backlog.next() for _ in range(4)]
    assert [turn is not None for turn in turns] == [True, True, False, False]


def test_unproven_destinations_take_at_most_half_of_the_slots() -> None:
    backlog = Backlog(concurrency=10, per_domain_concurrency=10)
    for number in range(20):
        backlog.add(group(number, f"d{number}.test"))
    started = []
    while (turn := backlog.next()) is not None:
        started.append(turn)
    assert len(started) == 5
    started[0].destination.window.succeeded()
    backlog.ended(started[0])
    assert backlog.next() is not None
    assert backlog.next() is None


def test_destinations_take_turns() -> None:
    backlog = Backlog(concurrency=100, per_domain_concurrency=10)
    for number in range(2):
        backlog.add(group(number, "a.test"))
        backlog.add(group(10 + number, "b.test"))
    domains = []
    while (turn := backlog.next()) is not None:
        domains.append(turn.group.domain)
    assert domains == ["a.test", "b.test", "a.test", "b.test"]


def test_what_is_settled_makes_room_again() -> None:
    backlog = Backlog(concurrency=100, per_domain_concurrency=10)
    backlog.note([lane("a", "peer.test")])
    for number in range(4):
        backlog.add(group(number))
    assert backlog.choose() == []
    while (turn := backlog.next()) is not None:
        backlog.ended(turn)
    backlog.settled("peer.test", 4)
    assert backlog.leased == 0
    assert [pick.limit for pick in backlog.choose()] == [4]


def test_lanes_are_bounded_and_forgotten_when_drained() -> None:
    backlog = Backlog(concurrency=10, per_domain_concurrency=10)
    backlog.note([lane("a", f"d{number}.test") for number in range(LANES_LIMIT + 10)])
    assert backlog.lanes == LANES_LIMIT
    assert backlog.full
    for number in range(LANES_LIMIT):
        backlog.drained(Pick("a", f"d{number}.test", 0, 1))
    assert backlog.lanes == 0
    assert backlog.choose() == []


def test_a_window_grows_by_one_and_halves() -> None:
    window = Window(10)
    for _ in range(20):
        window.succeeded()
    assert (window.size, window.proven) == (10, True)
    sizes = []
    for _ in range(5):
        window.failed()
        sizes.append(window.size)
    assert sizes == [5, 2, 1, 1, 1]
    assert not window.proven
    assert Window(1).size == 1
