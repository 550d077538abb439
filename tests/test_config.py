"""Settings: defaults, sources, every mistake with its place, and the generated files."""

import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.config import (
    ConfigError,
    Listen,
    ListenKind,
    ListenSyntax,
    NextHop,
    NextHopKind,
    NextHopSyntax,
    Settings,
    generate,
    generated_files,
    locate_secret,
    parse_listen,
    parse_next_hop,
    read_secret,
)

ROOT = Path(__file__).parent.parent
MINIMAL = """\
[server]
hostname = "mail.example.com"
[tls]
certificate_file = "/etc/mail/chain.pem"
key_file = "/etc/mail/key.pem"
"""


def load(tmp_path, text, overrides=None, **environment):
    path = tmp_path / "mailagents.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return Settings.load(path, overrides, environment=environment)


def problems(tmp_path, text, overrides=None, **environment):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, overrides, **environment)
    return caught.value.problems


def test_a_file_sets_what_it_names_and_leaves_the_rest(tmp_path):
    settings = load(tmp_path, MINIMAL + "[smtp]\nmax_recipients = 200\n")
    assert settings.server.hostname == "mail.example.com"
    assert settings.smtp.max_recipients == 200
    assert settings.smtp.max_errors == Settings().smtp.max_errors
    assert settings.database_url == "sqlite:////var/lib/mailagents/mailagents.sqlite"


def test_overrides_win_over_the_environment_and_that_over_the_file(tmp_path):
    text = MINIMAL + "[smtp]\nmax_recipients = 200\nmax_errors = 5\nlisten_mx = []\n"
    settings = load(
        tmp_path,
        text,
        {"smtp.max_recipients": "400", "smtp.listen_mx": "tcp:127.0.0.1:0", "server.development": "true"},
        MAILAGENTS__SMTP__MAX_RECIPIENTS="300",
        MAILAGENTS__SMTP__MAX_ERRORS="7",
        MAILAGENTS__SERVER__ROLES='["smtp", "imap"]',
        MAILAGENTS__DELIVERY__ROUTES='{"example.net" = "capture"}',
        MAILAGENTS_ENV="/somewhere/else",
    )
    assert settings.smtp.max_recipients == 400
    assert settings.smtp.max_errors == 7
    assert settings.smtp.listen_mx == ("tcp:127.0.0.1:0",)
    assert settings.server.roles == ("smtp", "imap")
    assert settings.server.development is True
    assert settings.delivery.routes == {"example.net": "capture"}


def test_an_empty_override_empties_a_list():
    settings = Settings.load(None, {"server.development": "true", "smtp.listen_mx": ""}, environment={})
    assert settings.smtp.listen_mx == ()


def test_development_alone_makes_the_defaults_valid():
    Settings.load(None, {"server.development": "true"}, environment={})
    with pytest.raises(ConfigError) as caught:
        Settings.load(None, environment={})
    assert [problem.key for problem in caught.value.problems] == ["server.hostname", "tls.certificate_file"]


