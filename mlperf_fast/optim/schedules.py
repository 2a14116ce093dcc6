"""Learning-rate schedules: plain functions of the step, which counts from 1."""


def warmup_hold_poly(step: int, *, base: float, warmup: int, decay_start: int, decay_steps: int, floor: float) -> float:
    """Linear warm-up, a hold, then a quadratic decay: the schedule of the DLRM reference.

    Its two oddities are kept, since convergence is compared with it: the hold stays at the warm-up's last value,
    base·(warmup-1)/warmup, and the rate jumps to exactly `base` when the decay starts; after the decay the last value
    stays. Without a decay (`decay_steps` 0) the rate after the warm-up is `base`.
    Source: facebookresearch/dlrm, LRPolicyScheduler.
    """
    if step < warmup:
        return base * step / warmup
    if decay_steps == 0:
        return base
    if step >= decay_start:
        last = decay_start + decay_steps - 1
        left = (decay_steps - (min(step, last) - decay_start)) / decay_steps
        return max(floor, base * left**2)
    return base * (warmup - 1) / warmup if warmup > 1 else base
