"""Proof that the tests can fail (T12): safeguards are taken out one at a time, and a test must go red.

``journal.py``, ``engine.py``, ``feed.py`` and ``service.py`` list them; ``python -m tests.mutations`` runs
all of them, and ``--table`` writes the table of docs/reliability.md. ``test_mutations.py`` runs the fast ones
with the other tests.
"""
