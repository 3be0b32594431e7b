"""What is printed: the summary, the plan, the live line.

Reports only print; they judge nothing and raise nothing.
"""
