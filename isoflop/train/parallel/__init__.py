"""Several processes that train one run together; imported only where there are several.

Results equal those of one process up to the order of sums, whatever the layout: the compute type is
that of :mod:`isoflop.train.precision` everywhere, and nothing else is rounded on its way between
ranks. That is why FSDP's own mixed precision is not used: it would gather the tables of the routed
families, which compute in float32, rounded to bfloat16.
"""

from isoflop.train.parallel.environment import ranks_from_environment

__all__ = ["ranks_from_environment"]
