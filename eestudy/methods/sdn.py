r"""Shallow-Deep Networks (Kaya, Hong and Dumitras 2019).

An internal classifier after each stage reads a mix of max and average pooling (`heads.SDNPool`). A sample leaves at the
first exit whose largest softmax probability is above a threshold :math:`t`:
:math:`k(x) = \min \{k : \max_c p_k(c \mid x) > t\}`, else :math:`K`.
"""

TITLE = "Shallow-Deep Network"
EXIT_RULE = "max-probability"
