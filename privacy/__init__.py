"""Pure privacy mechanisms: plan, clipping, noise, accounting, ledger, secure aggregation, audit."""
