"""From a trained model and data to an early-exit network that fits a budget: `eestudy adapt`, or `eestudy.adapt`.

steps.py does it, page.py writes what came of it as one HTML file.
"""
