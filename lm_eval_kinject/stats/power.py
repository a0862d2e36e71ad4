"""How small a difference a study could have seen: minimum detectable effects.

What it is for: a result "inside the noise" says something only with the size that would have stood out. What it doesn't
do: it looks at no p-value; power after the fact tells nothing new. Differences are of shares, in 0..1.

The one idea: by the normal approximation, a two-sided test at level α sees a difference d with the wanted power if
d·√n = z_α/2 · (deviation without a difference) + z_power · (deviation with it); we solve that for d.
"""

from __future__ import annotations

import math

from scipy import optimize, stats


def detectable_paired(questions: float, discordance: float, *, power: float = 0.8, alpha: float = 0.05) -> float | None:
    """The smallest difference in accuracy that McNemar's test finds with this power (Connor 1987).

    A pair's difference has deviation √ψ without an effect and √(ψ − d²) with one, where ψ is the discordance; the
    condition is a quadratic in d.

    Args:
        questions: how many both variants answered, above 0; an effective number where they are clustered.
        discordance: ψ, the share that exactly one of the two gets right, in 0..1.

    Returns:
        The difference, in 0..ψ; None where even questions that all go one way would not be enough.

    Raises:
        ValueError: arguments out of range.
    """
    z_level, z_power = _quantiles(questions, power, alpha)
    if not 0 <= discordance <= 1:
        raise ValueError(f"discordance must be in 0..1, not {discordance}")
    inside = questions + z_power**2 - z_level**2
    if inside < 0 or discordance == 0:
        return None
    root = math.sqrt(discordance)
    effect = root * (z_level * math.sqrt(questions) + z_power * math.sqrt(inside)) / (questions + z_power**2)
    return effect if effect <= discordance else None


def detectable_unpaired(questions: float, base: float, *, power: float = 0.8, alpha: float = 0.05) -> float | None:
    """The smallest gain over ``base`` that a test of two independent shares finds with this power.

    With p = base + d and p̄ their mean: d·√n = z_α/2·√(2p̄(1 − p̄)) + z_power·√(p(1 − p) + base(1 − base)) (Fleiss,
    Levin and Paik 2003, section 4.2, without continuity correction; both samples have n questions).

    Returns:
        The difference, above 0; None where even an accuracy of 1 would not stand out.

    Raises:
        ValueError: arguments out of range.
    """
    z_level, z_power = _quantiles(questions, power, alpha)
    if not 0 <= base <= 1:
        raise ValueError(f"an accuracy must be in 0..1, not {base}")

    def excess(effect: float) -> float:
        other, mean = base + effect, base + effect / 2
        without = math.sqrt(max(0.0, 2 * mean * (1 - mean)))
        with_it = math.sqrt(max(0.0, other * (1 - other) + base * (1 - base)))
        return effect * math.sqrt(questions) - z_level * without - z_power * with_it

    if base == 1 or excess(1 - base) < 0:
        return None
    # At a base of 0 the effect 0 solves it too; the smallest step beyond is below the root we want.
    return float(optimize.brentq(excess, 1e-12, 1 - base, xtol=1e-13))


def _quantiles(questions: float, power: float, alpha: float) -> tuple[float, float]:
    if not questions > 0:
        raise ValueError("no questions to compare on")
    if not (0.5 <= power < 1 and 0 < alpha < 1):
        raise ValueError(f"power must be in .5 to 1 and alpha in 0 to 1, not {power} and {alpha}")
    return float(stats.norm.ppf(1 - alpha / 2)), float(stats.norm.ppf(power))
