"""The history of runs.

Import its modules where they are used: SQLAlchemy is loaded only when a run is stored.
"""
