"""What all routes share: errors, headers, health, metrics, the schema."""

import json
import re
from pathlib import Path

import pytest
import structlog

from server.http import models
from server.http.access import SCOPES
from server.http.metrics import Measure, MeasureKind, Metrics
from tests.http.world import ALL_SCOPES, World, problem


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "not_found"),
        ("GET", "/v1", 404, "not_found"),
        ("GET", "/v1/nothing", 404, "not_found"),
        ("GET", "/v1/inboxes/", 404, "not_found"),
        ("PUT", "/v1/inboxes", 405, "method_not_allowed"),
        ("POST", "/health", 405, "method_not_allowed"),
        ("GET", "/v1/inboxes?limit=%00", 400, "bad_request"),
        ("GET", "/v1/domains/a%00b", 400, "bad_request"),
        ("GET", "/v1/inboxes?cursor=" + "x" * 9000, 400, "bad_request"),
    ],
)
def test_what_no_route_answers_is_a_problem(
    world: World, method: str, path: str, status: int, code: str
) -> None:
    problem(world.ask(method, path, world.key(*ALL_SCOPES)), status, code)


def test_a_failure_is_500_without_a_word_of_its_cause_and_logged_with_its_route(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = world.key("inbox:read")

    async def fail(unit):
        raise RuntimeError("secret cause")

    world.ask("GET", "/v1/inboxes", key)
    monkeypatch.setattr(world.threads, "read", fail)
    with structlog.testing.capture_logs() as lines:
        answer = world.ask("GET", "/v1/inboxes", key)
    problem(answer, 500, "internal_error")
    assert "secret" not in answer.text
    assert [(line["event"], line["route"]) for line in lines if line["log_level"] == "error"] == [
        ("request failed", "/v1/inboxes")
    ]


def test_answers_are_not_cached_and_not_sniffed(world: World) -> None:
    answer = world.ask("GET", "/v1/inboxes", world.key("inbox:read"))
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", "Basic bWFrXw==", "Bearer mak_\xff", "bearer  mak_x", "Bearer " + "mak_" * 100],
)
def test_a_header_that_holds_no_key_is_401(world: World, header: str) -> None:
    answer = world.run(world.client.get("/v1/inboxes", headers={"Authorization": header.encode("latin-1")}))
    problem(answer, 401, "unauthenticated")


def test_the_scheme_of_a_key_is_read_in_any_case(world: World) -> None:
    header = {"Authorization": f"BEARER {world.key('inbox:read')}"}
    assert world.run(world.client.get("/v1/inboxes", headers=header)).status_code == 200


# ---- health ----


def test_health_and_readiness_are_one_word_each(world: World) -> None:
    assert world.ask("GET", "/health").json() == {"status": "ok"}
    assert world.ask("GET", "/ready").json() == {"status": "ready"}


@pytest.mark.parametrize("told", [{"ready": False, "where": "/secret"}, RuntimeError("/secret")])
def test_an_appliance_that_takes_no_mail_is_not_ready_and_says_no_more(world: World, told: object) -> None:
    def ask():
        if isinstance(told, Exception):
            raise told
        return told

    world.health = ask
    answer = world.ask("GET", "/ready")
    problem(answer, 503, "not_ready")
    assert "secret" not in answer.text
    assert world.ask("GET", "/health").status_code == 200


# ---- metrics ----


def scrape(world: World, address: str, headers: dict[str, str] | None = None, key: str | None = None):
    given = dict(headers or {})
    if key is not None:
        given["Authorization"] = f"Bearer {key}"
    return world.run(world.new_client(address).get("/metrics", headers=given))


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1"])
def test_metrics_are_told_to_this_machine(world: World, address: str) -> None:
    assert scrape(world, address).status_code == 200


def test_metrics_are_told_to_others_with_an_operators_key_alone(world: World) -> None:
    problem(scrape(world, "192.0.2.7"), 401, "unauthenticated")
    problem(scrape(world, "192.0.2.7", key=world.key(*ALL_SCOPES)), 403, "scope_missing")
    assert scrape(world, "192.0.2.7", key=world.key("operator")).status_code == 200


@pytest.mark.parametrize("name", ["Forwarded", "X-Forwarded-For", "X-Real-IP", "Via"])
def test_a_proxy_on_this_machine_is_not_this_machine(world: World, name: str) -> None:
    problem(scrape(world, "127.0.0.1", {name: "x"}), 401, "unauthenticated")


