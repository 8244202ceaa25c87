"""Whether the values of a CT are Hounsfield units: air near -1000, fat near -100, muscle near 50, bone from 200.

Files are often stored on another scale (HU + 1024, tenths of HU, grey levels), and nothing in them says so.
"""

import numpy as np

UNMEASURED_HU = -1200.0  # lower, there is no tissue: scanners write -2000 or less where they measured nothing
BODY_HU = -300.0  # tissue lies higher, lung and air lower
AIR_HU, FAT_HU = (-1100.0, -780.0), -160.0  # lung alone has its peak near -850; fat's lies above the second
PEAK_HU = 100.0  # around a peak of one substance


def share(values: np.ndarray, low: float, high: float) -> float:
    """The share of values from `low` to below `high`."""
    return float(((values >= low) & (values < high)).mean())


def looks_shifted(values: np.ndarray) -> bool:
    """Whether CT values show soft tissue plus 1024, or inverted air, where cortical bone would be.

    Cortical bone is rarer than less dense bone.
    """
    dense = share(values, 824, 1324)
    return dense > 0.1 and dense > 2 * share(values, 324, 824)


def wrong_scale(values: np.ndarray) -> str | None:
    """Say why values that reach down to -100 cannot be HU of a body, in a few words; None where they can.

    Soft tissue decides, as there is more of it than of bone. Of a scan that was cut to a window, [-150, 350] HU say,
    all of this holds too.

    >>> hu = np.repeat([-1000.0, -100, 50, 400], [50, 20, 25, 5])
    >>> wrong_scale(hu), wrong_scale(10 * hu), wrong_scale(hu / 10)
    (None, 'most of the body lies above 200', 'soft tissue spans less than 25')
    """
    measured = values[values >= UNMEASURED_HU]
    body = measured[measured > BODY_HU]
    inverted_air = share(values, 900, 1124)
    if inverted_air > 0.01 and inverted_air > share(values, 400, 850):  # bone is mostly less dense
        return "more of it lies near 1000 than bone can"
    zeros, near = float((values == 0).mean()), float(((np.abs(values) <= 3) & (values != 0)).mean())
    if zeros > 0.03 and 0 < near < zeros / 3:
        return f"{zeros:.0%} are exactly 0, water: fill with -1000 what was padded or masked"
    low, high = np.percentile(values, (0.5, 99.5))
    if low < UNMEASURED_HU and len(body) and np.median(body) > 200:
        return "most of the body lies above 200"
    if low > BODY_HU and high - low < 250:
        quarters = np.percentile(values[values >= low + 0.3 * (high - low)], (25, 75))
        if np.ptp(quarters) < 25:
            return "soft tissue spans less than 25"
    lower = measured[measured <= -500]
    low_lying = len(measured) < 0.95 * len(values) and len(lower) > 0.9 * len(measured) > 0
    if low_lying and np.ptp(np.percentile(lower, (10, 90))) > 80:  # air is more alike
        return "soft tissue lies near -1000"
    air, fat = _peak(values, -5000, BODY_HU), _peak(values, BODY_HU, -20)
    if air is not None and not AIR_HU[0] < air < AIR_HU[1]:
        return f"air lies near {air:.0f}"
    if fat is not None and fat < FAT_HU:
        return f"fat lies near {fat:.0f}"
    return None


def _peak(values: np.ndarray, low: float, high: float) -> float | None:
    """The value about which most of what lies between `low` and `high` lies; None where it is spread, or rare.

    The lowest value of all does not count: it is where values were cut or filled. Where most air is there, what is left
    is no air. Nor do a few equal numbers count.
    """
    below = values[(values >= low) & (values < high)]
    between = below[below > values.min() + 1]
    if len(between) < max(len(below) / 4, 0.02 * len(values)):
        return None
    counts, edges = np.histogram(between, np.arange(low, high + 1, PEAK_HU / 3))
    middle = edges[np.convolve(counts, np.ones(3), "same").argmax()] + PEAK_HU / 6
    inside = between[np.abs(between - middle) < PEAK_HU / 2]
    if len(inside) < len(between) / 2 or len(np.unique(inside)) < 10:
        return None
    return float(np.median(inside))
