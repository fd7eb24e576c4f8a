"""Seeded tasks that ask for what a long text says once: to train on, and to measure by (evals/recall)."""
