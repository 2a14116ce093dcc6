"""Optimizers over the multi-tensor ops. Each has `begin(step)`, `gradients()`, `apply(found_inf)` and a state_dict."""
