"""What the session and a worker say to each other: messages, and the frames that carry them."""
