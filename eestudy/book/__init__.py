"""The book: run.ipynb once for each combination of a study, the chapters on its records, Sphinx. No torch here.

notebooks: one of them through papermill, and when that is not needed. run_pages: those of a study. build: all of it.
"""
