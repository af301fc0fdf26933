r"""Multi-scale dense networks (Huang et al. 2018): convolutional classifiers, and budgeted batch classification.

The loss is the plain sum of the exits' cross-entropies (here their mean), without gradient scaling. On maps the heads
are the paper's, two strided convolutions before the linear layer (`head: msdnet`); features of another kind have their
usual head. Under a budget :math:`B` a share

.. math:: q_k = z\, q^k (1 - q) \propto q^k

of the samples leaves at exit :math:`k`, those with the largest probabilities first; :math:`q` is the largest that
:math:`\sum_k q_k C_k \leq B` allows on validation data (`evaluation.calibrate`, method "geometric"). The backbone
belongs to the paper as well, but is a choice of its own here: `architecture: msdnet`.

.. code-block:: yaml

    architecture: msdnet
    dataset: cifar100
    strategy: joint
    method: msdnet
"""

from eestudy.methods import Method

METHOD = Method("Multi-scale dense network", head=lambda kind: "msdnet" if kind == "maps" else "auto")
