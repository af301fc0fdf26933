"""Training: what a phase is, which strategies there are, and the one loop. Import from the modules."""
