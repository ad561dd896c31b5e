"""What a secret looks like: the one list of names, for settings, jobs, diffs and messages.

A setting is kept and shown, so none may hold a secret. Names say most of them; values say those of
URLs, of pairs NAME=VALUE, and some keys that have a shape of their own.
"""

import re

NAMES = re.compile(
    r"KEY|SECRET|TOKEN(?!IZER)|PASSW|PASSPHRASE|PASS(?=$|[_.-])|CREDENTIAL|JWT|CONNECTION_?STRING"
    r"|SIGNATURE|^SIG$|^PWD$|^X-(AMZ|GOOG)-",
    re.IGNORECASE,
)
# Of environments: a folder that every shell has there.
FOLDERS = ("PWD", "OLDPWD")
USER = re.compile(r"(?<=://)[^/\s@'\"]*@")  # and a password, most often
IN_URL = re.compile(r"([?&;])([\w.%-]+)=([^&;\s'\"]+)")  # parameters
PAIR = re.compile(r"([\w.-]+)=[^=\s]")
SHAPES = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY|\bAKIA[A-Z0-9]{16}\b|\bhf_[A-Za-z0-9]{30,}|\bgh[a-z]_\w{36,}"
    r"|\beyJ[\w-]+\.eyJ|\b(?:Bearer|Basic) \S{8,}"
)


def is_secret_name(name: str) -> bool:
    """Whether a variable or a parameter of this name holds a secret."""
    return name.upper() not in FOLDERS and bool(NAMES.search(name))


def has_credentials(text: str) -> bool:
    """Whether a URL in a text holds a user, a password, a key or a signature."""
    if "://" not in text:
        return False
    named = any(NAMES.search(found[2]) for found in IN_URL.finditer(text))
    return named or bool(USER.search(text))


def holds_secret(value: str) -> bool:
    """Whether the value of a variable, or a flag, looks like a secret whatever its name."""
    pairs = any(NAMES.search(found[1]) for found in PAIR.finditer(value))
    return pairs or has_credentials(value) or bool(SHAPES.search(value))


def without_credentials(text: str) -> str:
    """A text in whose URLs users, passwords, keys and signatures are masked."""

    def mask(found: re.Match[str]) -> str:
        sign, name, _ = found.groups()
        return f"{sign}{name}=***" if NAMES.search(name) else found[0]

    return USER.sub("***@", IN_URL.sub(mask, text))
