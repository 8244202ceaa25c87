"""Exercises of notebook 06: stub, solution and a wrong answer of each in one cell (see tools/exercises.py)."""

# %% [markdown] 1
# ### Exercise 1 (recall): which channel was made?
#
# Of the two channels, "MR" and "CT", which one is made by the translator in training, and which one at the test?
# %%
from mr2ct_lib.course.exercises import check

made_by_translator = {"training": None, "test": None}  # "MR" or "CT"  #| stub
made_by_translator = {"training": "MR", "test": "CT"}  #| solution
made_by_translator = {"training": "CT", "test": "CT"}  #| wrong
check("06.1", made_by_translator)
# %% [markdown] solution
# In training the CT is real, since the labels were drawn on it; at the test the MR is real, since the patient was
# scanned by MR.

# %% [markdown] 2
# ### Exercise 2 (change and see): when does HD95 react?
#
# A square of 10 x 10 pixels of 5 mm is found exactly, plus some single stray pixels far away. HD95 ignores one. What
# is the smallest number of stray pixels that it notices?
# %%
stray_pixels = 1  # change it  #| stub
stray_pixels = 2  #| solution
stray_pixels = 4  #| wrong
check("06.2", stray_pixels)
# %% [markdown] solution
# The square has 36 surface pixels. Two stray ones are more than 5 % of all surface pixels, so the 95th percentile
# falls on them. For a small structure HD95 is nearly the maximum again.

# %% [markdown] 3
# ### Exercise 3 (build): what one pixel costs
#
# A band `width` pixels wide is found in the right shape, but moved sideways by `shift` pixels. Write its Dice as a
# function of both. The check measures such bands with the library's Dice. Then ask which Dice a network can hope for
# on each structure when its borders are accurate to one pixel.
# %%
def dice_after_shift(width: float, shift: float) -> float:
    """Dice of a long band with itself, moved across by `shift`."""
    return ...  # your line  #| stub
    return max(0.0, 1 - shift / width)  #| solution
    return 1 - shift / width  #| wrong


check("06.3", dice_after_shift)
# %% [markdown] solution
# Both bands have `width` pixels across, and `width - shift` of them overlap, or none if it moved further than its
# width:
#
# $$\mathrm{Dice} = \max\Big(0,\; \frac{2\,(w - s)}{w + w}\Big) = \max\Big(0,\; 1 - \frac{s}{w}\Big)$$
