"""Make onnxscript's optimizer compare constants exactly."""

from __future__ import annotations

from functools import cache


@cache
def demand_exact_constants() -> None:
    """Let the optimizer's rules take only 0 for 0 and only 1 for 1, from now on, in this process.

    By default a rule takes constants within 1e-8 for its own: `x + 0` then removes the epsilon of 1e-12 that
    transformers gives its LayerNorms and L2 norms, and a norm of equal values becomes NaN. There is no option for it.
    """
    from onnxscript import rewriter

    for rule in getattr(rewriter, "_DEFAULT_REWRITE_RULES", ()):
        pattern = getattr(getattr(rule, "_matcher", None), "pattern", None)
        for node in getattr(pattern, "_nodes", ()):
            for value in node.inputs:
                if hasattr(value, "_abs_tol"):
                    value._abs_tol = value._rel_tol = 0.0
