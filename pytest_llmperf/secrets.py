"""Text without what nobody else may read: passwords in addresses, tokens, values of such options.

What is printed, stored or passed on and may quote a command line or an address goes through
`masked`.
"""

from __future__ import annotations

import re

HIDDEN = "***"

_NAME = (
    r"[\w-]*(?:token|passw(?:or)?ds?|passphrases?|secrets?|credentials?"
    r"|(?:api|access|secret|private)[-_]?keys?)(?![\w-])"
)
_USER_INFO = re.compile(r"(://[^\s:@/?#'\"]*:)[^\s'\"]*(@)")
_OPTION = re.compile(rf"(?i)(--{_NAME}[ ]+)[^\s-]\S*()")
_NAMED = re.compile(rf"""(?i)(\b{_NAME}["']?[ ]*[=:](?!:)[ ]*["']?)[^\s&"',;]+()""")
_BEARER = re.compile(r"(?i)\b(bearer\s+)[\w.~+/=-]{8,}()")
_KNOWN = re.compile(r"\b(hf_|sk-|gh[opsu]_|github_pat_|glpat-|xox[abp]-)[\w-]{8,}()")


def masked(text: str) -> str:
    """Return the text with `***` in the place of each secret that can be told by its form.

    These are the password of an address (anything between the user and the last "@"), what follows
    a name such as `--hub-token`, `password=` or `api_key:`, a bearer's token, and the tokens of
    known issuers. A secret without any such mark cannot be told from other text.
    """
    for pattern in (_USER_INFO, _OPTION, _NAMED, _BEARER, _KNOWN):
        text = pattern.sub(rf"\1{HIDDEN}\2", text)
    return text
