"""Exercises of notebook 03: stub, solution and a wrong answer of each in one cell (see tools/exercises.py)."""

import numpy as np

# %% [markdown] 1
# ### Exercise 1 (recall): a fifth candidate
#
# A generator is right, but everywhere 20 HU too high, and the way back subtracts them. Which of the losses finds it
# (True), which lets it pass (False)?
# %%
from mr2ct_lib.course.exercises import check

finds_it = {"cycle": None, "discriminator of one pixel": None, "GC": None}  #| stub
finds_it = {"cycle": False, "discriminator of one pixel": True, "GC": False}  #| solution
finds_it = {"cycle": True, "discriminator of one pixel": True, "GC": False}  #| wrong
check("03.1", finds_it)
# %% [markdown] solution
# The cycle closes, and a constant does not change a derivative. Only the discriminator knows which HU a CT holds.

# %% [markdown] 2
# ### Exercise 2 (change and see): a discriminator of 40 to 50 mm
#
# The paper's pixels are 1.25 mm wide, and its discriminator sees 70 of them, 87.5 mm. All kernels are 4 pixels wide.
# Change the strides, or the number of layers, until one score sees 40 to 50 mm.
# %%
strides = (2, 2, 2, 1, 1)  # from the slice to the score  #| stub
strides = (2, 2, 1, 1)  #| solution
strides = (2, 2, 1)  #| wrong
check("03.2", strides)
# %% [markdown] solution
# Backwards from the score: 1, 4, 7, 16, 34 pixels, so 42.5 mm.

# %% [markdown] 3
# ### Exercise 3 (build): an alarm for exchanged tissues
#
# Write `looks_exchanged(mr, hu)` for an MR in percent and its synthetic CT in HU. It returns True when fat and muscle
# seem to be exchanged. It sees no true CT. Bright MR (above 70 %) is mostly fat, dark grey MR (15 to 35 %) mostly
# muscle. One wild pixel must not raise the alarm, nor a constant error of all HU.
# %%
def looks_exchanged(mr, hu):
    """Whether bright areas of the MR (percent) got higher HU than dark grey ones; both arrays have one shape."""
    return ...  # your lines  #| stub
    fat, muscle = hu[mr > 70], hu[(mr > 15) & (mr < 35)]  #| solution
    return np.median(fat) > np.median(muscle)  #| solution
    return np.corrcoef(mr.ravel(), hu.ravel())[0, 1] > 0  #| wrong


check("03.3", looks_exchanged)
# %% [markdown] solution
# The sign of a correlation over the whole slice depends on how much air and bone the slice holds. In these hip slices
# it happens to be right. In the check's slice, half of which is air, it is positive for the right CT, too.
