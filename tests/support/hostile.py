"""Names and reasons that would break a page if they were taken for what they look like."""

from __future__ import annotations

from hypothesis import strategies as st

HOSTILE = (
    "<script>alert(1)</script>",
    "</code></td></tr></table><img src=x onerror=alert(1)>",
    "a|b\\|c\\\\|d",
    "two\nlines\r\nand\u2028more",
    "%0A::error file=/etc/passwd::injected%0D",
    "\n::error::injected\n::set-output name=x::y",
    "::add-mask::secret",
    "title=x,file=y,line=1",
    "\x1b[31mred\x1b[0m\x07\x00",
    "\u202egnp.exe\u2066",
    "[link](https://evil.example) ![i](https://evil.example/i.png) <https://evil.example>",
    "www.evil.example https://evil.example @octocat #1 a@b.c",
    "`code` ``x` *em* __strong__ _em_ ~~gone~~ $x$",
    "&lt;b&gt; &amp; &#60;",
    "# heading\n- list\n> quote\n\n    code",
    "שלום עולם",
    "数据 😀",
    'quote " back\\slash',
    "\ud800 lone",
    "x" * 10_000,
    " ",
    "",
)
ANY = st.text(st.characters(codec=None), max_size=60) | st.sampled_from(HOSTILE)
