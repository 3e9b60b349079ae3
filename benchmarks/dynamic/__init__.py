"""Placement inside a run, judged: whole curves of loss against steps from one run each."""
