r"""BranchyNet (Teerapittayanon, McDanel and Kung 2016): a low entropy lets a sample leave.

Branches are trained by the sum of their cross-entropies, all with one weight here (`weighting: custom` gives others).
A sample leaves at the first exit whose softmax entropy is below a threshold :math:`h`:

.. math:: k(x) = \min \{k : -\textstyle\sum_c p_k(c \mid x) \log p_k(c \mid x) < h\},

else at the last. The training is SDN's, so the two share their phases; they differ in who leaves where.

.. code-block:: yaml

    architecture: resnet-tiny
    dataset: digits
    strategy: joint
    method: branchynet
"""

from eestudy.methods import Method

METHOD = Method("BranchyNet", exit_rule="entropy")
