"""Inverse power laws through a few noisy means: the ones that fit, and the one that fits best.

    f(n) = level + gain (1 - (n / N)^-power) = a - b n^-c,    a = level + gain,  b = gain N^c

For one power the law is linear in level and gain, so with normal errors and a normal prior of the
gain everything but the power is known in closed form; the power is one of a grid. A gain below 0 is
set to 0, for no curve falls.
"""

import warnings

import numpy as np
from jaxtyping import Float, Num
from scipy.optimize import OptimizeWarning, curve_fit
from scipy.stats import chi2

POWERS = np.geomspace(0.15, 2.5, 24)
POWER = (0.6, 0.6)
"""Median of the prior of the power, and the standard deviation of its logarithm."""
GAIN = (0.35, 0.35)
"""Mean and standard deviation of the prior of the gain, in parts of 1 - level; cut at 0 and 1."""


class PowerLaws:
    """The posterior of the power, and refits at each power.

    Args:
      sizes: in parts of N.
      values: mean AUC at each.
      covariance: of their errors.
    """

    def __init__(
        self,
        sizes: Float[np.ndarray, " k"],
        values: Float[np.ndarray, " k"],
        covariance: Float[np.ndarray, "k k"],
    ):
        self.sizes, self.values = sizes, values
        self.precision = np.linalg.inv(covariance)
        room = max(1 - float(values[-1]), 0.02)
        self.gain_mean, self.gain_sd = GAIN[0] * room, GAIN[1] * room
        # With the priors of level (flat) and gain in the covariance, all but the power is normal.
        logs = np.array([self._log_evidence(power, covariance) for power in POWERS])
        logs -= 0.5 * (np.log(POWERS / POWER[0]) / POWER[1]) ** 2
        self.weights = np.exp(logs - logs.max())
        self.weights /= self.weights.sum()

    def _design(self, power: float) -> Float[np.ndarray, "k 2"]:
        return np.stack([np.ones(len(self.sizes)), 1 - self.sizes**-power], axis=1)

    def _log_evidence(self, power: float, covariance: Float[np.ndarray, "k k"]) -> float:
        design = self._design(power)
        total = covariance + design @ np.diag([1.0, self.gain_sd**2]) @ design.T
        rest = self.values - design @ np.array([0.75, self.gain_mean])
        return float(-0.5 * (rest @ np.linalg.solve(total, rest) + np.linalg.slogdet(total)[1]))

    def drawn(
        self, values: Float[np.ndarray, "d k"], rng: np.random.Generator
    ) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, " d"], Float[np.ndarray, " d"]]:
        """Level, gain and power of a refit of each row of values."""
        at = rng.choice(len(POWERS), len(values), p=self.weights)
        wished = self.gain_mean + self.gain_sd * rng.standard_normal(len(values))
        level, gain = np.empty(len(values)), np.empty(len(values))
        for number in np.unique(at):
            own = at == number
            level[own], gain[own] = self._refit(values[own], wished[own], POWERS[number])
        return level, gain, POWERS[at]

    def _refit(
        self, values: Float[np.ndarray, "d k"], wished: Float[np.ndarray, " d"], power: float
    ) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, " d"]]:
        """Generalised least squares with the wished gain as one more observation."""
        design, prior = self._design(power), np.diag([0.0, self.gain_sd**-2])
        normal = design.T @ self.precision @ design + prior
        right = values @ self.precision @ design
        right[:, 1] += wished / self.gain_sd**2
        level, gain = np.linalg.solve(normal, right.T)
        flat = gain < 0  # no curve falls: level alone
        ones = np.ones(len(self.sizes)) @ self.precision
        level[flat] = values[flat] @ ones / ones.sum()
        return level, np.maximum(gain, 0)

    def misfit(self) -> tuple[float, float]:
        """The chance of the residuals of the likeliest law, if it were true, and the largest."""
        power = POWERS[np.argmax(self.weights)]
        wished = np.array([self.gain_mean])
        level, gain = self._refit(self.values[None], wished, power)
        rest = self.values - level[0] - gain[0] * (1 - self.sizes**-power)
        chance = chi2.sf(rest @ self.precision @ rest, max(len(self.sizes) - 2, 1))
        return float(chance), float(np.abs(rest).max())


def least_squares(
    sizes: Num[np.ndarray, " k"], values: Num[np.ndarray, " k"]
) -> tuple[float, float, float]:
    """a, b, c of a - b n^-c by plain least squares with bounds: what the intervals are set against.

    a is in [0, 1], b in [0, 10], c in [0, 5].
    """

    def law(n: np.ndarray, a: float, b: float, c: float) -> np.ndarray:
        return a - b * n**-c

    start = (min(float(np.max(values)) + 0.02, 0.99), 0.5, 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OptimizeWarning)  # of its own covariance, which nobody asks
        (a, b, c), _ = curve_fit(
            law, np.asarray(sizes, float), values, start, bounds=((0, 0, 0), (1, 10, 5))
        )
    return float(a), float(b), float(c)
