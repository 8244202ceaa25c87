"""python -m mr2ct_lib.cli: the same as `mr2ct`."""

from mr2ct_lib.cli import main

if __name__ == "__main__":
    main()
