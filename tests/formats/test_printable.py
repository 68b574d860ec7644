from flowopt.formats.printable import printable, printable_lines


def test_everything_that_a_terminal_could_obey_is_escaped() -> None:
    assert printable("a\x1b[2J\u202e\n\udce9") == r"a\x1b[2J\u202e\n\udce9"


def test_a_text_is_shortened_and_says_so() -> None:
    assert printable("a" * 9, 8) == "aaaaa..."
    assert printable("\x1b" * 9, 8) == r"\x1b\..."


def test_a_message_keeps_its_lines_and_their_ends() -> None:
    assert printable_lines("what\x07\n  try   again (exit 65)") == "what\\x07\n  try   again (exit 65)"
    assert [len(line) for line in printable_lines("a" * 10_000 + "\nb", 100).split("\n")] == [100, 1]
