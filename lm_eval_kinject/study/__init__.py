"""Grids of runs, paired statistics over them, and the tables and figures they give."""
