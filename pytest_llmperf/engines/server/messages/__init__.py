"""From the bytes of a streamed answer to its messages, and from those to tokens with times."""
