"""What a study's trained runs come to, as records: dynamics at their checkpoints, evaluations of their predictions.

Start at `executor`: its table of all analyses, and the one way from runs to records. Nothing is trained.
"""
