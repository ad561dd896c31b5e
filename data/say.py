"""One line to whoever reads the output. Apart from `data.progress`, which needs the storage."""


def say(text: str) -> None:
    """Print one line at once, whatever stands behind standard output."""
    print(text, flush=True)


def one_line(text: str) -> str:
    """Text that can be printed and written on one line: names of others may hold anything."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
