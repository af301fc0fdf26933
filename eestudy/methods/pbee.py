r"""Patience-based early exit (Zhou et al. 2020, PABEE): a prediction that no longer changes lets a sample leave.

Deeper exits weigh more: the loss is

.. math:: L = \frac{\sum_{k=1}^K k\, L_k}{\sum_{k=1}^K k},

`weighting: depth-linear`, where a phase has several exits and the run does not name another weighting. A sample leaves
at the first exit that is the last of more than :math:`t` exits in a row with the same predicted class. In regression
two predictions count as the same when they differ by less than a threshold.

.. code-block:: yaml

    architecture: vit1d
    dataset: mnist1d
    strategy: joint
    method: pbee
"""

from eestudy.methods import Method

METHOD = Method("Patience-based early exit", exit_rule="patience", settings={"weighting": "depth-linear"})
