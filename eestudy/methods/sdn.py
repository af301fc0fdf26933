r"""Shallow-Deep Networks (Kaya, Hong and Dumitras 2019): the largest softmax probability lets a sample leave.

An internal classifier after each stage reads a mix of max and average pooling (`heads.SDNPool`). A sample leaves at the
first exit whose largest softmax probability is above a threshold :math:`t`:

.. math:: k(x) = \min \{k : \max_c p_k(c \mid x) > t\},

else at the last, :math:`K`. The loss is the mean of the exits' cross-entropies.

.. code-block:: yaml

    architecture: resnet-tiny
    dataset: digits
    strategy: mixed
    method: sdn
"""

from eestudy.methods import Method

METHOD = Method("Shallow-Deep Network")
