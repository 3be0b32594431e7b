"""The id that pads: any id of the vocabulary, whatever a checkpoint names.

Padding is masked, so the choice changes no output; an id outside of the embedding is an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def padding_id(config: Any, tokenizer: Any | None) -> int:
    """Return the id of a text config's vocabulary that is named for padding, else for the end.

    The config is asked before the tokenizer. Of a list it is the first; where nothing is of use 0.
    """
    named = (
        getattr(config, "pad_token_id", None),
        getattr(tokenizer, "pad_token_id", None),
        getattr(config, "eos_token_id", None),
        getattr(tokenizer, "eos_token_id", None),
    )
    return next((token for value in named for token in usable(value, config.vocab_size)), 0)


def usable(value: Any, size: int | None) -> Iterator[int]:
    """Yield the ids in `value`, one or a list, that are within a vocabulary of `size`.

    None for the size is any.
    """
    for token in value if isinstance(value, list | tuple) else [value]:
        is_id = isinstance(token, int) and not isinstance(token, bool) and token >= 0
        if is_id and (size is None or token < size):
            yield token


def with_usable_padding(config: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a config.json with an id of the vocabulary for padding, or None.

    transformers takes no list there, and an embedding no id past its rows. Nested configs of text
    are mended too; the given values are left as they are.
    """
    mended = dict(config)
    if config.get("pad_token_id") is not None:
        size = config.get("vocab_size")
        within = usable(config["pad_token_id"], size if isinstance(size, int) else None)
        mended["pad_token_id"] = next(within, None)
    text = config.get("text_config")
    if isinstance(text, dict):
        mended["text_config"] = with_usable_padding(text)
    return mended