def test_every_mistake_is_reported_with_line_key_found_and_allowed(tmp_path):
    text = """\
# a comment
[server]
hostnam = "mail.example.com"
drain_seconds = "3"
data_directory = "var"
roles = [
  "smtp",
  "mda",
]

[smpt]
max_errors = 1

[dns]
timeout_seconds = 0.01
"log_level" = "info"
"""
    found = {
        problem.key: problem for problem in problems(tmp_path, text, {"tls.minimum_version": "1.1"}, HOME="/")
    }
    assert {key: problem.line for key, problem in found.items()} == {
        "server.hostnam": 3,
        "server.drain_seconds": 4,
        "server.data_directory": 5,
        "server.roles": 8,
        "smpt": 11,
        "dns.timeout_seconds": 15,
        "dns.log_level": 16,
        "tls.minimum_version": 0,
    }
    assert "did you mean server.hostname?" in found["server.hostnam"].message
    assert "did you mean smtp?" in found["smpt"].message
    assert "did you mean server.log_level?" in found["dns.log_level"].message
    assert (found["server.drain_seconds"].found, found["server.drain_seconds"].allowed) == (
        '"3"',
        "a whole number from 0 to 3600",
    )
    assert found["server.roles"].found == '"mda"'
    assert found["tls.minimum_version"].file == "command line"
    assert found["tls.minimum_version"].allowed == "1.2, 1.3"
    assert str(found["server.data_directory"]).endswith(
        'mailagents.toml:5: server.data_directory: the path must be absolute (found "var"; '
        "allowed: an absolute path)"
    )


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("[server\n", 1, "not TOML"),
        ("a = 1\nb = \n", 2, "not TOML"),
        ("a = 1\na = 2\n", 2, "not TOML"),
        ('a = """\n\n', 3, "not TOML"),
        (b"a = 1\n# \xff\n", 2, "not UTF-8"),
        ("a = " + "[" * 3000, 0, "nested too deeply"),
        ("#" * (5 << 20), 0, "the file is over"),
        ("server = 3\n", 1, "no table of settings"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused_with_its_line(tmp_path, text, line, word):
    found = problems(tmp_path, text)
    assert found[0].line == line
    assert word in found[0].message


def test_a_missing_file_is_a_problem_and_no_traceback(tmp_path):
    with pytest.raises(ConfigError) as caught:
        Settings.load(tmp_path / "none.toml", environment={})
    assert "cannot be read: No such file" in str(caught.value)


def test_unknown_overrides_are_refused_with_their_source(tmp_path):
    found = problems(tmp_path, MINIMAL, {"smtp.max_error": "1"}, MAILAGENTS__SERVER__NAME="x")
    assert [(problem.file, problem.key) for problem in found] == [
        ("environment", "server.name"),
        ("command line", "smtp.max_error"),
    ]


@pytest.mark.parametrize(
    ("text", "key", "word"),
    [
        ('[server]\nhostname = "box"', "server.hostname", "no fully qualified"),
        ('[server]\nhostname = "192.0.2.1"', "server.hostname", "no fully qualified"),
        ('[server]\nhostname = "a..b"', "server.hostname", "no fully qualified"),
        ('[server]\nroles = ["smtp", "smtp"]', "server.roles", "twice"),
        ('[tls]\ncertificate_file = "/c.pem"', "tls.key_file", "together"),
        ('[tls]\nkey_file = "/k.pem"', "tls.certificate_file", "together"),
        ('[smtp]\nlisten_submissions = ["tcp:0.0.0.0:465"]', "smtp.listen_submissions", "write tls:"),
        ('[smtp]\nlisten_submission = ["tls:0.0.0.0:587"]', "smtp.listen_submission", "write tcp:"),
        ('[imap]\nlisten = ["tcp:0.0.0.0:25"]', "imap.listen", "already taken by smtp.listen_mx"),
        ('[smtp]\nlisten_mx = ["tcp:*:25"]', "smtp.listen_mx", "is no IP address"),
        ('[store]\ndatabase_url = "mysql://x"', "store.database_url", "no address of"),
        ('[store]\ndatabase_url = "sqlite:///relative"', "store.database_url", "no address of"),
        ("[delivery]\nretry_first_seconds = 20000", "delivery.retry_first_seconds", "longer than"),
        ("[delivery]\nconcurrency = 5", "delivery.per_domain_concurrency", "more than concurrency"),
        ('[delivery]\ndefault_route = "smtp:host"', "delivery.default_route", "none of mx"),
        ('[delivery.routes]\n"Example.net" = "mx"', "delivery.routes", "no domain"),
        ('[delivery.routes]\n"example.net" = "post"', "delivery.routes", "none of mx"),
        ('[dns]\nservers = ["dns.example.net"]', "dns.servers", "is no IP address"),
        ('[control]\nsocket = "/' + "x" * 200 + '"', "control.socket", "107 octets"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(tmp_path, text, key, word):
    found = [problem for problem in problems(tmp_path, text) if problem.key == key]
    assert any(word in problem.message for problem in found), found


def test_checks_between_settings_are_reported_beside_a_faulty_one(tmp_path):
    text = '[server]\nhostname = "box"\ndrain_seconds = "x"\n'
    assert [problem.key for problem in problems(tmp_path, text)] == [
        "server.hostname",
        "server.drain_seconds",
    ]


def test_roles_that_are_not_chosen_need_no_certificate():
    Settings.load(
        None, {"server.hostname": "a.example", "server.roles": '["delivery", "http"]'}, environment={}
    )


@pytest.mark.parametrize("name", ["tls.key_file", "store.database_password_file"])
def test_a_secret_that_stands_where_its_file_belongs_is_never_printed(tmp_path, name):
    section, _, key = name.partition(".")
    for secret in ("hunter2", "-----BEGIN PRIVATE KEY-----\nabc", "/" + "k" * 300 + "\n"):
        text = f'[{section}]\n{key} = """{secret}"""\n'
        assert secret not in str(problems(tmp_path, text))
        assert "a text of" in str(problems(tmp_path, text))


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://mail:hunter2@db/mail",
        "postgresql+psycopg://mail:hun/ter2@db/mail",
        "postgresql+psycopg://mail@db/mail?password=hunter2",
        "postgres://mail:hunter2@db/mail",
    ],
)
def test_a_password_in_the_database_url_is_refused_and_masked(tmp_path, url):
    text = str(ConfigError(problems(tmp_path, f'[store]\ndatabase_url = "{url}"\n')))
    assert "store.database_url" in text
    assert "hunter2" not in text
    assert "ter2" not in text


def test_show_is_a_configuration_with_every_setting(tmp_path):
    settings = load(tmp_path, MINIMAL + '[delivery.routes]\n"example.net" = "lmtp:[::1]:24"\n')
    shown = settings.show()
    assert load(tmp_path, shown) == settings
    assert 'hostname = "mail.example.com"  # default: "localhost"' in shown


def test_secrets_are_read_from_a_path_or_a_credential(tmp_path):
    (tmp_path / "password").write_text("hunter2\nsecond line\n")
    environment = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert locate_secret("/etc/x", environment) == Path("/etc/x")
    assert read_secret("credential:password", environment) == "hunter2"
    assert read_secret(str(tmp_path / "password"), {}) == "hunter2"
    with pytest.raises(LookupError):
        locate_secret("credential:password", {})


@pytest.mark.parametrize("reference", ["credential:../x", "credential:", "relative/path", "credential:a/b"])
def test_a_credential_is_a_name_and_no_path(tmp_path, reference):
    found = problems(tmp_path, f'[tls]\nkey_file = "{reference}"\ncertificate_file = "/c"\n')
    assert "tls.key_file" in [problem.key for problem in found]


def test_generated_files_are_current():
    for name, text in generated_files().items():
        assert (ROOT / name).read_text("utf-8") == text, f"{name}: run python -m server.config"


def test_the_shipped_file_is_accepted_as_it_is(tmp_path):
    settings = load(tmp_path, generate())
    assert settings.server.hostname == "mail.example.com"


def test_the_shipped_file_holds_every_setting_at_its_default(tmp_path):
    text = generate()
    active = re.sub(r"(?m)^#(\w+ = )", r"\1", text)
    values, defaults = tomllib.loads(active), Settings()
    for section in Settings.model_fields:
        table = getattr(defaults, section)
        assert set(values[section]) == set(type(table).model_fields)
    examples = set(re.findall(r"(?m)^(\w+) = ", text))
    assert examples == {"hostname", "certificate_file", "key_file"}
    loaded = load(tmp_path, active)
    for section in Settings.model_fields:
        for name in set(values[section]) - examples:
            assert getattr(getattr(loaded, section), name) == getattr(getattr(defaults, section), name)


def test_every_setting_is_documented_with_a_unit_or_its_choices():
    for section, field in Settings.model_fields.items():
        for name, declared in field.annotation.model_fields.items():
            assert (declared.description or "").endswith("."), f"{section}.{name}"
            if declared.annotation in {int, float}:
                assert name.endswith(("_seconds", "_octets")) or declared.json_schema_extra["unit"]
                assert {type(limit).__name__ for limit in declared.metadata} == {"Ge", "Le"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tcp:0.0.0.0:25", Listen(ListenKind.TCP, "0.0.0.0", 25)),
        ("tls:[::1]:465", Listen(ListenKind.TLS, "::1", 465)),
        ("tcp:localhost:0", Listen(ListenKind.TCP, "127.0.0.1", 0)),
        ("systemd:smtp", Listen(ListenKind.SYSTEMD, name="smtp")),
        ("unix:/run/a,b.sock", Listen(ListenKind.UNIX, name="/run/a,b.sock")),
    ],
)
def test_listeners_are_read_and_written_back(text, expected):
    assert parse_listen(text) == expected
    assert parse_listen(str(expected)) == expected


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "must begin with"),
        ("udp:0.0.0.0:25", "must begin with"),
        ("tcp", "must begin with"),
        ("tcp:25", "lacks a port"),
        ("tcp:0.0.0.0:", "no port"),
        ("tcp:0.0.0.0:65536", "no port"),
        ("tcp:0.0.0.0:²", "no port"),
        ("tcp::::25", "in brackets"),
        ("tcp:example.net:25", "no IP address"),
        ("tcp:0.0.0.0:25,tls", "one option"),
        ("systemd:smtp,tls", "one option"),
        ("systemd:", "no FileDescriptorName"),
        ("systemd:a:b", "no FileDescriptorName"),
        ("unix:run/x", "absolute"),
        ("unix:/" + "x" * 107, "longer than 107"),
    ],
)
def test_faulty_listeners_are_refused_with_the_reason(text, word):
    with pytest.raises(ListenSyntax, match=re.escape(word)):
        parse_listen(text)


@given(
    st.text(max_size=30), st.sampled_from(["", "tcp:", "tls:", "systemd:", "unix:", "tcp:[", "tcp:0.0.0.0:"])
)
def test_any_listener_text_is_read_or_refused(rest, kind):
    try:
        listen = parse_listen(kind + rest)
    except ListenSyntax:
        return
    assert parse_listen(str(listen)) == listen


def test_next_hops_are_read():
    assert parse_next_hop("mx") == NextHop(NextHopKind.MX)
    assert parse_next_hop("smtp:relay.example.net:587") == NextHop(NextHopKind.SMTP, "relay.example.net", 587)
    assert parse_next_hop("lmtp:[::1]:24") == NextHop(NextHopKind.LMTP, "::1", 24)
    for text in ("", "MX", "smtp:host", "smtp:host:0", "smtp:host:70000", "smtp:::1:25", "esmtp:a:1", "mx "):
        with pytest.raises(NextHopSyntax):
            parse_next_hop(text)
