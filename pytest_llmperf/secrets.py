"""Text without what nobody else may read: passwords in addresses, tokens, values of such options.

What is printed, stored or passed on and may quote a command line, an address, a server or a log
goes through `masked`. Every error of ours does so by itself (`errors.Shown`).
"""

from __future__ import annotations

import os
import re

HIDDEN = "***"
SHORTEST_VALUE = 8
"""Characters of the shortest value that is hidden wherever it stands.

A shorter one would be found in ordinary words.
"""

_OF_A_VOCABULARY = (
    r"(?<!pad.)(?<!eos.)(?<!bos.)(?<!unk.)(?<!sep.)(?<!cls.)(?<!mask.)(?<!per.)(?<!stop.)"
    r"(?<!last.)(?<!first.)(?<!next.)(?<!output.)(?<!input.)(?<!prompt.)(?<!special.)"
)
_NAME = (
    rf"(?:{_OF_A_VOCABULARY}token|passw(?:or)?ds?|passphrases?|secrets?|credentials?"
    r"|(?:api|access|secret|private)[-_]?keys?)(?![\w-])"
)
_LONGEST_NAME = 66
_OPTION = re.compile(r"--[\w-]*\Z")
# All repetitions are bounded: a hostile text takes a time that grows with its length alone.
_WORD = re.compile(r"[^\s'\"]+")
_USER = re.compile(r"://[^:@/?#]{0,256}:")
_LONE_USER_INFO = re.compile(
    r"(://)(?:hf_|sk-|gh[opsu]_|github_pat_|glpat-)[^\s:@/?#'\"]{8,256}(@)"
)
_AFTER_OPTION = re.compile(rf"(?i)({_NAME} {{1,8}})[^\s-]\S{{0,4096}}()")
_NAMED = re.compile(rf"""(?i)({_NAME}["']? {{0,8}}[=:](?!:) {{0,8}}["']?)[^\s&"',;]{{1,4096}}()""")
_BEARER = re.compile(
    r"""(?i)\b(bearer {1,8}|authorization["']? {0,4}[:=] {0,4}["']?basic {1,8})"""
    r"[\w.~+/=-]{4,4096}()"
)
_KNOWN = re.compile(r"\b(hf_|sk-|gh[opsu]_|github_pat_|glpat-|xox[abp]-)[\w-]{8,4096}()")
_SECRET_VARIABLE = re.compile(rf"(?i){_NAME}\Z")

_values: set[str] = set()


def hide(value: str) -> None:
    """Hide this value from now on wherever it stands in a text of this process.

    That is for a secret that comes without any mark: a key that a server quotes in an error.
    """
    if len(value) >= SHORTEST_VALUE:
        _values.add(value)


def masked(text: str) -> str:
    """Return the text with `***` in the place of each secret that can be told.

    By their form these are the password of an address (anything between the user and the last "@"),
    what follows a name such as `--hub-token`, `password=` or `api_key:`, a bearer's token, and the
    tokens of known issuers. By their value they are what `hide` was told, and what an environment
    variable of such a name holds.
    """
    for value in sorted(_known_values(), key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    text = _AFTER_OPTION.sub(_without_value, text)
    if "://" in text:
        text = _WORD.sub(_without_password, text)
    for pattern in (_LONE_USER_INFO, _NAMED, _BEARER, _KNOWN):
        text = pattern.sub(rf"\1{HIDDEN}\2", text)
    return text


def _without_value(match: re.Match[str]) -> str:
    """Return a name without the value behind it where it is an option's, else all as it is."""
    before = match.string[max(0, match.start() - _LONGEST_NAME) : match.start()]
    return f"{match[1]}{HIDDEN}" if _OPTION.search(before) else match[0]


def _without_password(word: re.Match[str]) -> str:
    """Return a word without the password of the address that it has, up to the last "@"."""
    user, end = _USER.search(word[0]), word[0].rfind("@")
    if user is None or end < user.end():
        return word[0]
    return f"{word[0][: user.end()]}{HIDDEN}{word[0][end:]}"


def _known_values() -> set[str]:
    """Return what is hidden by its value."""
    of_environment = {
        value
        for name, value in os.environ.items()
        if len(value) >= SHORTEST_VALUE and _SECRET_VARIABLE.search(name)
    }
    return _values | of_environment
