"""The main path: declare, open workers, warm up, sample, reduce, judge, record."""
