"""The program a worker runs, and the messages it speaks.

Imports torch only through an engine, on Open.
"""
