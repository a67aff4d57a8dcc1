"""The work of ``mapet compare``: tokens for all runs, the runs, their evaluations, and what is written in the end."""