def test_metrics_count_requests_by_template_and_the_queue_by_state(world: World) -> None:
    key = world.key(*ALL_SCOPES)
    path = f"/v1/inboxes/{world.one.id}/messages"
    world.ask("POST", path, key, json={"to": ["a@far.example"]})
    for number in range(3):
        world.ask("GET", f"/stranger/{number}")
    text = scrape(world, "127.0.0.1").text
    sent = 'method="POST",route="/v1/inboxes/{inbox_id}/messages",status="202"'
    assert f"mailagents_http_requests_total{{{sent}}} 1.0" in text
    assert 'mailagents_http_requests_total{method="GET",route="(none)",status="404"} 3.0' in text
    assert 'mailagents_deliveries{state="scheduled"} 1.0' in text
    assert world.one.id not in text
    assert "stranger" not in text


def test_measures_of_other_parts_are_asked_at_each_scrape_and_a_failing_one_left_out() -> None:
    numbers = iter((1.0, 2.0))

    def fail():
        raise RuntimeError

    metrics = Metrics(
        (
            Measure("a_total", "A.", MeasureKind.COUNTER, lambda: {("x",): next(numbers)}, ("kind",)),
            Measure("b", "B.", MeasureKind.GAUGE, fail),
            Measure("c", "C.", MeasureKind.GAUGE, lambda: {(): 4.0}),
        )
    )
    first, second = metrics.expose().decode(), metrics.expose().decode()
    assert 'a_total{kind="x"} 1.0' in first
    assert 'a_total{kind="x"} 2.0' in second
    assert "\nc 4.0" in first
    assert re.search(r"^b ", first, re.MULTILINE) is None


# ---- the schema ----


def references(node: object) -> set[str]:
    if isinstance(node, dict):
        own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
        return own.union(*(references(one) for one in node.values()))
    if isinstance(node, list):
        return set().union(*(references(one) for one in node))
    return set()


# There is nothing to say but which domain.
BODILESS = frozenset({"/v1/domains/{name}/dkim/rotation"})


def test_the_schema_is_openapi_3_1_and_whole(world: World) -> None:
    document = world.ask("GET", "/v1/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    schemas = document["components"]["schemas"]
    assert {one.rpartition("/")[2] for one in references(document)} <= schemas.keys()
    assert not any(path.startswith("/console") for path in document["paths"])
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"], path
            assert operation["operationId"], path
            assert operation["tags"], path
            told = set(re.findall(r"{(\w+)}", path))
            named = {one["name"] for one in operation.get("parameters", []) if one["in"] == "path"}
            assert told == named, path
            if method in ("post", "patch") and path not in BODILESS:
                assert "requestBody" in operation, path
    ids = [one["operationId"] for operations in document["paths"].values() for one in operations.values()]
    assert len(ids) == len(set(ids))


def test_every_problem_is_as_its_schema_says(world: World) -> None:
    for answer in (
        world.ask("GET", "/v1/inboxes"),
        world.ask("GET", "/v1/inboxes", world.key("org:admin")),
        world.ask("GET", "/v1/nothing"),
    ):
        models.Problem.model_validate(json.loads(answer.text) | {}, strict=True)


def test_the_guide_names_every_route_with_its_scope(world: World) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "api.md").read_text("utf-8")
    told = set(re.findall(r"^\| `([A-Z]+ /v1/\S+)` \| `(\S+)` \|", guide, re.MULTILINE))
    document = world.app.openapi()
    served = {
        (f"{method.upper()} {path}", operation["security"][0]["key"][0])
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if "security" in operation
    }
    assert told == served
    for scope in SCOPES:
        assert f"| `{scope}` |" in guide


def test_the_guide_names_every_code(world: World) -> None:
    root = Path(__file__).parents[2]
    sources = "".join(one.read_text("utf-8") for one in (root / "server" / "http").glob("*.py"))
    codes = set(re.findall(r'Problem\(\s*\d{3},\s*"([a-z_]+)"', sources))
    assert len(codes) > 20
    guide = (root / "docs" / "api.md").read_text("utf-8")
    assert [code for code in sorted(codes) if f"`{code}`" not in guide] == []
