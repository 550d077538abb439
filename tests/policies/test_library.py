"""What the CEL library does by itself: the reasons for the checks of our own, and the limits they rest on."""

import subprocess
import sys
import threading

import pytest

from policies import library


def value(text, **facts):
    return library.program(text).execute(library.context(facts))


def test_the_library_compiles_unknown_names_and_swallows_errors_beside_or():
    library.program("no_such_fact == 'x'")
    assert value("no_such_fact == 'x' || true") is True


def test_the_library_compares_across_types_without_a_word():
    assert value("1 == 'a'") is False


def test_the_library_compiles_a_pattern_only_when_it_is_used():
    # The reason that matches is refused: the mistake, and the cost, come with each evaluation.
    program = library.program("s.matches('(')")
    with pytest.raises(RuntimeError):
        program.execute(library.context({"s": "x"}))


def test_the_size_of_a_text_counts_octets():
    assert value("size(s)", s="é") == 2


@pytest.mark.parametrize("odd", ["\ud800", 10**400, object(), {1}])
def test_values_that_cel_cannot_hold_raise_one_of_the_named_errors(odd):
    with pytest.raises(library.EVALUATION_ERRORS):
        value("x == x", x=odd)


def test_programs_may_be_executed_in_another_thread():
    program, found = library.program("s == 'x'"), []
    worker = threading.Thread(target=lambda: found.append(program.execute(library.context({"s": "x"}))))
    worker.start()
    worker.join()
    assert found == [True]


def test_the_library_brings_no_terminal_toolkit_into_the_daemon():
    script = "import sys, policies.engine; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert "cel" in loaded
    assert not {"prompt_toolkit", "typer", "rich"} & set(loaded)
