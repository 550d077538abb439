"""The console: who gets in, what is shown, and that a page can do no harm."""

import re
from dataclasses import replace

import httpx
import pytest

from server.http import sessions
from storage import accounts, events
from storage.records import Event, Verdict
from tests.http.world import ALL_SCOPES, SECOND, World

ORIGIN = {"Sec-Fetch-Site": "same-origin"}


class Browser:
    """A client with a cookie jar that a person could be."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.client: httpx.AsyncClient = world.new_client("198.51.100.77")

    def get(self, path: str, **more) -> httpx.Response:
        return self.world.run(self.client.get(path, **more))

    def post(self, path: str, form: dict[str, str], headers: dict[str, str] | None = None) -> httpx.Response:
        return self.world.run(
            self.client.post(path, data=form, headers=ORIGIN if headers is None else headers)
        )

    def sign_in(self, key: str) -> httpx.Response:
        return self.post("/console/sign-in", {"key": key})


@pytest.fixture
def browser(world: World) -> Browser:
    return Browser(world)


@pytest.fixture
def inside(world: World, browser: Browser) -> Browser:
    assert browser.sign_in(world.key("operator")).status_code == 303
    return browser


def mark_of(page: httpx.Response) -> str:
    found = re.search(r'name="mark" value="([^"]+)"', page.text)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("path", ["/console", "/console/messages", "/console/messages/msg_x"])
def test_a_stranger_is_sent_to_the_door(browser: Browser, path: str) -> None:
    answer = browser.get(path)
    assert (answer.status_code, answer.headers["location"]) == (303, "/console/sign-in")
    assert answer.content == b""


def test_an_operators_key_opens_and_the_cookie_is_kept_from_scripts_and_other_sites(
    world: World, browser: Browser
) -> None:
    answer = browser.sign_in(world.key("operator"))
    assert (answer.status_code, answer.headers["location"]) == (303, "/console")
    cookie = answer.headers["set-cookie"].lower()
    for word in ("httponly", "samesite=strict", "path=/console"):
        assert word in cookie
    assert "secure" not in cookie
    assert browser.get("/console").status_code == 200
    secure = world.new_client()
    secure.base_url = httpx.URL("https://mail.example.org")
    form = {"key": world.key("operator")}
    answer = world.run(secure.post("/console/sign-in", data=form, headers=ORIGIN))
    assert "secure" in answer.headers["set-cookie"].lower()


@pytest.mark.parametrize("which", ["unknown", "lacking", "bound", "expired", "empty", "long"])
def test_other_keys_are_turned_away_in_words(world: World, browser: Browser, which: str) -> None:
    keys = {
        "unknown": "mak_unknown",
        "lacking": world.key(*ALL_SCOPES),
        "bound": world.key("operator", inbox=world.one),
        "expired": world.key("operator", expires_at=world.clock.now()),
        "empty": "",
        "long": "mak_" + "x" * 3000,
    }
    answer = browser.sign_in(keys[which])
    assert answer.status_code in (401, 403)
    assert 'role="alert"' in answer.text
    assert "set-cookie" not in answer.headers
    assert browser.get("/console").status_code == 303


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
    ],
)
def test_a_form_from_another_site_signs_nobody_in_or_out(
    world: World, browser: Browser, headers: dict[str, str]
) -> None:
    key = world.key("operator")
    assert browser.post("/console/sign-in", {"key": key}, headers).status_code == 403
    browser.sign_in(key)
    mark = mark_of(browser.get("/console"))
    assert browser.post("/console/sign-out", {"mark": mark}, headers).status_code == 403
    assert browser.get("/console").status_code == 200


def test_signing_out_needs_the_forms_mark_and_ends_the_session(inside: Browser) -> None:
    cookies = dict(inside.client.cookies)
    assert inside.post("/console/sign-out", {"mark": "guess"}).status_code == 403
    assert inside.post("/console/sign-out", {}).status_code == 403
    mark = mark_of(inside.get("/console"))
    assert inside.post("/console/sign-out", {"mark": mark}).status_code == 303
    inside.client.cookies.update(cookies)
    assert inside.get("/console").status_code == 303


def test_a_session_ends_when_idle_and_after_its_lifetime(world: World, inside: Browser) -> None:
    world.clock.advance(sessions.IDLE_SECONDS - 1)
    assert inside.get("/console").status_code == 200
    world.clock.advance(sessions.IDLE_SECONDS)
    assert inside.get("/console").status_code == 303
    inside.sign_in(world.key("operator"))
    for _ in range(sessions.LIFETIME_SECONDS // 3000):
        assert inside.get("/console").status_code == 200
        world.clock.advance(3000)
    world.clock.advance(3000)
    assert inside.get("/console").status_code == 303


def test_a_revoked_key_ends_its_sessions(world: World, browser: Browser) -> None:
    secret, key = world.key_with_id("operator")
    browser.sign_in(secret)
    world.run(
        world.threads.write(
            lambda c: accounts.revoke_api_key(c, organization_id=world.ours, key_id=key.id, at=1)
        )
    )
    assert browser.get("/console").status_code == 303


def test_sessions_are_bounded_and_the_one_longest_unseen_goes() -> None:
    table = sessions.Sessions()
    tokens = [
        table.open(organization_id="o", key_id="k", at=number * SECOND)
        for number in range(sessions.SESSIONS_LIMIT)
    ]
    table.find(tokens[0], at=2000 * SECOND)
    table.open(organization_id="o", key_id="k", at=2000 * SECOND)
    assert table.find(tokens[0], at=2000 * SECOND) is not None
    assert table.find(tokens[1], at=2000 * SECOND) is None
    assert table.find("", at=2000 * SECOND) is None


@pytest.mark.parametrize(
    "path", ["/console", "/console/sign-in", "/console/messages", "/console/messages/msg_x"]
)
def test_every_page_forbids_scripts_frames_and_caches(inside: Browser, path: str) -> None:
    answer = inside.get(path)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "script-src" not in policy
    assert "unsafe" not in policy
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert "<script" not in answer.text
    assert "style=" not in answer.text


def test_the_overview_counts_and_tells_what_happened(world: World, inside: Browser) -> None:
    message_id = world.deliver(world.one)
    page = inside.get("/console").text
    assert world.one.address in page
    assert f"/console/messages/{message_id}" in page
    assert "Placed in an inbox" in page


def test_the_operator_sees_envelopes_of_all_and_no_subject(world: World, inside: Browser) -> None:
    ours = world.deliver(world.one)
    theirs = world.deliver(world.theirs)
    page = inside.get("/console/messages").text
    assert ours in page
    assert theirs in page
    assert "ada@far.example" in page
    for path in ("/console/messages", f"/console/messages/{ours}", f"/console/messages/{theirs}"):
        assert "Hello W" not in inside.get(path).text


def test_a_key_that_may_read_sees_subjects_of_its_own_organization_alone(
    world: World, browser: Browser
) -> None:
    ours, theirs = world.deliver(world.one), world.deliver(world.theirs)
    browser.sign_in(world.key("operator", "message:read"))
    assert browser.get("/console/messages").text.count("Hello Wörld") == 1
    assert "Hello Wörld" in browser.get(f"/console/messages/{ours}").text
    assert "Hello Wörld" not in browser.get(f"/console/messages/{theirs}").text


def test_the_list_goes_on_to_older_ones(world: World, inside: Browser) -> None:
    made = [world.deliver(world.one) for _ in range(52)]
    first = inside.get("/console/messages").text
    link = re.search(r'href="(/console/messages\?before=[^"]+)"', first)
    assert link is not None
    rest = inside.get(link[1]).text
    assert sum(one in first for one in made) == 50
    assert sum(one in rest for one in made) == 2
    assert "before=" not in rest


def test_a_message_page_shows_timeline_verdicts_and_the_remotes_words(world: World, inside: Browser) -> None:
    step = Event(
        "evt_" + "0" * 26,
        "message.deferred",
        world.clock.now(),
        world.ours,
        None,
        data={
            "code": 451,
            "enhanced": "4.7.1",
            "text": "Greylisted <later>",
            "next_attempt_at": 0,
            "host": "mx.far",
        },
    )
    message_id = world.deliver(world.one, verdicts=(Verdict("dmarc", "fail", "far.example"),))

    def unit(connection) -> None:
        events.append(connection, [replace(step, message_id=message_id)])

    world.run(world.threads.write(unit))
    page = inside.get(f"/console/messages/{message_id}").text
    assert "451 4.7.1 Greylisted &lt;later&gt;" in page
    assert "Deferred: will be tried again" in page
    assert '<span class="badge bad">fail</span>' in page
    assert "mx.far" in page


def test_what_strangers_write_is_escaped(world: World, browser: Browser) -> None:
    attack = '"><script>alert(1)</script>{{7*7}}'
    content = f"From: a@far.example\r\nSubject: {attack}\r\n\r\nx\r\n".encode()
    message_id = world.deliver(
        world.one,
        content,
        sender="<b>@far.example",
        verdicts=(Verdict("spf", "<i>", "<u>", attack),),
    )
    browser.sign_in(world.key("operator", "message:read"))
    for path in ("/console", "/console/messages", f"/console/messages/{message_id}"):
        page = browser.get(path).text
        for raw in ("<script>", "<b>@", "<i>", "<u>"):
            assert raw not in page
    assert "{{7*7}}" in browser.get("/console/messages").text


@pytest.mark.parametrize("message_id", ["msg_x", "msg_" + "0" * 26, "%3Cscript%3E", "'"])
def test_a_message_that_is_not_there_is_a_page_that_says_so(inside: Browser, message_id: str) -> None:
    answer = inside.get(f"/console/messages/{message_id}")
    assert answer.status_code == 404
    assert "<script>" not in answer.text


def test_static_files_are_two_and_no_path_leads_out(browser: Browser) -> None:
    assert browser.get("/console/static/console.css").headers["content-type"].startswith("text/css")
    assert browser.get("/console/static/icon.svg").headers["content-type"] == "image/svg+xml"
    for name in ("../console.py", "%2e%2e%2fconsole.py", "console.py", ""):
        assert browser.get(f"/console/static/{name}").status_code == 404


def test_a_form_too_large_is_413(browser: Browser) -> None:
    assert browser.sign_in("x" * 5000).status_code == 413
    assert browser.post("/console/sign-in", {str(n): "x" for n in range(30)}).status_code == 400


def test_guessing_keys_is_slowed_down(browser: Browser) -> None:
    answers = [browser.sign_in(f"mak_{number}").status_code for number in range(25)]
    assert answers[0] == 401
    assert answers[-1] == 429
