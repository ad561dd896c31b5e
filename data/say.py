"""One line to whoever reads the output. Apart from `data.progress`, which needs the storage."""


def say(text: str) -> None:
    """Print one line at once, whatever stands behind standard output."""
    print(text, flush=True)
