"""The scripted engine: no model, a virtual clock, and times that a test writes down."""
