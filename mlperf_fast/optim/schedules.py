"""Learning-rate schedules: plain functions of the step, which counts from 1."""

from collections.abc import Sequence


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


def warmup_poly(step: int, *, base: float, warmup: int, start_warmup: int = 0, total: int, power: float = 1.0) -> float:
    """Linear warm-up, then a polynomial decay to 0 at `total` steps: the schedule of the BERT reference.

    The decay counts from step 0, not from the end of the warm-up, so the rate drops there by base·(1 - (1 - s/total)^p)
    at once. `start_warmup` is 0 or negative: the warm-up has then gone on for so many steps before the first. With
    warmup=0 the decay starts at `base`. After `total` steps the rate is 0.
    Source: mlcommons/training, bert, optimization.py.
    """
    s = step - 1  # the reference counts from 0
    if s - start_warmup < warmup:
        return base * (s - start_warmup) / warmup
    return base * (1 - min(s, total) / total) ** power


def warmup_hold_exponential(
    step: int, *, base: float, epoch_steps: int, warmup: int, hold: int, gamma: float, floor: float
) -> float:
    """Linear warm-up, a hold, then a factor `gamma` an epoch: the schedule of the RNN-T reference.

    warmup, hold  in epochs of `epoch_steps` steps
    The warm-up's first value is 2/(W+1)·base for W warm-up steps; the decay changes once an epoch, and begins with the
    first epoch after the hold. The rate is never less than `floor`.
    Source: mlcommons/training, rnnt, common/optimizers.py.
    """
    epoch = (step - 1) // epoch_steps + 1
    if step < warmup * epoch_steps:
        factor = (step + 1) / (warmup * epoch_steps + 1)
    elif step < (warmup + hold) * epoch_steps:
        factor = 1.0
    else:
        factor = gamma ** (epoch - warmup - hold)
    return max(factor * base, floor)


def warmup_then_poly(step: int, *, base: float, warmup: int, total: int, end: float = 1e-4, power: float = 2) -> float:
    """Linear warm-up from base/warmup, then a polynomial decay from `base` to `end` at `total` steps: ResNet's.

    The decay counts from the end of the warm-up. After `total` steps the rate is `end`.
    As NVIDIA's submissions have it. The reference counts from 0 and takes one step longer:
    warmup_then_poly(step - 1, …, total=total + 1), whose first rate is 0.
    Source: mlcommons/training, image classification, lars_util.py (PolynomialDecayWithWarmup).
    """
    if step <= warmup:
        return base * step / warmup if warmup else base
    left = max(0.0, 1 - (step - warmup) / (total - warmup))
    return end + (base - end) * left**power


def warmup_then_steps(
    done: int, *, base: float, warmup: int, factor: float, decays: Sequence[int] = (), decay: float = 0.1
) -> float:
    """Linear warm-up from factor·base, then `base`, times `decay` from each step of `decays` on: Mask R-CNN's.

    done  steps before this one: step - 1. Mask R-CNN's reference starts at 1 and so passes the step itself
    RetinaNet's has no decays. U-Net's, whose warm-up starts at 1e-4, has factor = 1e-4 / base.
    Sources: mlcommons/training, object detection, WarmupMultiStepLR; single stage detector, warmup().
    """
    warmed = done / warmup if done < warmup else 1.0
    return base * (factor * (1 - warmed) + warmed) * decay ** sum(done >= at for at in decays)


def piecewise_constant(step: int, *, rates: Sequence[float], boundaries: Sequence[int]) -> float:
    """rates[i] up to step boundaries[i], the last one after all of them: Minigo's.

    A step is compared as the number of steps done before it, which is what TensorFlow's global step holds then.
    Source: tf.compat.v1.train.piecewise_constant; mlcommons/training, minigo, dual_net.py.
    """
    return rates[sum(step - 1 > at for at in boundaries)]
