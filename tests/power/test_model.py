"""The model of a disk after a power cut, and the reading of recorded calls, by small examples."""

from pathlib import Path

from tests.power import trace
from tests.power.model import PAGE, Kind, Recording, least, most

ROOT = "/data"


def hexed(text: str | bytes) -> str:
    octets = text.encode() if isinstance(text, str) else text
    return "".join(f"\\x{octet:02x}" for octet in octets)


class Script:
    """Lines as strace writes them, one call after the other, each ten nanoseconds long."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, name: str, arguments: str, result: str = "0") -> int:
        """Add a call; the moment between it and the next."""
        start = 100 * (len(self.lines) + 1)
        self.lines.append(f"1.{start:09d} {name}({arguments}) = {result} <0.000000010>")
        return 1_000_000_000 + start + 50

    def create(self, path: str) -> int:
        name = hexed(ROOT + path)
        return self.add("openat", f'AT_FDCWD<{hexed("/")}>, "{name}", O_WRONLY|O_CREAT, 0600', f"5<{name}>")

    def write(self, path: str, octets: bytes, offset: int) -> int:
        given = f'5<{hexed(ROOT + path)}>, "{hexed(octets)}", {len(octets)}, {offset}'
        return self.add("pwrite64", given, str(len(octets)))

    def rename(self, old: str, new: str) -> int:
        return self.add("rename", f'"{hexed(ROOT + old)}", "{hexed(ROOT + new)}"')

    def sync(self, path: str, name: str = "fsync") -> int:
        return self.add(name, f"5<{hexed(ROOT + path)}>")

    def recording(self, before: Path) -> Recording:
        before.mkdir(exist_ok=True)
        return Recording(before, ROOT, list(trace.parse(self.lines)))


def names(recording: Recording, cut: int, kind: Kind = Kind.ORDERED) -> tuple[set[str], set[str]]:
    """What is there at least and at most."""
    both = (recording.names_after(cut, kind, choose) for choose in (least, most))
    first, second = ({name.removeprefix(ROOT) for name in one} for one in both)
    return first, second


def test_a_line_of_strace_is_read_whole() -> None:
    script = Script()
    script.write("/a", b'"\n\0)', 7)
    (call,) = trace.parse(script.lines)
    assert (call.name, call.path, call.octets, call.numbers, call.result) == (
        "pwrite64", "/data/a", b'"\n\0)', (4, 7), 4,
    )  # fmt: skip
    assert call.end - call.start == 10


def test_calls_that_failed_or_never_ended_are_left_out() -> None:
    lines = ['1.000000001 rename("\\x61", "\\x62") = -1 ENOENT (No such file) <0.000000010>',
             '1.000000001 fsync(5<\\x61> <unfinished ...>']  # fmt: skip
    assert list(trace.parse(lines)) == []


def test_a_name_is_kept_from_the_sync_of_its_directory_on(tmp_path: Path) -> None:
    script = Script()
    created = script.create("/a")
    synced = script.sync("")
    renamed = script.rename("/a", "/b")
    recording = script.recording(tmp_path / "before")
    for kind in Kind:
        assert names(recording, created, kind) == (set(), {"/a"})
        assert names(recording, synced, kind) == ({"/a"}, {"/a"})
        assert names(recording, renamed, kind) == ({"/a"}, {"/b"})


def test_names_of_an_ordered_file_system_come_in_order(tmp_path: Path) -> None:
    script = Script()
    script.create("/a")
    script.create("/b")
    last = script.sync("/b")
    recording = script.recording(tmp_path / "before")
    assert names(recording, last, Kind.ORDERED)[0] == {"/a", "/b"}
    assert names(recording, last, Kind.LOOSE)[0] == set()


def test_octets_that_were_not_synced_may_be_there_page_by_page(tmp_path: Path) -> None:
    script = Script()
    script.create("/a")
    script.write("/a", b"1" * (2 * PAGE), 0)
    synced = script.sync("/a", "fdatasync")
    written = script.write("/a", b"2" * (2 * PAGE), 0)
    recording = script.recording(tmp_path / "before")
    file = recording.files["/data/a"]
    assert file is not None
    assert file.after(synced, most) == file.after(written, least) == b"1" * (2 * PAGE)
    assert file.after(written, most) == b"2" * (2 * PAGE)
    choices = iter((1, 1, 0))  # the change is there, the first page of it, and not the second
    mixed = file.after(written, lambda _count: next(choices))
    assert mixed == b"2" * PAGE + b"1" * PAGE


def test_a_write_that_was_going_on_at_the_cut_may_be_there(tmp_path: Path) -> None:
    script = Script()
    script.create("/a")
    moment = script.write("/a", b"x", 0) - 45
    file = script.recording(tmp_path / "before").files["/data/a"]
    assert file is not None
    assert (file.after(moment, least), file.after(moment, most)) == (b"", b"x")
